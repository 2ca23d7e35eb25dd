"""Where the page's map gets its pictures from, if an operator wants some; without, it draws a plain grid."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from retrieval.errors import ParameterError

DEEPEST_ZOOM: Final = 23

_NAMES: Final = frozenset({"s", "z", "x", "y", "-y", "r"})
# Nothing that could end a directive of the Content-Security-Policy or begin another.
_HOST: Final = re.compile(r"(\{s\}\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d{1,5})?")
_REMEDY: Final = "Write it as https://tile.example.org/{z}/{x}/{y}.png, or /tiles/{z}/{x}/{y}.png on this host"


@dataclass(frozen=True, slots=True)
class MapTiles:
    """A source of map tiles in Web Mercator.

    Attributes:
        url: of one tile, with ``{z}``, ``{x}`` and ``{y}`` (or ``{-y}``, counted from the south); ``{s}`` is one of
            a, b and c, ``{r}`` is ``@2x`` on fine screens. A path alone is one on the page's own host.
        attribution: who made the map, as its licence wants it shown; plain text.
        max_zoom: the deepest level that the source has; deeper views enlarge it.

    Raises:
        ParameterError: another URL than that.
    """

    url: str
    attribution: str
    max_zoom: int

    def __post_init__(self) -> None:
        names = re.findall(r"\{([^{}]*)\}", self.url)
        if not {"z", "x"} <= set(names) or not {"y", "-y"} & set(names):
            raise self._wrong("the URL of map tiles lacks {z}, {x} or {y}")
        unknown = sorted(set(names) - _NAMES)
        if unknown:
            raise self._wrong(f"the URL of map tiles has an unknown part {{{unknown[0]}}}")
        scheme, host = self._scheme_and_host()
        if scheme not in ("http", "https", "") or not (_HOST.fullmatch(host) if scheme else self._is_path(host)):
            raise self._wrong("the URL of map tiles is neither http, https nor a path")

    @property
    def csp_source(self) -> str | None:
        """What the page may load pictures from for it (CSP level 3); None where that is its own host."""
        scheme, host = self._scheme_and_host()
        return f"{scheme}://{host.replace('{s}', '*')}" if scheme else None

    def _scheme_and_host(self) -> tuple[str, str]:
        try:
            parts = urlsplit(self.url)
        except ValueError as error:
            raise self._wrong(f"the URL of map tiles cannot be read ({error})") from error
        return parts.scheme, parts.netloc

    def _is_path(self, host: str) -> bool:
        return not host and re.match(r"/[^/\\]", self.url) is not None

    def _wrong(self, what: str) -> ParameterError:
        return ParameterError(what, where=f"--tile-url or SIGHTFIX_TILE_URL: {self.url}", remedy=_REMEDY)
