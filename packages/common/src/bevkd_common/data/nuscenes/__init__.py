"""nuScenes, and data in its format."""
