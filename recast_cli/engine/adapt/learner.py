"""The network that a task is learned with: coefficients, an adapter, or both joined."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from recast_cli.engine.adapt.cross_fit import Judges
from recast_cli.engine.adapt.importance import squared_gradients
from recast_cli.engine.base.base import Base
from recast_cli.engine.base.chosen import spend
from recast_cli.engine.images.decode import Images
from recast_cli.engine.model.adapters.adapter import Adapter, Installed
from recast_cli.engine.model.attach import attach, coefficient_parameters, merge
from recast_cli.engine.model.entries import Entries
from recast_cli.engine.runtime.device import ready
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import BESIDE, RECIPES, AdaptOptions


@dataclass
class Learner:
    """A network with what is trained of it.

    Attributes:
        model: On its device, in eval mode, frozen but for what follows.
        vector: The base's own coefficients, which a task has where none are trained.
        coefficients: (K, n) of every module in layout order, the steps of chosen entries, or both; or what a method
            trains in their place.
        adapter: In the network, where there is one.
        base: Where a sparse adapter finds the source's weights; None once they were looked at.
        entries: Where the task chooses entries: whose steps the last of the coefficients are.
        alike: How many neighbours of the other coefficients move alike.
        judges: Of the training images, where these are cross-fitted.
    """

    model: nn.Module
    vector: Tensor
    coefficients: list[nn.Parameter]
    adapter: Installed | None = None
    base: Base | None = None
    entries: Entries | None = None
    alike: int = 1
    judges: Judges | None = None

    @property
    def device(self) -> torch.device:
        """Of the network."""
        return next(self.model.parameters()).device

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained beside the head."""
        own, judges = self.adapter.parameters.values() if self.adapter else (), self.judges.heads if self.judges else ()
        return [*self.coefficients, *own, *judges]

    def optimizers(self, head: Head, options: AdaptOptions) -> list[Optimizer]:
        """What moves `parameters` and a head, each at its learning rate.

        Chosen entries go down the gradient with momentum: in their units that is nearly the natural gradient, and where
        images do not agree it is short. Steps of AdamW are as long there as anywhere.
        """
        own = [*self.adapter.parameters.values()] if self.adapter else []
        heads = [*head, *(self.judges.heads if self.judges else ())]
        lr = options.lr or 0.0  # of entries; None where nothing has it
        rates = [
            (self.of_layout, BESIDE * lr if self.entries else lr),
            (own, options.adapter_lr),
            (heads, options.head_lr),
        ]
        groups = [{"params": parameters, "lr": rate} for parameters, rate in rates if parameters]
        decay, fused = RECIPES[options.recipe].weight_decay, self.device.type in ("cpu", "cuda")
        found: list[Optimizer] = [torch.optim.AdamW(groups, weight_decay=decay, fused=fused)]
        if self.entries:
            found.append(torch.optim.SGD([self.entries.steps], lr, momentum=0.9, nesterov=True))
        return found

    @property
    def of_layout(self) -> list[nn.Parameter]:
        """The coefficients that are no steps of entries."""
        return self.coefficients[:-1] if self.entries else self.coefficients

    def share(self, gradients: Sequence[Tensor]) -> None:
        """Let neighbouring coefficients that move alike have one gradient, in place: gradients of `parameters`.

        That of entries is cut to the length it may have: beside a nearly perfect probe a flipped image can have one
        that no image had when units were chosen, and such steps tore a task up.
        """
        for start in range(0, len(self.of_layout) if self.alike > 1 else 0, self.alike):
            neighbours = gradients[start : start + self.alike]
            total = torch.stack([*neighbours]).sum(0)
            for each in neighbours:
                each.copy_(total)
        if self.entries and self.entries.longest is not None:
            steps = gradients[len(self.of_layout)]
            steps.mul_((self.entries.longest / steps.norm().clamp_min(1e-30)).clamp_max(1))

    def choose(self, head: Head, images: Images, options: AdaptOptions) -> dict[str, Tensor]:
        """What of an adapter stays as it is; a sparse one first chooses the entries that matter most to a head."""

        def importance(names: list[str]) -> dict[str, Tensor]:
            assert self.base is not None
            plain = ready(merge(self.base, image_size=options.image_size), self.device)
            preprocessing = self.base.known_architecture().preprocessing
            return squared_gradients(plain, names, images, head, preprocessing, options.seed)

        if self.adapter is None:
            return {}
        self.adapter.choose(importance)
        return {name: tensor.cpu().clone() for name, tensor in self.adapter.fixed.items()}

    def learned(self, values: Sequence[Tensor]) -> tuple[Tensor, Adapter | None]:
        """The vector and the adapter of a task, from values of `parameters`."""
        count = len(self.coefficients)
        own = len(self.adapter.parameters) if self.adapter else 0
        adapter = self.adapter.learned([*values[count : count + own]]) if self.adapter else None
        if self.entries:
            count -= 1
        vector = torch.cat([value.reshape(-1) for value in values[:count]]) if count else self.vector
        if self.entries:
            moved = (vector - self.vector)[:: self.alike] if count else vector[:0]
            vector = torch.cat([moved, self.entries.values(values[count])])
        return vector, adapter


def make_learner(base: Base, options: AdaptOptions, device: torch.device) -> Learner:
    """The network of a base on its device, as it computes before anything is learned.

    Raises:
        RecastError: The network has no place for this adapter, or does not take images of this size.
    """
    budget = spend(options.choose, base.layout, options.dictionary == "all") if options.choose else None
    if options.coefficients and (budget is None or budget.of_layout):
        model = ready(attach(base, image_size=options.image_size), device)
        coefficients = coefficient_parameters(model, base)
    else:
        model, coefficients = ready(merge(base, image_size=options.image_size), device), []
    adapter, entries, alike = None, None, 1
    if budget:
        entries = Entries(model, base.entries, budget.entries)
        coefficients = [*coefficients, entries.steps]
        alike = base.layout.coefficients // (budget.of_layout or base.layout.coefficients)
    if options.adapter:
        given = {"rank": options.rank, "density": options.density, "seed": options.seed}
        adapter = Installed(model, options.adapter, given)
    return Learner(model, base.vector, coefficients, adapter, base, entries, alike)
