"""Released checkpoints of other code bases: one key map per detector, and what they share."""
