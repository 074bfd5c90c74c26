"""BEVFormer: BEV queries that attend to an earlier BEV map and to the images."""
