"""Structured knowledge distillation for multi-view 3D detection."""
