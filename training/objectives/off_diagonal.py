"""How dimensions relate to each other, without how each relates to itself."""

from torch import Tensor


def off_diagonal(matrix: Tensor) -> Tensor:
    """The (P, P) matrix with zeros on its diagonal; no squares are subtracted from each other later on."""
    return matrix.clone().fill_diagonal_(0)
