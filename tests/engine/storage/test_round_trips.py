"""What is written is what is read, for any tensors."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from recast_cli.engine.storage.header import read_header, read_metadata
from recast_cli.engine.storage.tensors import read_tensors
from recast_cli.engine.storage.writer import write_tensors

DTYPES = [np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_]
anything = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.dictionaries(names, anything, max_size=4), st.dictionaries(st.text(max_size=6), values, max_size=3))
def test_tensors_and_metadata(tensors, extra):
    given_tensors = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    metadata = extra | {"kind": "base", "format": 1}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write_tensors(path, given_tensors, metadata)
        found = read_tensors(path)
        assert read_metadata(path) == metadata
        assert read_header(path).keys() - {"__metadata__"} == tensors.keys()
    assert found.keys() == given_tensors.keys()
    for name, tensor in given_tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes()
