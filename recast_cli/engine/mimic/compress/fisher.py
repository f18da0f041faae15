"""How much each value of a base matters to the source's decisions, from unlabelled images: Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recast_cli.engine.base.base import Base
from recast_cli.engine.images.transforms import augment, draw_crops, normalise
from recast_cli.engine.layout.layout import template_key
from recast_cli.engine.mimic.compress.matrices import Shape
from recast_cli.engine.model.attach import merge
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime.device import choose_device, ready

VIEWS = 4
"""Of each image: as it is, and flipped and cropped at random. A few hundred images are few for as many columns."""
DAMPING = 0.3
"""Added to the diagonal of products of columns, as a share of its mean, for what so few images do not tell."""
ROW_DAMPING = 0.85
"""The same of rows: that they go with columns is an assumption, and only half of what it promises comes true."""
TURNS = 8
"""In which rows are rounded: what one loses is made up for in later ones."""
FLOOR = 0.05
"""Of the network's mean curvature a value: what a tensor gets that no decision was seen to depend on."""
WIDEST = 8192
"""Rows or columns up to which products of two are kept."""
BLOCK = 192
"""Rows whose products with those before them are made at a time."""


class Turn(NamedTuple):
    """Rows of matrices that are rounded together.

    Attributes:
        rows: Their places.
        later: Those of the rows that are rounded after them.
        counts: (n, rows here): what an error of each counts once later rows have made up for it as they can.
        shares: (n, later, rows here): how much of an error is taken from each later row.
    """

    rows: Tensor
    later: Tensor
    counts: Tensor
    shares: Tensor


