"""PointDistiller: smaller LiDAR detectors through local and reweighted distillation."""
