"""The base: its tensors, Equation 1, and its file."""
