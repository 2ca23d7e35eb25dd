"""How one building looks: everything that is chosen by chance, chosen once, before anything is drawn."""

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from sightfix.toy_town.lettering import WORDS
from sightfix.toy_town.light import Rgb
from sightfix.toy_town.sheet import mix, shade

_Choice = TypeVar("_Choice")

# fmt: off
_PLASTER: Final[tuple[Rgb, ...]] = (
    (238, 222, 182), (226, 172, 112), (208, 116, 86), (238, 190, 186), (152, 186, 208), (92, 132, 166), (128, 164, 128),
    (78, 118, 98), (206, 196, 180), (246, 242, 232), (168, 62, 56), (240, 202, 96), (112, 92, 128), (64, 80, 102),
    (190, 156, 196), (116, 194, 184), (232, 144, 92), (218, 214, 132),
)
_MASONRY: Final[dict[str, tuple[Rgb, ...]]] = {
    "plaster": _PLASTER,
    "brick": ((156, 76, 60), (126, 86, 66), (200, 166, 112), (94, 66, 66), (216, 208, 198), (178, 96, 66), (110, 52, 50)),
    "stone": ((200, 190, 170), (168, 162, 152), (216, 200, 160), (142, 140, 138), (188, 164, 150), (226, 222, 212)),
    "boards": ((96, 140, 172), (188, 70, 60), (234, 228, 210), (88, 110, 88), (238, 190, 92), (60, 66, 72), (196, 152, 112)),
    "battens": ((168, 116, 76), (82, 92, 98), (206, 196, 174), (54, 84, 76), (150, 54, 50)),
    "tiles": ((232, 236, 238), (240, 224, 170), (170, 206, 190), (206, 190, 214)),
    "panels": ((182, 180, 174), (206, 204, 198), (134, 142, 148), (190, 150, 120), (108, 128, 132)),
    "stripes": ((222, 212, 196), (214, 198, 170), (198, 190, 186)),
}
_JOINTS: Final[dict[str, tuple[Rgb, ...]]] = {
    "plaster": ((255, 255, 255),),
    "brick": ((206, 198, 186), (90, 80, 76), (232, 226, 214)),
    "stone": ((120, 112, 102), (232, 228, 220)),
    "boards": ((40, 40, 44), (255, 255, 255)),
    "battens": ((30, 28, 26), (230, 226, 216)),
    "tiles": ((44, 84, 160), (40, 120, 96), (190, 70, 50), (210, 160, 40)),
    "panels": ((110, 108, 104), (70, 72, 74)),
    "stripes": ((92, 110, 96), (168, 92, 76), (84, 84, 96)),
}
_WEIGHTS: Final = {
    "plaster": 9, "brick": 6, "stone": 3, "boards": 3, "battens": 1.5, "tiles": 1.5, "panels": 2, "stripes": 1.2,
}
_TRIMS: Final[tuple[Rgb, ...]] = (
    (246, 244, 238), (222, 210, 186), (92, 88, 86), (60, 52, 48), (182, 170, 156), (250, 250, 250), (196, 92, 66),
)
_ACCENTS: Final[tuple[Rgb, ...]] = (
    (44, 88, 70), (150, 44, 40), (40, 66, 118), (90, 52, 36), (30, 34, 40), (222, 168, 60), (66, 132, 150), (198, 94, 110),
    (104, 142, 70), (236, 232, 222), (96, 60, 110), (230, 110, 50),
)
_ROOFS: Final[tuple[Rgb, ...]] = (
    (176, 84, 58), (148, 66, 52), (84, 90, 102), (62, 66, 74), (120, 96, 78), (94, 134, 120), (204, 120, 78), (70, 58, 60),
)
WINDOWS: Final = ("sash", "casement", "arched", "tall", "square", "paired", "ribbon", "porthole", "pointed", "grid")
GROUND_FLOORS: Final = ("shop", "double shop", "cafe", "house", "arcade", "garage", "stoop")
ROOFLINES: Final = (
    "cornice", "parapet", "balustrade", "mansard", "gable", "stepped gable", "bell gable", "eaves", "chimneys", "turrets",
    "crenels", "twin gables", "shed dormers",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class FacadeStyle:
    """One building's looks; lengths in metres.

    Attributes:
        material, wall, joint: what the walls are made of, and their colours.
        trim: window surrounds, bands and cornices. accent: doors and shutters. roof: roof tiles.
        storeys, ground_m, storey_m: how many, how high the lowest and each of the others.
        bay_m: width of one window axis.
        window: a key of WINDOWS; window_w and window_h its shares of bay and storey. frame: its colour.
        panes: columns and rows of panes.
        shutters, flower_boxes, quoins, pilasters, bands, timber, ivy, sills: whether there are any.
        balconies: ``none``, ``middle``, ``every`` or ``staggered``.
        ground_floor: one of GROUND_FLOORS. ground_wall: the colour of its wall.
        sign, sign_text, word: of the shop. awning: two colours of stripes, or None.
        roofline: one of ROOFLINES.
        mural: whether the blind side walls carry a painting.
    """

    material: str
    wall: Rgb
    joint: Rgb
    trim: Rgb
    accent: Rgb
    roof: Rgb
    storeys: int
    ground_m: float
    storey_m: float
    bay_m: float
    window: str
    window_w: float
    window_h: float
    frame: Rgb
    panes: tuple[int, int]
    shutters: bool
    flower_boxes: bool
    quoins: bool
    pilasters: bool
    bands: bool
    timber: bool
    ivy: bool
    sills: bool
    balconies: str
    ground_floor: str
    ground_wall: Rgb
    sign: Rgb
    sign_text: Rgb
    word: str
    awning: tuple[Rgb, Rgb] | None
    roofline: str
    mural: bool

    @property
    def eaves_m(self) -> float:
        """Height of the wall without the roof."""
        return self.ground_m + (self.storeys - 1) * self.storey_m


def pick(rng: np.random.Generator, choices: tuple[_Choice, ...]) -> _Choice:
    """One of some things."""
    return choices[int(rng.integers(len(choices)))]


def _tinted(rng: np.random.Generator, colour: Rgb) -> Rgb:
    red, green, blue = (
        int(np.clip(channel + rng.integers(-10, 11), 0, 255)) for channel in shade(colour, rng.uniform(0.9, 1.06))
    )
    return red, green, blue


def random_style(rng: np.random.Generator, storeys: int) -> FacadeStyle:
    """A building of so many storeys, whatever comes."""
    names = tuple(_WEIGHTS)
    weights = np.array(list(_WEIGHTS.values()))
    material = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    if storeys >= 6 and rng.random() < 0.7:
        material = pick(rng, ("panels", "brick", "stone"))
    wall = _tinted(rng, pick(rng, _MASONRY[material]))
    trim = pick(rng, _TRIMS)
    accent = pick(rng, _ACCENTS)
    sign = _tinted(rng, pick(rng, _ACCENTS))
    window = pick(rng, WINDOWS)
    chance = rng.random(10)
    plain = material in ("panels", "battens")
    return FacadeStyle(
        material=material,
        wall=wall,
        joint=pick(rng, _JOINTS[material]),
        trim=trim,
        accent=accent,
        roof=_tinted(rng, pick(rng, _ROOFS)),
        storeys=storeys,
        ground_m=float(rng.uniform(3.5, 4.5)),
        storey_m=float(rng.uniform(2.8, 3.6)),
        bay_m=float(rng.uniform(1.7, 3.4)),
        window=window,
        window_w=float(rng.uniform(0.40, 0.66)),
        window_h=float(rng.uniform(0.48, 0.74)),
        frame=pick(rng, ((250, 250, 246), (250, 250, 246), (52, 48, 46), (110, 72, 48), accent)),
        panes=(int(rng.integers(1, 4)), int(rng.integers(1, 4))),
        shutters=bool(chance[0] < 0.3 and not plain and window in ("sash", "casement", "tall", "square")),
        flower_boxes=bool(chance[1] < 0.2),
        quoins=bool(chance[2] < 0.22 and not plain),
        pilasters=bool(chance[3] < 0.15),
        bands=bool(chance[4] < 0.45),
        timber=bool(material == "plaster" and chance[5] < 0.14),
        ivy=bool(chance[6] < 0.09),
        sills=bool(chance[7] < 0.6),
        balconies=pick(rng, ("none", "none", "none", "none", "middle", "every", "staggered")),
        ground_floor=pick(rng, (*GROUND_FLOORS, "shop", "house", "shop")),
        ground_wall=pick(
            rng, (wall, wall, shade(wall, 0.75), trim, shade(accent, 0.9), mix(wall, (170, 160, 150), 0.6))
        ),
        sign=sign,
        sign_text=(250, 246, 232) if sum(sign) < 420 else (40, 32, 30),
        word=pick(rng, WORDS),
        awning=(_tinted(rng, pick(rng, _ACCENTS)), pick(rng, ((246, 242, 232), (246, 242, 232), accent)))
        if chance[8] < 0.55
        else None,
        roofline=pick(rng, ROOFLINES if storeys < 6 else ("cornice", "parapet", "balustrade", "mansard", "turrets")),
        mural=bool(chance[9] < 0.2),
    )
