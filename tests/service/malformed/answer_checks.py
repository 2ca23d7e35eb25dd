"""What an answer to a malformed request may be."""

import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from service.answer import Problem

_DOCS: Final = Path(__file__).resolve().parents[3] / "docs" / "reference"

# Ours to answer with when the request is at fault, when there is too much of it, or when it comes at a bad time.
_SERVER_ERRORS: Final[frozenset[int]] = frozenset({503, 504})


@cache
def documented_codes() -> frozenset[str]:
    """Every code of the tables in the reference of HTTP, jobs and tracks."""
    text = "".join(path.read_text() for path in _DOCS.glob("*.md") if path.stem in ("http", "jobs", "tracks"))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return frozenset(code for row in rows for code in re.findall(r"`([a-z][a-z_]+)`", row))


@dataclass
class AnswerChecks:
    """What came back, and what of it is wrong.

    Attributes:
        limit_s: an answer that takes longer is a hang.
        answers: by area and status; the status 0 is a connection closed without an answer.
        codes: of all problems.
        slowest: seconds and what was asked.
    """

    limit_s: float = 20.0
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def cases(self) -> int:
        """How many were judged."""
        return sum(self.answers.values())

    def judge(
        self, area: str, what: str, seconds: float, status: int, headers: dict[str, str], body: bytes
    ) -> "Problem | None":
        """Count an answer and fail on one that may not be.

        Args:
            area: of the fuzzer, for the count.
            what: was asked, for people.
            seconds: until the answer was there.
            status: of HTTP.
            headers: names in small letters.
            body: whole.

        Returns:
            The problem, where the answer is one.
        """
        with self._lock:
            self.answers[area, status] += 1
            self.slowest = max(self.slowest, (seconds, f"{area}: {what[:120]}"))
        told = f"{area}, {what[:300]}: {status} {headers} {body[:500]!r}"
        assert not seconds >= self.limit_s, f"no answer for {seconds:.1f} s: {told}"
        assert 200 <= status < 500 or status in _SERVER_ERRORS, told
        if status < 400:
            return None
        assert headers.get("content-type", "").startswith("application/problem+json"), told
        problem = Problem.model_validate_json(body)
        assert problem.status == status, told
        assert problem.code in documented_codes(), f"the code {problem.code!r} is not in the documentation: {told}"
        assert problem.type == f"urn:sightfix:problem:{problem.code}", told
        assert problem.detail, told
        assert "Traceback" not in problem.detail, told
        if status in (429, 503):
            assert int(headers["retry-after"]) >= 1, told
        with self._lock:
            self.codes[problem.code] += 1
        return problem
