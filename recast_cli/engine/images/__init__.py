"""A folder of images becomes uint8 batches: list, split, fetch, decode, cache, transform."""
