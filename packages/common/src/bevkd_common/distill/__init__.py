"""The contract of a distillation method, its taps and its adapters."""
