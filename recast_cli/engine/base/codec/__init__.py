"""How one tensor of a base is stored in few bits."""