@dataclass(frozen=True)
class Curvature:
    """Of matrices (n, rows, columns): values (i, k) and (j, l) count rows[i, j] * columns[k, l] together.

    Attributes:
        rows: (n, rows, rows), positive definite, of trace 1; of a matrix of more than `WIDEST` rows the diagonal alone,
            (n, rows).
        columns: (n, columns, columns), positive definite; of a matrix of more than `WIDEST` columns the diagonal alone,
            (n, columns).
    """

    rows: Tensor
    columns: Tensor

    @property
    def whole(self) -> bool:
        """Whether there are products of different columns."""
        return self.columns.ndim == 3

    def sorted(self, order: Tensor) -> Curvature:
        """The same of columns in another order, (n, columns)."""
        columns = torch.stack([each[place][:, place] for each, place in zip(self.columns, order, strict=True)])
        return Curvature(self.rows, columns)

    @cached_property
    def root(self) -> Tensor:
        """U (n, columns, columns), upper triangular, of the columns' inverse U^T U; not without products of two."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.columns.double()))
        return torch.linalg.cholesky(inverse, upper=True).float()

    @cached_property
    def turns(self) -> list[Turn]:
        """Every so many rows a turn, so that neighbours come one after the other: the Schur complements of `rows`."""
        count = self.rows.shape[1]
        if self.rows.ndim == 2:
            return [
                Turn(torch.arange(count), torch.arange(0), self.rows, self.rows.new_empty(len(self.rows), 0, count))
            ]
        groups = [torch.arange(first, count, TURNS) for first in range(min(TURNS, count))]
        found, form = [], self.rows.double()
        for number, now in enumerate(groups):
            later = torch.cat([*groups[number + 1 :], torch.arange(0)])
            between = form[:, later][..., now]
            shares = torch.linalg.solve(form[:, later][..., later], between)
            left = form[:, now][..., now] - between.mT @ shares
            found.append(Turn(now, later, squares(left).float(), shares.float()))
        return found


def curvatures(
    base: Base,
    pixels: Tensor,
    shapes: Mapping[str, Shape],
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Curvature]:
    """The Fisher information of some tensors of a base, as products of rows and columns.

    For small errors d of all values, KL(source | base) is 1/2 d^T F d with F the mean over images of
    J^T (diag(p) - p p^T) J, J the derivatives of the logits and p the source's own probabilities (Amari 1998,
    doi:10.1162/089976698300017746), which is E[g g^T] for the gradients g of `drawn_loss`. Of the gradient G of one
    matrix, E[G G^T] and E[G^T G] are kept, whose Kronecker product stands for it (YAQA, Tseng et al. 2025,
    arXiv:2505.22988); what is between two matrices is left out. Without a classifier the same stands for squared
    distances of features.

    The base is without codes, of a known architecture, and pixels are (N, 3, H, W) uint8; `shapes` names the tensors,
    each seen as so many matrices. `progress` is called after every image.
    """
    architecture = base.known_architecture()
    where = choose_device(device)
    model = ready(merge(base), where)
    gradients = {name: gradient_of(base, model, name) for name in shapes}
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    generator = torch.Generator().manual_seed(0)
    for number, each in enumerate(pixels):
        image = normalise(each[None].to(where), architecture.preprocessing)
        for view in range(VIEWS):
            seen = augment(image, draw_crops(1, generator).to(where)) if view else image
            model.zero_grad()
            with torch.enable_grad():
                drawn_loss(model(seen), architecture.classifies, generator).backward()
            for name, shape in shapes.items():
                add(sums, name, gradients[name]().reshape(shape))
        if progress:
            progress(number + 1, len(pixels), "weighing tensors")
    return averaged(sums, VIEWS * len(pixels))


def gradient_of(base: Base, model: nn.Module, name: str) -> Callable[[], Tensor]:
    """What reads the gradient of a tensor of the base from a merged model.

    Of what is stored of a bank (bank.stored, *shape) that is by Eq. 1 each module's times what it takes. The two
    coefficients of a cut kernel are equal in a base, so the kernel is taken as a whole.
    """
    bank = next((bank for bank in base.layout.banks if template_key(bank) == name), None)
    names = [f"{module}.weight" for module in bank.modules] if bank else [name]
    weights = [model.get_parameter(each).requires_grad_(True) for each in names]
    mixing = [base.coefficients(module).mean(0)[: bank.stored] for module in bank.modules] if bank else []
    taken = torch.stack(mixing).to(weights[0]) if bank else None

    def read() -> Tensor:
        found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        return found[0] if taken is None else torch.tensordot(taken.T, torch.stack(found), dims=1)

    return read


def drawn_loss(found: Tensor, classifies: bool, generator: torch.Generator) -> Tensor:
    """A loss, summed over images, whose gradients' outer products have the Fisher information for a mean.

    That is the product of logits with a root of diag(p) - p p^T times random signs: the same mean as with gradients of
    -log p(y), y drawn from p, but where the source is sure those are next to nothing, and now and then enormous. Where
    nothing `classifies`, it is the product of features with random signs. `found` are logits (batch, classes) or
    features (batch, features).
    """
    signs = 2.0 * torch.randint(0, 2, found.shape, generator=generator).to(found.device) - 1
    if not classifies:
        return (found.float() * signs).sum()
    probabilities = found.detach().float().softmax(1)
    parts = probabilities.sqrt() * signs
    return (found.float() * (parts - probabilities * parts.sum(1, keepdim=True))).sum()


def add(sums: dict[str, tuple[Tensor, Tensor]], name: str, gradient: Tensor) -> None:
    """Add one gradient (n, rows, columns) to the products of rows and to those of columns."""
    views = gradient, gradient.mT
    if name not in sums:
        sizes = ((each.shape[1],) * (2 if each.shape[1] <= WIDEST else 1) for each in views)
        rows, columns = (gradient.new_zeros(len(gradient), *size) for size in sizes)
        sums[name] = rows, columns
    for total, view in zip(sums[name], views, strict=True):
        add_products(total, view)


def add_products(total: Tensor, gradient: Tensor) -> None:
    """Add the products of two rows of a gradient (n, rows, columns) to (n, rows, rows), up to the diagonal's blocks.

    What is beyond them is the same once more. Of more than `WIDEST` rows their squares alone are added, to (n, rows).
    """
    if total.ndim == 2:
        total += gradient.square().sum(2)
        return
    for first in range(0, gradient.shape[1], BLOCK):
        last = first + BLOCK
        total[:, first:last, :last].baddbmm_(gradient[:, first:last], gradient[:, :last].mT)


def mirrored(products: Tensor) -> Tensor:
    """Sums of `add_products`, (n, rows, rows), with what is beyond the diagonal; squares, (n, rows), as they are."""
    return products.tril() + products.tril(-1).mT if products.ndim == 3 else products


def averaged(sums: Mapping[str, tuple[Tensor, Tensor]], count: int) -> dict[str, Curvature]:
    """Curvatures from sums over so many gradients, damped."""
    values = sum(rows.shape[0] * rows.shape[1] * columns.shape[1] for rows, columns in sums.values())
    seen = sum(float(squares(rows).sum(dtype=torch.float64)) for rows, _ in sums.values())
    least = FLOOR * seen / count / max(values, 1)
    result = {}
    for name, (rows, columns) in sums.items():
        rows, columns = (mirrored(each.cpu().double()) / count for each in (rows, columns))
        if not bool(squares(rows).sum(1).min() > 0):
            rows, columns = (
                rows + diagonal(rows, least * columns.shape[-1]),
                columns + diagonal(columns, least * rows.shape[1]),
            )
        rows = rows + diagonal(rows, ROW_DAMPING * squares(rows).mean(1, keepdim=True))
        columns = columns + diagonal(columns, DAMPING * squares(columns).mean(1, keepdim=True))
        total = squares(rows).sum(1).view(-1, *[1] * (rows.ndim - 1))
        result[name] = Curvature((rows / total).float(), columns.float())
    return result


def squares(products: Tensor) -> Tensor:
    """The diagonal (n, m) of products, in either form."""
    return products.diagonal(dim1=-2, dim2=-1) if products.ndim == 3 else products


def diagonal(like: Tensor, value: float | Tensor) -> Tensor:
    """`value` ((n, 1) or a number) on the diagonal of products, in the form that they have."""
    vector = torch.ones(len(like), like.shape[-1], dtype=like.dtype) * value
    return torch.diag_embed(vector) if like.ndim == 3 else vector
