"""Arms, seeds and stages: the whole experiment."""
