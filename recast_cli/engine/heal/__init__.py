"""Fewer templates than layers: fit templates and coefficients to what pictures make of them, then end to end."""
