"""AdaptFormer: a bottleneck beside every MLP, arXiv 2205.13535."""

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from recast_cli.engine.model.adapters.targets import blocks

SCALE = 0.1
"""Of the branch, Eq. 2 of AdaptFormer."""


class Branch(nn.Module):
    """s ReLU(x D + b) U + c of the block's stream x before its MLP, added to what the MLP adds: Eq. 2 and 3.

    Attributes:
        down: Linear (width, features), uniform as torch draws it, with zero biases.
        up: Linear (features, width), all zero at the start, so that nothing is added then.
    """

    def __init__(self, like: Tensor, width: int, generator: torch.Generator) -> None:
        super().__init__()
        features = len(like)
        # torch would draw a start from its own generator
        self.down = skip_init(nn.Linear, features, width, device=like.device, dtype=like.dtype)
        self.up = skip_init(nn.Linear, width, features, device=like.device, dtype=like.dtype)
        bound = features**-0.5
        with torch.no_grad():
            self.down.weight.copy_(torch.empty(width, features).uniform_(-bound, bound, generator=generator))
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)
        self.stream: Tensor | None = None

    def forward(self, stream: Tensor) -> Tensor:
        """What is added to the stream (..., features)."""
        return SCALE * self.up(self.down(stream).relu())

    def take(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Hook before the block's norm and MLP: whichever comes first has the stream."""
        if self.stream is None:
            self.stream = inputs[0]

    def give(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Hook after all that the MLP's output goes through before it is added to the stream."""
        assert self.stream is not None
        stream, self.stream = self.stream, None
        return output + self(stream).view_as(output)


def adaptformer(model: nn.Module, *, rank: int = 1, seed: int = 0) -> dict[str, nn.Module]:
    """A branch beside the MLP of every block. It is no change of a weight and cannot be merged.

    Args:
        model: As of `melo`.
        rank: Width of the bottleneck; the official code has 64, RECAST's paper 1.
        seed: Of the start.

    Returns:
        Name -> what was put there: `<block>.adaptformer`, with `down` and `up`.

    Raises:
        RecastError: The network has no transformer blocks.
    """
    generator = torch.Generator().manual_seed(seed)
    pieces: dict[str, nn.Module] = {}
    for name, block in blocks(model, "adaptformer").items():
        branch = Branch(block.norm2.weight, rank, generator)
        block.add_module("adaptformer", branch)
        block.norm2.register_forward_pre_hook(branch.take)
        block.mlp.register_forward_pre_hook(branch.take)
        block.drop_path2.register_forward_hook(branch.give)
        pieces[f"{name}.adaptformer"] = branch
    return pieces
