"""The bevkd command."""
