"""The exact solver: linear algebra instead of descent."""

import torch
from torch import Tensor

from recast_cli.engine.mimic.decompose.solution import Solution


def solve_exact(weights: Tensor, templates: int, sets: int) -> Solution:
    """The Frobenius optimum for one bank of weights (layers, *shape), with n templates and K sets.

    With one template per layer the templates are the source weights themselves, perhaps in their memory, and every
    coefficient set is the identity row: exact to the bit, the same bytes everywhere, and orthogonal as Algorithm 1 of
    the paper starts.
    With fewer, the truncated SVD of the (layers x numel) matrix (Eckart-Young), from the eigenvectors of its
    layers x layers Gram matrix in float64. Templates carry the singular values, so coefficient rows have norm <= 1;
    in each column the entry of largest size is positive. The K sets are equal at the start.
    """
    layers = len(weights)
    if templates == layers:
        rows = torch.eye(layers)
        return Solution(weights.float(), rows[:, None].expand(-1, sets, -1).contiguous())
    matrix = weights.reshape(layers, -1).double()
    vectors = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(-1)[:, :templates]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * largest.sign()
    bank = (vectors.T @ matrix).reshape(templates, *weights.shape[1:])
    return Solution(bank.float(), vectors.float()[:, None].expand(-1, sets, -1).contiguous())
