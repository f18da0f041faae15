"""Choose how many bits each tensor of a base gets, and round it."""
