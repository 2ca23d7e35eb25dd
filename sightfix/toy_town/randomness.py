"""Random numbers that depend on nothing but what they are for: one generator for each purpose, none shared."""

import zlib

import numpy as np


def generator(seed: int, *purpose: int | str) -> np.random.Generator:
    """A generator for one purpose of one town, the same in every process and in any order of calls.

    Args:
        seed: the town's seed, not negative.
        purpose: what it is for, as words and non-negative numbers, for example ``("facade", 17)``.
    """
    words = [part if isinstance(part, int) else zlib.crc32(part.encode()) for part in purpose]
    return np.random.default_rng([seed, *words])
