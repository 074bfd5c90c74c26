"""A detector, a method, a data set and an evaluator that live outside the workspace."""
