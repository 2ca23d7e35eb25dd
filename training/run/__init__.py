"""A training run: from photos and a recipe to checkpoints."""
