"""A network over all images, batch by batch, without gradients."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from recast_cli.engine.architecture.modules import features
from recast_cli.engine.images.preprocessing import Preprocessing
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime import distributed
from recast_cli.engine.runtime.precision import precision


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
    preprocessing: Preprocessing,
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
        preprocessing: The network's.
        device: Where `function` lives.
        batch_size: B.
        progress: Called after every batch, with `text`.
        dtype: Of its products, as in `precision`.
        frozen: Whether the network will never be trained. Inference mode takes a twentieth less of Python's time than
            `no_grad`, which is what a graphics card waits for in a small network; but what a network remembers of it,
            as attention biases made from a table, cannot be kept for a backward pass.
    """
    # every process runs one batch at least, so that all know the shape of what they put together
    share = distributed.mine(pixels) if len(pixels) >= distributed.world() else pixels
    outputs = []
    with torch.inference_mode() if frozen else torch.no_grad():
        for part in batches(len(share), batch_size):
            with precision(device, dtype):
                outputs.append(function(normalise(take(share, part, device), preprocessing)).float())
            if progress:
                progress(part.stop * distributed.world(), len(pixels), text)
    rows = torch.cat(outputs)  # outside, so that it is a tensor like any other
    return (rows if share is pixels else distributed.gather(rows, len(pixels))).cpu()


def take_features(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Images -> features (B, head_hidden_size), as a function of the images alone."""
    return lambda images: features(model, images)
