"""Tensor operations the detectors stand on: voxels, bird's-eye-view pooling, suppression."""
