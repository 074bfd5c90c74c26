"""The nuScenes rig and the writer of the nuScenes v1.0 format."""

from .writer import TRAIN_SPLIT, VAL_SPLIT, VERSION, NuScenesWriter

__all__ = ["TRAIN_SPLIT", "VAL_SPLIT", "VERSION", "NuScenesWriter"]
