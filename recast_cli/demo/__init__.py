"""The demo's own material: a small pretrained vision transformer and drawn image folders."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "vit"
"""A folder that `timm.create_model("local-dir:…", pretrained=True)` opens, by tests/benchmarks/pretrain_demo.py."""
