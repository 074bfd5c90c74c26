"""A seeded procedural world, written as a genuine nuScenes v1.0 data set.

Nothing here imports torch: worlds are made by worker processes that should start at once.
"""

from .generate import TRAIN_SPLIT, VAL_SPLIT, VERSION, content_hash, ensure_world

__all__ = ["TRAIN_SPLIT", "VAL_SPLIT", "VERSION", "content_hash", "ensure_world"]
