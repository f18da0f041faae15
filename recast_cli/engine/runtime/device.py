"""Where a network runs: which device, its form there, the settings of the process, compilation."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
from torch import Tensor, nn

from recast_cli.engine.errors import OptionError, RecastError, option
from recast_cli.engine.runtime import distributed

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
        index = int(os.environ.get("LOCAL_RANK", 0)) if distributed.started() > 1 else None
        if (index or 0) >= torch.cuda.device_count():
            what = f"torchrun started more processes than the {torch.cuda.device_count()} CUDA devices here"
            raise RecastError(what, f"Lower --nproc-per-node, or use {option('device', 'cpu')}.")
        return torch.device("cuda") if index is None else torch.device("cuda", index)
    if name is None:
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError("device", f"{name} is unknown", "Use cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        hint = f"Use {option('device', 'cpu')}, or leave it out."
        raise OptionError("device", f"{name}: no such CUDA device here", hint)
    if device.type not in ("cpu", "cuda") and not (device.type == "mps" and torch.backends.mps.is_available()):
        raise OptionError("device", f"{name} is not available here", "Use cpu or cuda.")
    return device


def ready(model: nn.Module, device: torch.device) -> nn.Module:
    """The network on its device, in the form that is fastest there.

    Networks of convolutions are laid out channels last, which is faster on CPUs and GPUs alike.
    """
    model = model.to(device)
    if device.type in ("cpu", "cuda") and len(convolutions(model)) > 2:  # more than a stem
        # tensor by tensor: `model.to(memory_format=...)` stumbles over banks, which have five dimensions
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        # a weight that is generated is not laid out so, and its convolution goes by its input
        convolutions(model)[0].register_forward_pre_hook(channels_last)
    return model


def tune_process(device: torch.device) -> None:
    """Set this process up for networks on a device, as a command does once its options are good.

    On CUDA what is left in float32 is multiplied in TF32; on a CPU memory that was once got is kept. No function of the
    engine does either to its caller's process, which may be another program's; workers of `compare` are its own.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    elif device.type == "cpu":
        keep_memory()


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


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many of torch's threads for one operation, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """The two-dimensional convolutions of a network."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def compile_function(function: Callable[[Tensor], Result]) -> Callable[[Tensor], Result]:
    """`torch.compile` of a function of images; what keeps it from compiling is a RecastError."""
    fast = torch.compile(function)

    def run(images: Tensor) -> Result:
        try:
            return fast(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).split("\n")[0].split(" Set TORCH")[0]
            hint = f"Leave out {option('compiled')}."
            raise RecastError(f"The network cannot be compiled here: {reason}", hint) from None

    return run
