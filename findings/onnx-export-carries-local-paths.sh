#!/usr/bin/env bash
# A network exported to ONNX carries the exporting computer's folder names and lines of source code.
#
# torch 2.14.1, onnxscript 0.7.2, onnx 1.23.2. One would guess: an ONNX file holds a graph, weights and names, so two
# people who export the same network have the same file, and nothing in it tells where it was made.
# Seen: the exporter of graphs (dynamo=True) writes the Python stack trace of every operator into the node's
# metadata_props, "pkg.torch.onnx.stack_trace": absolute paths and the text of the lines, comments included, of the
# model's own file. With verbose=False, too. Deleting metadata_props of all nodes takes them out.
# Fails if the file no longer holds the script's folder or its comment, or still does without metadata_props.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 onnxscript==0.7.2 onnx==1.23.2 2>/dev/null
mkdir "$folder/private_customer"
cat > "$folder/private_customer/network.py" <<'PYTHON'
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import onnx
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x).relu()  # the secret of our success


path = Path(sys.argv[1]) / "network.onnx"
torch.onnx.export(Network().eval(), (torch.zeros(1, 4),), path, dynamo=True, verbose=False, external_data=False)
WANTED = (b"private_customer", b"the secret of our success")
before = [text in path.read_bytes() for text in WANTED]
model = onnx.load(path)
keys = sorted({prop.key for node in model.graph.node for prop in node.metadata_props if "stack" in prop.key})
operators = [node.op_type for node in model.graph.node]
for node in model.graph.node:
    node.ClearField("metadata_props")
after = [text in model.SerializeToString() for text in WANTED]
print(f"operators {operators}, metadata {keys}")
print(f"folder name, source comment in the file: {before}; without metadata_props: {after}")
sys.exit(not (all(before) and not any(after)))
PYTHON
cd "$folder" && "$folder/venv/bin/python" "$folder/private_customer/network.py" "$folder" | grep -v "^\[torch.onnx\]"
exit "${PIPESTATUS[0]}"
