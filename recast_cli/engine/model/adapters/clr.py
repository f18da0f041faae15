"""CLR: a depthwise convolution after every convolution, arXiv 2307.11386."""

from torch import Tensor, nn

from recast_cli.engine.model.adapters.targets import convolutions, weight_of


class Ghost(nn.Conv2d):
    """A 3x3 convolution of each channel by itself, the identity at the start; `weight` is (channels, 1, 3, 3)."""

    def __init__(self, like: Tensor) -> None:
        channels = len(like)
        super().__init__(
            channels, channels, 3, padding=1, groups=channels, bias=False, device=like.device, dtype=like.dtype
        )

    def reset_parameters(self) -> None:
        """The start."""
        nn.init.dirac_(self.weight, groups=self.groups)

    def after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Hook after the convolution."""
        return self(output)


def clr(model: nn.Module) -> dict[str, nn.Module]:
    """Channel-wise lightweight reprogramming. It has borders of its own, so it cannot be merged.

    Returns:
        Name -> what was put there: `<convolution>.ghost`, with `weight`.

    Raises:
        RecastError: The network has no convolutions beyond a stem.
    """
    pieces: dict[str, nn.Module] = {}
    for name in convolutions(model, "clr"):
        convolution = model.get_submodule(name)
        ghost = Ghost(weight_of(model, name))
        convolution.add_module("ghost", ghost)
        convolution.register_forward_hook(ghost.after)
        pieces[f"{name}.ghost"] = ghost
    return pieces
