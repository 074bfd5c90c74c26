"""Tasks, the training loop, checkpoints, the frozen teacher."""
