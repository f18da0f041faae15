"""Merged networks for other programs, opened again before they count."""
