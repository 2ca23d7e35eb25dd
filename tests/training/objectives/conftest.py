"""Makes lightly importable for the tests here; they compare our losses with its."""

from training.torchvision_ops import define_missing_operators

define_missing_operators()
