"""Adapters: what a task may learn beside the coefficients, one file a method."""
