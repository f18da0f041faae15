"""ONNX: one file that runs without PyTorch, with how its images are prepared inside and beside it."""

import contextlib
import importlib
import inspect
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recast_cli.engine.architecture.timm_config import quiet
from recast_cli.engine.errors import OptionError, RecastError, one_line, option
from recast_cli.engine.export.merged import Merged
from recast_cli.engine.storage.atomic import write_text

NEEDED = ("onnx", "onnxruntime", "onnxscript")
OTHERS = f"Use {option('format', 'timm')} or safetensors."
INPUT, OUTPUT, BATCH_AXIS = "images", "logits", "batch"
LARGEST = 2**31 - 2**20
"""Bytes of all tensors that fit into one ONNX file: protobuf counts them in 31 bits."""


def check_extra() -> None:
    """Raise RecastError where a package that ONNX needs is not installed."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            raise OptionError("format", f"onnx needs {name}", "Run pip install 'recast-cli[onnx]'.") from None


def write_onnx(merged: Merged, path: Path, notes: Path) -> float:
    """Write the network for batches of any size, and its notes; run it with onnxruntime.

    PyTorch's exporter of graphs comes first, then its older one that traces: each takes networks that the other does
    not, and what decides is that the file gives the network's logits for one image and for several. The notes are JSON
    with size, mean, std, interpolation, crop and classes. The model's metadata hold it, too.

    Returns:
        The largest difference of a logit.

    Raises:
        RecastError: It is too large, neither exporter can write it, or what was written is not the network.
    """
    size = sum(tensor.nbytes for tensor in merged.network.state_dict().values())
    if size > LARGEST:
        what = f"{merged.title} has {size / 1e9:.1f} GB of weights, and an ONNX file takes 2 GB"
        raise RecastError(what, f"Use {option('format', 'timm')}.")
    about = json.dumps(preparation(merged), indent=2, ensure_ascii=False) + "\n"
    refusal: RecastError | None = None
    for exporter in (of_graph, of_trace):
        try:
            with silent(), refusing():
                content = exporter(merged.network, merged.images)
            path.write_bytes(with_notes(content, about))
            difference = run(merged, path)
        except RecastError as error:
            refusal = refusal or error
            continue
        write_text(notes, about)
        return difference
    assert refusal is not None
    raise refusal


def preparation(merged: Merged) -> dict[str, Any]:
    """How images are made ready, in timm's words, and what comes out."""
    return {
        "task": merged.task.name if merged.task else None,
        "base_id": merged.base.base_id,
        "input": INPUT,
        "output": OUTPUT,
        **vars(merged.preprocessing),
        "classes": merged.task.classes if merged.task else None,
    }


def of_graph(network: nn.Module, images: Tensor) -> bytes:
    """By `torch.export`. Raises RecastError where this version of torch cannot do it."""
    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        raise RecastError(f"torch {torch.__version__} has no such exporter", "Upgrade torch.")
    found: Any = torch.onnx.export(
        network,
        (images,),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim(BATCH_AXIS)},),
        verbose=False,
    )
    return found.model_proto.SerializeToString()


def of_trace(network: nn.Module, images: Tensor) -> bytes:
    """By tracing."""
    stream: Any = io.BytesIO()  # the newer exporter takes no stream, so the types name none
    options: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    torch.onnx.export(
        network,
        (images,),
        stream,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: {0: BATCH_AXIS}, OUTPUT: {0: BATCH_AXIS}},
        **options,
    )
    return stream.getvalue()


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Errors of an exporter, which have no common class, become a RecastError that names the operator."""
    try:
        yield
    except (OSError, MemoryError, RecastError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter wraps the reason in its own steps
            cause = cause.__cause__
        raise RecastError(f"ONNX has nothing for a part of this network: {one_line(cause)}", OTHERS) from None


def with_notes(content: bytes, about: str) -> bytes:
    """An ONNX model with `about` as its metadata `recast`.

    What PyTorch's exporter notes at every node goes: stack traces with the paths of this computer.
    """
    import onnx

    model = onnx.load_from_string(content)
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        node.ClearField("metadata_props")
    onnx.helper.set_model_props(model, {"recast": about})
    return bytes(model.SerializeToString())


def run(merged: Merged, path: Path) -> float:
    """Run the file on one image and on several: the largest difference of a logit to the merged network."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        parts = [merged.images[:1], merged.images[1:]]
        found = torch.cat([torch.from_numpy(session.run([OUTPUT], {INPUT: part.numpy()})[0]) for part in parts])
    except Exception as error:  # onnxruntime has a class of its own for every code, and no common one
        raise RecastError(f"onnxruntime does not run {merged.title}: {one_line(error)}", OTHERS) from None
    return merged.difference(found, f"What onnxruntime runs of {merged.title}")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep the exporters' remarks about the network's own code off the user's terminal."""
    loggers = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    with quiet(*loggers), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
