"""Updates that are sparse under a transform, as PEFT implements them; names as in `inject`, else PEFT's."""

from torch import nn

from recast_cli.engine.compare.baselines.peft import inject
from recast_cli.engine.compare.baselines.targets import QKV, at_least_one, at_most, choose_linear


def fourierft(
    model: nn.Module, *, n_frequency: int = 4, scaling: float = 300.0, modules: str = QKV, seed: int = 0
) -> list[nn.Parameter]:
    """FourierFT, arXiv 2405.03003: the update of a weight is the inverse Fourier transform of a sparse spectrum.

    The spectrum starts at zero, as PEFT's init_weights=True has it; the paper draws it from N(0, 1), which would not
    start as the given network.

    Args:
        n_frequency: Floats a module; all modules of one shape have the same frequencies.
        scaling: Factor of the update; 300 is PEFT's advice for vision transformers.
        seed: Of the choice of frequencies.

    Returns:
        A spectrum (n_frequency,) of every module.
    """
    return spectral(model, "FourierFTConfig", "fourierft", n_frequency, scaling, modules, seed)


def waveft(
    model: nn.Module, *, n_frequency: int = 4, scaling: float = 25.0, modules: str = QKV, seed: int = 0
) -> list[nn.Parameter]:
    """WaveFT, arXiv 2505.12532: as FourierFT, but for the inverse transform of Haar wavelets; starts at zero.

    Scaling 25 is PEFT's default. Options and result as of `fourierft`.
    """
    return spectral(model, "WaveFTConfig", "waveft", n_frequency, scaling, modules, seed)


def spectral(
    model: nn.Module, config: str, method: str, n_frequency: int, scaling: float, modules: str, seed: int
) -> list[nn.Parameter]:
    """FourierFT or WaveFT, which have the same options."""
    at_least_one(n_frequency=n_frequency)
    targets = choose_linear(model, modules, method)
    for name, module in targets.items():
        at_most("n_frequency", n_frequency, module.weight.numel(), name)
    options = {"n_frequency": n_frequency, "scaling": float(scaling), "init_weights": True, "random_loc_seed": seed}
    return inject(model, config, targets, seed, **options)
