"""A five by seven pixel alphabet for shop signs: the same on every machine, with or without fonts."""

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_ROWS: Final = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01111 10000 10000 10111 10001 10001 01111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "I": "01110 00100 00100 00100 00100 00100 01110",
    "J": "00111 00010 00010 00010 00010 10010 01100",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "N": "10001 11001 10101 10011 10001 10001 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 10001 10001 01010 00100",
    "W": "10001 10001 10001 10101 10101 11011 10001",
    "X": "10001 01010 00100 00100 00100 01010 10001",
    "Y": "10001 01010 00100 00100 00100 00100 00100",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
    " ": "00000 00000 00000 00000 00000 00000 00000",
}

WORDS: Final = (
    "BAKERY", "CAFE", "BOOKS", "FISH", "TEA", "HOTEL", "FLOWERS", "CHEESE", "TOYS", "RADIO", "BANK", "POST",
    "WINE", "SHOES", "HATS", "MUSIC", "CINEMA", "BAR", "PIZZA", "FRUIT", "BIKES", "TAILOR", "OPTIK", "GALLERY",
    "NEMO", "SOUP", "LAMPS", "MAPS", "CLOCKS", "PAPER", "SALON", "SUSHI", "GARDEN", "TOOLS", "ART", "DELI",
)  # fmt: skip


@cache
def lettering(text: str) -> NDArray[np.bool_]:
    """A word as pixels.

    Args:
        text: capital letters without Q, and spaces.

    Returns:
        (7, 6·len − 1) bool, true where there is ink.
    """
    glyphs = [np.array([[pixel == "1" for pixel in row] for row in _ROWS[letter].split()]) for letter in text]
    spaced = [np.pad(glyph, ((0, 0), (0, 1))) for glyph in glyphs]
    return np.concatenate(spaced, axis=1)[:, :-1]
