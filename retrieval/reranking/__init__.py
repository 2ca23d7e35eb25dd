"""Re-ranking: the best matches of a photo are compared with it point by point, and those that fit are moved up."""
