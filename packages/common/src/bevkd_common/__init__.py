"""Everything the distillation methods share: geometry, data, detectors, engine, evaluation, report."""
