"""Figures and pages of measurements."""
