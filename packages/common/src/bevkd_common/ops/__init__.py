"""Tensor operations of the detectors: voxels, BEV pooling, suppression."""
