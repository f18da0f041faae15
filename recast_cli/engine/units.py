"""Bytes, shares and counts as people write and read them."""

import re

FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str | int) -> int | None:
    """Bytes that a size means: `10GB`, `1.5 gb`, `500M`, `2GiB`; a number alone is bytes. None for anything else."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) *(?:([kmgt]i?)?b?)", str(text).strip().lower())
    return round(float(found[1]) * FACTORS[found[2] or ""]) if found else None


def show_bytes(count: int) -> str:
    """`1.5 MB`, in decimal units."""
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next((f"{count / scale:.1f} {unit}" for unit, scale in units if count >= scale), f"{count} B")


def percent(share: float | None) -> str:
    """`91.4 %` for 0.914; `-` where it is undefined."""
    return "-" if share is None else f"{100 * share:.1f} %"


def count_coefficients(coefficients: int, places: int) -> str:
    """`48 coefficients`, or `24 coefficients at 24 places, 48 numbers` where they were chosen."""
    chosen = f" at {places} places, {coefficients + places} numbers" if places else ""
    return f"{coefficients} coefficients{chosen}"
