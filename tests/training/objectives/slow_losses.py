"""The seven losses once more, as loops over float64 numbers, and their gradients by central differences."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def unit(row: Matrix) -> Matrix:
    return row / math.sqrt(sum(value * value for value in row))


def cosine(a: Matrix, b: Matrix) -> float:
    return float(sum(p * q for p, q in zip(unit(a), unit(b), strict=True)))


def nt_xent(x: Matrix, y: Matrix, temperature: float, same_place: NDArray[np.bool_] | None = None) -> float:
    """`same_place[i, j]`: whether rows i and j of [x; y] must not be negatives."""
    rows = [*x, *y]
    count = len(rows)
    total = 0.0
    for i in range(count):
        positive = (i + len(x)) % count
        denominator = 0.0
        for j in range(count):
            masked = same_place is not None and same_place[i, j] and j != positive
            if j != i and not masked:
                denominator += math.exp(cosine(rows[i], rows[j]) / temperature)
        total -= cosine(rows[i], rows[positive]) / temperature - math.log(denominator)
    return total / count


def moco(x: Matrix, keys: Matrix, queue: Matrix, temperature: float, masked: NDArray[np.bool_] | None = None) -> float:
    total = 0.0
    for i in range(len(x)):
        positive = math.exp(cosine(x[i], keys[i]) / temperature)
        denominator = positive
        for j in range(len(queue)):
            if masked is None or not masked[i, j]:
                denominator += math.exp(cosine(x[i], queue[j]) / temperature)
        total -= math.log(positive / denominator)
    return total / len(x)


def prediction(x_prediction: Matrix, y_prediction: Matrix, x_target: Matrix, y_target: Matrix) -> float:
    total = 0.0
    for i in range(len(x_prediction)):
        total += float(((unit(x_prediction[i]) - unit(y_target[i])) ** 2).sum())
        total += float(((unit(y_prediction[i]) - unit(x_target[i])) ** 2).sum())
    return total / len(x_prediction)


def _column_mean(x: Matrix, column: int) -> float:
    return sum(float(row[column]) for row in x) / len(x)


def covariance(x: Matrix, i: int, j: int) -> float:
    mean_i, mean_j = _column_mean(x, i), _column_mean(x, j)
    return sum(float((row[i] - mean_i) * (row[j] - mean_j)) for row in x) / (len(x) - 1)


def barlow_twins(x: Matrix, y: Matrix, redundancy_weight: float) -> float:
    count, dim = x.shape
    total = 0.0
    for i in range(dim):
        for j in range(dim):
            product = sum(float((x[n, i] - _column_mean(x, i)) * (y[n, j] - _column_mean(y, j))) for n in range(count))
            scale = math.sqrt(covariance(x, i, i) + 1e-4) * math.sqrt(covariance(y, j, j) + 1e-4)
            correlation = product / scale / count
            total += (correlation - 1) ** 2 if i == j else redundancy_weight * correlation**2
    return total


def vicreg(x: Matrix, y: Matrix, invariance: float, variance: float, decorrelation: float) -> float:
    count, dim = x.shape
    total = invariance * float(((x - y) ** 2).sum()) / (count * dim)
    for view in (x, y):
        for i in range(dim):
            total += variance * max(0.0, 1 - math.sqrt(covariance(view, i, i) + 1e-4)) / dim / 2
            for j in range(dim):
                if i != j:
                    total += decorrelation * covariance(view, i, j) ** 2 / dim
    return total


def triplet(x: Matrix, y: Matrix, negatives: Matrix, margin: float) -> float:
    total = 0.0
    for i in range(len(x)):
        for negative in negatives[i]:
            # torch adds 1e-6 to each difference.
            nearer = math.sqrt(sum((a - b + 1e-6) ** 2 for a, b in zip(x[i], y[i], strict=True)))
            farther = math.sqrt(sum((a - b + 1e-6) ** 2 for a, b in zip(x[i], negative, strict=True)))
            total += max(0.0, nearer - farther + margin)
    return total / (len(x) * negatives.shape[1])


def gradient(function: Callable[[Matrix], float], at: Matrix, step: float = 1e-6) -> Matrix:
    """∂function/∂at by central differences."""
    slope = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        above, below = at.copy(), at.copy()
        above[place] += step
        below[place] -= step
        slope[place] = (function(above) - function(below)) / (2 * step)
    return slope
