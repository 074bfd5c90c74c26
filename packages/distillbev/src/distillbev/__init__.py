"""DistillBEV (ICCV 2023): LiDAR teachers for camera-only bird's-eye-view detectors."""
