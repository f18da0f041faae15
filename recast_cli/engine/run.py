"""Run a network over decoded images: device, batches and augmentation."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from recast_cli.engine import ranks
from recast_cli.engine.architecture.modules import features
from recast_cli.engine.errors import RecastError
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.precision import precision
from recast_cli.engine.progress import Progress

Result = TypeVar("Result")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""


def choose_device(name: str | None = None) -> torch.device:
    """The device called `name` (cpu, cuda, cuda:1, mps); default: CUDA where it is, else the CPU.

    Of several processes that torchrun started, each gets a CUDA device of its own.

    Raises:
        RecastError: No such device, or not on this machine.
    """
    if name in (None, "cuda") and torch.cuda.is_available():
        index = int(os.environ.get("LOCAL_RANK", 0)) if ranks.started() > 1 else None
        if (index or 0) >= torch.cuda.device_count():
            raise RecastError(
                f"torchrun started more processes than the {torch.cuda.device_count()} CUDA devices here",
                "Lower --nproc-per-node, or use --device cpu.",
            )
        return torch.device("cuda") if index is None else torch.device("cuda", index)
    if name is None:
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecastError(f"--device {name} is unknown", "Use cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise RecastError(f"--device {name}: no such CUDA device here", "Use --device cpu, or leave it out.")
    if device.type not in ("cpu", "cuda") and not (device.type == "mps" and torch.backends.mps.is_available()):
        raise RecastError(f"--device {name} is not available here", "Use cpu or cuda.")
    return device


def ready(model: nn.Module, device: torch.device) -> nn.Module:
    """The network on its device, in the form that is fastest there.

    Networks of convolutions are laid out channels last, which is faster on CPUs and GPUs alike. On CUDA what is left
    in float32 is multiplied in TF32; a CPU keeps the memory it has once got. Both hold for the whole process.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    elif device.type == "cpu":
        keep_memory()
    model = model.to(device)
    if device.type in ("cpu", "cuda") and len(convolutions(model)) > 2:  # more than a stem
        # tensor by tensor: `model.to(memory_format=...)` stumbles over banks, which have five dimensions
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        # a weight that is generated is not laid out so, and its convolution goes by its input
        convolutions(model)[0].register_forward_pre_hook(channels_last)
    return model


def channels_last(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """The input of a network's first convolution, laid out as the rest of the network then is."""
    return (inputs[0].contiguous(memory_format=torch.channels_last),)


def keep_memory() -> None:
    """Let the C library keep memory that is freed, for the next tensor, where it is glibc.

    It would give large blocks back to the system, and the system would clear their pages before it hands them out
    again: with the activations of every step, that took a tenth of a training step of ViT-Tiny in bfloat16. What the
    process keeps is never more than it once needed. See mallopt(3): -1 disables trimming, 0 the use of mmap.
    """
    with suppress(OSError, AttributeError):  # another system or C library
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # others may have a mallopt of another meaning
        library.mallopt(M_TRIM_THRESHOLD, -1)
        library.mallopt(M_MMAP_MAX, 0)


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """The two-dimensional convolutions of a network."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def compiled(function: Callable[[Tensor], Result]) -> Callable[[Tensor], Result]:
    """`torch.compile` of a function of images; what keeps it from compiling is a RecastError."""
    fast = torch.compile(function)

    def run(images: Tensor) -> Result:
        try:
            return fast(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).split("\n")[0].split(" Set TORCH")[0]
            raise RecastError(f"The network cannot be compiled here: {reason}", "Leave out --compile.") from None

    return run


def resident(pixels: Tensor, device: torch.device) -> Tensor:
    """The images on a CUDA device where they take less than a third of its free memory, else where they are."""
    if device.type == "cuda" and pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 3:
        return pixels.to(device)
    return pixels


def take(pixels: Tensor, rows: Tensor | slice, device: torch.device) -> Tensor:
    """Some of the images, on `device`, without making the CPU wait for it; rows lie where the images do."""
    chosen = pixels[rows]
    if device.type == "cuda" and chosen.device.type == "cpu":
        chosen = chosen.pin_memory()
    return chosen.to(device, non_blocking=True)


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices that cover `count` rows, `size` at a time."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def infer(
    function: Callable[[Tensor], Tensor],
    pixels: Tensor,
    data: dict[str, Any],
    device: torch.device,
    batch_size: int = 64,
    progress: Progress | None = None,
    text: str = "",
    dtype: torch.dtype | None = None,
    frozen: bool = False,
) -> Tensor:
    """`function` of all normalised images, batch by batch: (N, outputs) float32 on the CPU.

    Several processes share the images, and all get the whole result.

    Args:
        function: A network, or its features: (B, 3, H, W) -> (B, outputs).
        pixels: (N, 3, H, W) uint8.
        data: The network's data config.
        device: Where `function` lives.
        batch_size: B.
        progress: Called after every batch, with `text`.
        dtype: Of its products, as in `precision`.
        frozen: Whether the network will never be trained. Inference mode takes a twentieth less of Python's time than
            `no_grad`, which is what a graphics card waits for in a small network; but what a network remembers of it,
            as attention biases made from a table, cannot be kept for a backward pass.
    """
    # every process runs one batch at least, so that all know the shape of what they put together
    share = ranks.mine(pixels) if len(pixels) >= ranks.world() else pixels
    outputs = []
    with torch.inference_mode() if frozen else torch.no_grad():
        for part in batches(len(share), batch_size):
            with precision(device, dtype):
                outputs.append(function(normalise(take(share, part, device), data)).float())
            if progress:
                progress(part.stop * ranks.world(), len(pixels), text)
    rows = torch.cat(outputs)  # outside, so that it is a tensor like any other
    return (rows if share is pixels else ranks.gather(rows, len(pixels))).cpu()


def take_features(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Images -> features (B, head_hidden_size), as a function of the images alone."""
    return lambda images: features(model, images)
