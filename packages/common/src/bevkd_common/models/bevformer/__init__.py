"""BEVFormer: queries of the ground that look at an earlier map and at the images."""
