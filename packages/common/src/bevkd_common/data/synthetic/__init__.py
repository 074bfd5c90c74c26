"""A seeded procedural world, written as a genuine nuScenes v1.0 data set."""
