"""How long a batch of n takes: a·n + b, fitted to the batches of the last while."""

from typing import Final

# Of the weight of a batch that the next one still has: the last thirty or so count.
_MEMORY: Final = 0.97


class BatchDuration:
    """A straight line through the durations of recent batches, by exponentially weighted least squares.

    Both coefficients are kept from going below 0: more images never take less time.

    Args:
        first_guess_s: seconds for a single image, before anything was measured.
    """

    def __init__(self, first_guess_s: float = 0.05) -> None:
        self._first_guess_s = first_guess_s
        self._weight = self._n = self._nn = self._t = self._nt = 0.0

    def observe(self, count: int, seconds: float) -> None:
        """Take one finished batch into account.

        Args:
            count: images in it, at least 1.
            seconds: how long it took.
        """
        for name, value in (
            ("_weight", 1.0),
            ("_n", count),
            ("_nn", count**2),
            ("_t", seconds),
            ("_nt", count * seconds),
        ):
            setattr(self, name, _MEMORY * getattr(self, name) + value)

    def predict(self, count: int) -> float:
        """Seconds that a batch of `count` images will take; 0 for none."""
        if count < 1:
            return 0.0
        if self._weight == 0.0:
            return self._first_guess_s * count
        slope, intercept = self._line()
        return slope * count + intercept

    def _line(self) -> tuple[float, float]:
        """(a, b): seconds an image, seconds a batch."""
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        spread = self._nn / self._weight - mean_n**2
        # All batches of one size say nothing about the slope: then the whole time is the images'.
        slope = mean_t / mean_n if spread < 1e-9 else (self._nt / self._weight - mean_n * mean_t) / spread
        slope = min(max(slope, 0.0), mean_t / mean_n)
        return slope, max(mean_t - slope * mean_n, 0.0)
