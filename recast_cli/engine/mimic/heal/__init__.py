"""Train templates until the base says what its source says, on unlabelled images."""
