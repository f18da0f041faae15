"""Fewer bits for the tensors of a base: how they are stored, how many bits each gets, how they are rounded."""
