"""UniDistill (CVPR 2023): cross-modality distillation in bird's-eye view."""
