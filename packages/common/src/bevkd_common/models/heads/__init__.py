"""Detection heads: targets, losses, decoding."""
