"""The nuScenes detection metric and its submissions."""
