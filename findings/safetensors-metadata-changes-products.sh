#!/usr/bin/env bash
# A word more in a safetensors file's metadata changes what torch computes with its tensors on a CPU.
#
# safetensors 0.8.0, torch 2.14.1, CPU (x86-64). One would guess: metadata is a comment; the same tensor gives the same
# product, bit for bit, whatever stands beside it, and two files with equal tensors are the same model.
# Seen: load_file maps the file and hands out views of it. The header is padded to 8 bytes only, so the length of the
# metadata moves every tensor through all eight remainders of 64 bytes, and MKL's matrix-vector product adds up in an
# order that depends on them: 2 different results of v @ y in 8 files of the same tensor. Loaded through torch.save they
# are one. So "bit-identical" needs the same header, or a copy of the tensors into memory of torch's own
# (alignment 64): .clone() gives 1 result again.
# Fails if the mapped tensors give one result, or the copies more than one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 safetensors==0.8.0 numpy 2>/dev/null
cat > "$folder/products.py" <<'PYTHON'
import sys

import torch
from safetensors.torch import load_file, save_file

folder = sys.argv[1]
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
weight, vector = torch.randn(192, 192, generator=generator), torch.randn(192, generator=generator)
remainders, mapped, copied = set(), set(), set()
for length in range(0, 64, 8):
    save_file({"weight": weight}, f"{folder}/a.safetensors", metadata={"note": "x" * length})
    loaded = load_file(f"{folder}/a.safetensors")["weight"]
    assert torch.equal(loaded, weight)
    remainders.add(loaded.data_ptr() % 64)
    mapped.add((loaded @ vector).numpy().tobytes())
    copied.add((loaded.clone() @ vector).numpy().tobytes())
print(f"remainders of 64 bytes: {sorted(remainders)}")
print(f"different products: {len(mapped)} of mapped tensors, {len(copied)} of copies")
sys.exit(not (len(mapped) > 1 and len(copied) == 1))
PYTHON
"$folder/venv/bin/python" "$folder/products.py" "$folder"
