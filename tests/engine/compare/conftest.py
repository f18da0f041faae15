"""What all tests of comparisons have."""

import pytest


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch):
    """To collect garbage before each run takes longer than so small a run itself."""
    monkeypatch.setattr("gc.collect", lambda: 0)
