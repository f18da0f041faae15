"""End to end: the base's templates, coefficients and vectors trained to give the source's outputs on images."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recast_cli.engine.architecture.modules import listen
from recast_cli.engine.base.base import Base
from recast_cli.engine.images.transforms import augment, draw_crops, normalise
from recast_cli.engine.layout.layout import coefficient_key, template_key
from recast_cli.engine.mimic.heal.state import LEAST_LR, HealingState, next_state
from recast_cli.engine.model.attach import Mixture, attach
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime.device import ready
from recast_cli.engine.runtime.inference import batches, infer, take
from recast_cli.engine.runtime.precision import precision, quick_attention, training_precision

Judge = Callable[[nn.Module], float]
"""The `distance` of a network from the source on images that it was not trained on."""
BATCH_SIZE = 16
"""Images a step."""
EPOCHS = 60
"""At most."""


def distil(
    teacher: nn.Module,
    base: Base,
    pixels: Tensor,
    state: HealingState | None,
    judge: Judge,
    *,
    keep: Callable[[HealingState], None],
    progress: Progress | None = None,
) -> HealingState:
    """Train what is shared, and all vectors, until images that were held out see no better result.

    The loss is the divergence of the base's decisions from the source's (Hinton et al. 2015, arXiv:1503.02531; of
    features their relative squared distance, where there is no classifier), plus the mean relative squared distance of
    the outputs of all shared modules. Trained are the templates and coefficients of banks with fewer templates than
    layers, and the vectors of the network: biases, norms. The classifier stays.

    Args:
        teacher: The source, frozen, on its device.
        base: As of `heal_layers`.
        pixels: (N, 3, H, W) uint8.
        state: Of a run that goes on; None for one that starts from `base`.
        judge: Says which epoch is the best.
        keep: Called with the state at the start and after every epoch.
        progress: Called after every step.
    """
    device = next(teacher.parameters()).device
    student = ready(attach(base), device)
    trained = trainable(student, base)
    if state is None:
        values = {name: tensor.detach().cpu().clone() for name, tensor in trained.items()}
        state = HealingState(values, values, [judge(student)])
        keep(state)
    dtype = training_precision(student, device)
    shared = tuple(name for bank in base.layout.banks if not bank.exact for name in bank.modules)
    features: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}
    listen(student, shared, features)
    listen(teacher, shared, targets)
    architecture = base.known_architecture()
    preprocessing, classifies = architecture.preprocessing, architecture.classifies

    def loss_of(images: Tensor) -> Tensor:
        with precision(device, dtype):
            with torch.no_grad():
                wanted = teacher(images)
            loss = distance(student(images), wanted, classifies)
        return loss + torch.stack([relative(features[name], targets[name]) for name in features]).mean()

    with quick_attention(student, device, dtype), quick_attention(teacher, device, dtype):
        while state.rate >= LEAST_LR and len(state.losses) <= EPOCHS:
            number, optimizer = len(state.losses), begin(trained, state)
            for step, (rows, crops) in enumerate(shuffled(len(pixels), number)):
                images = augment(normalise(take(pixels, rows, device), preprocessing), crops.to(device))
                gradients = torch.autograd.grad(loss_of(images), list(trained.values()), allow_unused=True)
                for tensor, gradient in zip(trained.values(), gradients, strict=True):
                    tensor.grad = gradient
                optimizer.step()
                if progress:
                    done = (number - 1) * len(pixels) + step * BATCH_SIZE + len(rows)
                    text = f"healing, epoch {number}, divergence {state.losses[state.best_epoch]:.3f}"
                    progress(done, EPOCHS * len(pixels), text)
            state = next_state(state, trained, judge(student), optimizer)
            keep(state)
    return state


def judge_by(teacher: nn.Module, pixels: Tensor, base: Base) -> Judge:
    """The judge that asks the source once for its outputs on pixels (N, 3, H, W)."""
    device, architecture = next(teacher.parameters()).device, base.known_architecture()
    preprocessing, classifies = architecture.preprocessing, architecture.classifies
    wanted = infer(teacher, pixels, preprocessing, device, BATCH_SIZE)
    return lambda model: float(distance(infer(model, pixels, preprocessing, device, BATCH_SIZE), wanted, classifies))


def trainable(model: nn.Module, base: Base) -> dict[str, Tensor]:
    """By name in the base: what of an attached model is trained; all of it wants gradients from here on."""
    found: dict[str, Tensor] = {}
    for bank in base.layout.banks:
        if bank.exact:
            continue
        for name in bank.modules:
            found[coefficient_key(name)] = model.get_parameter(f"{name}.parametrizations.weight.original")
            mixture = cast(Mixture, model.get_submodule(f"{name}.parametrizations.weight")[0])  # type: ignore[index]
        holder = mixture.templates
        holder.tensor = holder.get_buffer("tensor").clone()  # on a CPU it is the base's own
        found[template_key(bank)] = holder.tensor
    heads = tuple(f"{head}." for head in base.known_architecture().classifiers)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name in base.tensors and not name.startswith(heads):
            found[name] = parameter
    model.requires_grad_(False)
    for tensor in found.values():
        tensor.requires_grad_(True)
    return found


def distance(found: Tensor, wanted: Tensor, classifies: bool) -> Tensor:
    """KL(wanted | found) of decisions in nats, mean over images; of features the relative squared distance."""
    found, wanted = found.float(), wanted.float()
    if not classifies:
        return relative(found, wanted)
    return F.kl_div(found.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean")


def relative(found: Tensor, wanted: Tensor) -> Tensor:
    """|found - wanted|^2 / |wanted|^2."""
    found, wanted = found.float(), wanted.float()
    return (found - wanted).square().sum() / wanted.square().sum().clamp_min(torch.finfo(torch.float32).tiny)


def shuffled(count: int, epoch: int) -> list[tuple[Tensor, Tensor]]:
    """Rows and crops of every step of an epoch, the same for a run that goes on as for one that was not killed."""
    generator = torch.Generator().manual_seed(epoch)
    order, crops = torch.randperm(count, generator=generator), draw_crops(count, generator)
    return [(order[part], crops[part]) for part in batches(count, BATCH_SIZE)]


def begin(trained: dict[str, Tensor], state: HealingState) -> torch.optim.Optimizer:
    """The optimizer at the state's rate, and its values in place."""
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(state.values[name])
    optimizer = torch.optim.AdamW(trained.values(), lr=state.rate, weight_decay=0.0)
    if state.optimizer is not None:
        optimizer.load_state_dict(state.optimizer)
    return optimizer
