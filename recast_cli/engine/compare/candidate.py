"""Put a method of a comparison into a network: all methods become parameters that the loop of `adapt` trains."""

import torch
from torch import nn

from recast_cli.engine.adapt.learner import Learner, make_learner
from recast_cli.engine.architecture.modules import features
from recast_cli.engine.base.base import Base
from recast_cli.engine.compare.artifacts import CannotRun, applying
from recast_cli.engine.compare.baselines.registry import METHODS, options_of
from recast_cli.engine.compare.spec import OWN_KINDS, Method, Plan
from recast_cli.engine.errors import RecastError, suggest
from recast_cli.engine.images.preprocessing import Preprocessing
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.model.attach import merge
from recast_cli.engine.runtime.device import ready
from recast_cli.engine.task.options import AdaptOptions


def prepare(method: Method, base: Base, options: AdaptOptions, device: torch.device) -> Learner:
    """The network with a method in it, frozen but for the parameters that come with it.

    Raises:
        CannotRun: The method cannot be applied to this network.
    """
    with applying():
        if method.kind in OWN_KINDS:
            return make_learner(base, options, device)
        model = merge(base, image_size=options.image_size)
        function = METHODS[method.kind]
        seeded = {"seed": options.seed} if "seed" in options_of(function) else {}
        parameters = list(function(model, **seeded, **method.options))
    model = ready(model, device)
    preprocessing = base.known_architecture().preprocessing
    return Learner(model, base.vector, used(model, parameters, preprocessing.at(options.image_size)))


def check_methods(plan: Plan) -> None:
    """Raise RecastError for an option that a method does not have."""
    for name, method in plan.methods.items():
        if method.kind not in OWN_KINDS:
            known = options_of(METHODS[method.kind])
            for key in method.options:
                if key not in known:
                    raise RecastError(f"{plan.path}: unknown key 'methods.{name}.{key}'", suggest(key, known))


def used(model: nn.Module, parameters: list[nn.Parameter], preprocessing: Preprocessing) -> list[nn.Parameter]:
    """The parameters that the features depend on: the source's own classifier is neither trained nor counted.

    Raises:
        CannotRun: There is none.
    """
    device = parameters[0].device
    image = normalise(torch.zeros(1, 3, *preprocessing.input_size[1:], dtype=torch.uint8, device=device), preprocessing)
    total = features(model, image).sum()
    known = []
    if total.requires_grad:
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        known = [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    if not known:  # as of LoRA on timm's BEiT, which reads the weights of its modules past them
        raise CannotRun("the network does not use what the method changed", "Choose other modules.")
    return known
