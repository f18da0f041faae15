"""Options that several commands share: sizes as people write them."""

import pytest

from recast_cli.cli.options import parse_size
from recast_cli.engine.errors import RecastError
from recast_cli.engine.images.cache import DEFAULT_CACHE_SIZE

SIZES = {"0": 0, "123": 123, "7B": 7, "1.5k": 1500, "500 mb": 500_000_000, "10GB": 10**10, " .5tb ": 5 * 10**11}


@pytest.mark.parametrize(("text", "size"), [*SIZES.items(), ("2GiB", 2**31), (0, 0), ("10GB", DEFAULT_CACHE_SIZE)])
def test_sizes_for_people(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "ten", "1e9", "nan", "inf", "10XB", "1.2.3", "10 GB more", True])
def test_what_is_no_size(text):
    with pytest.raises(RecastError, match=r"--cache-size .*is not a size"):
        parse_size(text)
