"""Boxes, cameras, rigid transforms and overlaps: pure functions, no I/O, no modules."""
