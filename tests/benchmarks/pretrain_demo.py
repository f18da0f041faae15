"""Pretrain the demo's tiny ViT on drawn images.

    python tests/benchmarks/pretrain_demo.py --output recast_cli/demo/vit

The saved model is a plain timm ViT that names the figure in an image; its folder opens with
``timm.create_model("local-dir:<folder>", pretrained=True)``.

A ViT of 0.6 million weights that has only ever answered one question has next to nothing else to offer, while the
large checkpoints that `recast` is made for have seen the whole world. So this one sees more than it tells, in two
stages:

1. A survey. A second classifier, on the same features, names every factor that an image is drawn from.
2. Questions. The model's own classifier answers one factor at a time, always through the same outputs; what is asked
   for is said by the mixing coefficients of the qkv weights alone. To `recast` those weights are templates, pair by
   pair of neighbouring blocks, and here they are pretrained as such. The figure is asked for by the unmixed weights.

The survey's classifier and the questions' coefficients are thrown away. A model pretrained in this way has more to
gain from new coefficients than others have, so what the demo gains is a demonstration and no benchmark.
"""

from __future__ import annotations

import argparse
import logging
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.layers import build_sincos2d_pos_embed
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from recast_cli.demo.draw import FIGURES, FILLS, draw_scene

log = logging.getLogger(__name__)

SIZE = 48  # pixels a side of what the model sees
MARGIN = 6  # further pixels a side of what is drawn: every step sees another crop
HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")
# The pretraining labels: one value of every factor for each image, in this order.
FACTORS: dict[str, tuple[str, ...]] = {
    "figure": FIGURES,
    "fill": tuple(FILLS),
    "ground": tuple(FILLS),
    "hue": HUES,
}
CHUNK = 1024  # images drawn by one job; a chunk's number is its seed
POOL = 60 * CHUNK  # images drawn for training
HELD_OUT = 2 * CHUNK  # further images, never trained on
BATCH = 64
SURVEY_STEPS = 1920  # two passes over the pool
QUESTION_STEPS = 1500
REPORT = 300  # steps between two reports
WARMUP = 300  # steps
PEAK_LR = 2e-3
MIXING_LR = 10.0  # learning rate of the mixing coefficients, in units of the weights'
WEIGHT_DECAY = 0.05
SHARES = (0.4, 0.2, 0.2, 0.2)  # of the questions, for each factor

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS: dict[str, Any] = {"img_size": SIZE, "patch_size": 8, "embed_dim": 64, "depth": 12, "num_heads": 4}
ViT = Any  # timm's VisionTransformer, whose submodules type checkers take for tensors
LABELS = list(FACTORS["figure"])  # other factors have fewer values and answer with the first outputs


def draw_pretraining(count: int, size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw pretraining images, uint8 [count, size, size, 3], and their labels, int64 [count, len(FACTORS)].

    Factors are drawn independently, so each of them can only be told by looking at it.
    """
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(len(values), size=count) for values in FACTORS.values()], axis=1)
    patterns = list(FILLS.values())
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for index, (figure, fill, ground, hue) in enumerate(labels):
        colour = {"hue": hue / len(HUES), "spread": 0.25 / len(HUES)}
        images[index] = draw_scene(rng, size, FIGURES[figure], patterns[fill], patterns[ground], **colour)
    return images, labels


def draw_pool(workers: int = 2) -> tuple[Tensor, Tensor]:
    """Draw the images, uint8 [n, 3, side, side], and labels, int64 [n, factors]; the held-out ones come first."""
    side = SIZE + MARGIN
    with ProcessPoolExecutor(workers) as executor:
        chunks = list(executor.map(partial(draw_pretraining, CHUNK, side), range((HELD_OUT + POOL) // CHUNK)))
    images = np.concatenate([images for images, _ in chunks])
    labels = np.concatenate([labels for _, labels in chunks])
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop and, half of the time, a horizontal flip of each image; uint8 [n, 3, SIZE, SIZE]."""
    out = torch.empty(len(images), 3, SIZE, SIZE, dtype=torch.uint8)
    corners = torch.randint(MARGIN + 1, (len(images), 2), generator=generator).tolist()
    flips = torch.rand(len(images), generator=generator) < 0.5
    for index, ((top, left), flip) in enumerate(zip(corners, flips.tolist(), strict=True)):
        crop = images[index, :, top : top + SIZE, left : left + SIZE]
        out[index] = crop.flip(-1) if flip else crop
    return out


def normalise(images: Tensor) -> Tensor:
    """Bytes to floats in [-1, 1]: mean and standard deviation 0.5, as the saved configuration says."""
    return images.float() / 127.5 - 1


class Survey(nn.Module):
    """The ViT with a second classifier that has one output for each value of each factor."""

    def __init__(self, model: ViT) -> None:
        super().__init__()
        self.model = model
        self.sizes = [len(values) for values in FACTORS.values()]
        self.head = nn.Linear(model.num_features, sum(self.sizes))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean of the factors' cross-entropies, a scalar; images [n, 3, SIZE, SIZE], labels [n, factors]."""
        features = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        blocks = self.head(features).split(self.sizes, dim=1)
        return torch.stack([F.cross_entropy(b, label) for b, label in zip(blocks, labels.T, strict=True)]).mean()


class Questions(nn.Module):
    """The coefficients that turn the ViT's qkv weights, pair by pair, into those that answer one factor.

    The first factor, the figure, uses the weights as they are. ``coefficients`` is [factors - 1, depth, 2], for the
    others: in block b of a pair (p, p + 1) of neighbours, factor f has the weight
    ``coefficients[f - 1, b, 0] * W_p + coefficients[f - 1, b, 1] * W_{p+1}``.
    """

    def __init__(self, model: ViT) -> None:
        super().__init__()
        self.model = model
        depth = len(model.blocks)
        self.plain = torch.eye(2).repeat(depth // 2, 1)  # [depth, 2]: (1, 0), (0, 1), (1, 0), ...
        offsets = 0.1 * torch.randn(len(FACTORS) - 1, depth, 2)
        self.coefficients = nn.Parameter(self.plain + offsets)

    def forward(self, images: Tensor, factor: int) -> Tensor:
        """Logits [n, len(LABELS)] of images [n, 3, SIZE, SIZE] when asked for one factor, by its number."""
        if factor == 0:
            return self.model(images)
        mixed = {}
        for block, weights in enumerate(self.coefficients[factor - 1]):
            first = self.model.blocks[block // 2 * 2].attn.qkv.weight
            second = self.model.blocks[block // 2 * 2 + 1].attn.qkv.weight
            mixed[f"blocks.{block}.attn.qkv.weight"] = weights[0] * first + weights[1] * second
        return functional_call(self.model, mixed, (images,))


def learning_rate(step: int) -> float:
    """Linear warm-up, then linearly down to zero at the end of both stages."""
    last = SURVEY_STEPS + QUESTION_STEPS
    return PEAK_LR * min((step + 1) / WARMUP, (last - step) / (last - WARMUP))


@torch.no_grad()
def initialise(model: ViT, images: Tensor) -> None:
    """Start from weights with which a ViT this small learns within minutes; timm's own are meant for wide models.

    Most of the variance of raw patches is their mean colour. Whitening them makes patterns and edges just as loud, and
    the first few hundred steps then do what otherwise takes thousands.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    width, patch = MODEL_ARGS["embed_dim"], MODEL_ARGS["patch_size"]
    tiles = normalise(images[:, :, :SIZE, :SIZE]).unfold(2, patch, patch).unfold(3, patch, patch)
    vectors = tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)  # [patches, 3 * patch * patch]
    mean = vectors.mean(0)
    variances, directions = torch.linalg.eigh((vectors - mean).T @ (vectors - mean) / len(vectors))  # ascending
    floor = 0.01  # keeps directions that hold little but pixel noise from being blown up
    whitening = (directions[:, -width:] / (variances[-width:] + floor).sqrt()).T
    model.patch_embed.proj.weight.copy_(whitening.view(width, 3, patch, patch))
    model.patch_embed.proj.bias.copy_(-whitening @ mean)
    side = SIZE // patch
    model.pos_embed[:, 1:].copy_(0.5 * build_sincos2d_pos_embed([side, side], width))  # the class token's stays


@torch.no_grad()
def accuracies(questions: Questions, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of every factor on centre crops, as fractions."""
    questions.model.eval()
    centre = slice(MARGIN // 2, MARGIN // 2 + SIZE)
    crops = normalise(images[:, :, centre, centre]).split(256)
    right = {}
    for number, factor in enumerate(FACTORS):
        answers = torch.cat([questions(batch, number).argmax(1) for batch in crops])
        right[factor] = (answers == labels[:, number]).float().mean().item()
    return right


def save(model: ViT, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``."""
    preprocessing = {
        "tag": "drawn",
        "input_size": (3, SIZE, SIZE),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "num_classes": len(LABELS),
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "label_names": LABELS,
    }
    save_for_hf(
        model,
        str(folder),
        model_config={"pretrained_cfg": preprocessing},
        model_args=MODEL_ARGS,
        safe_serialization=True,
    )
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner may read


def pretrain(output: Path, seed: int = 0) -> None:
    """Draw, train, and write the model's folder; it is also written at every report of the second stage."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    started = time.monotonic()
    images, labels = draw_pool()
    held_out, images = images.split([HELD_OUT, POOL])
    held_out_labels, labels = labels.split([HELD_OUT, POOL])
    log.info("drew %d images in %.0f s", POOL, time.monotonic() - started)

    model = timm.create_model(ARCHITECTURE, num_classes=len(LABELS), **MODEL_ARGS)
    initialise(model, images[:2048])
    survey, questions = Survey(model), Questions(model)
    weights = [*model.parameters(), *survey.head.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in weights if w.ndim > 1], "weight_decay": WEIGHT_DECAY, "scale": 1.0},
            {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0, "scale": 1.0},
            {"params": [questions.coefficients], "weight_decay": 0.0, "scale": MIXING_LR},
        ],
        betas=(0.9, 0.95),
    )
    shares = torch.tensor(SHARES)
    model.train()
    for step in range(SURVEY_STEPS + QUESTION_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * learning_rate(step)
        chosen = torch.randint(POOL, (BATCH,), generator=generator)
        batch = normalise(augment(images[chosen], generator))
        if step < SURVEY_STEPS:
            loss = survey.loss(batch, labels[chosen])
        else:
            factor = int(torch.multinomial(shares, 1, generator=generator))
            loss = F.cross_entropy(questions(batch, factor), labels[chosen, factor])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        done = step + 1
        if done % REPORT == 0 or done == SURVEY_STEPS + QUESTION_STEPS:
            log.info("step %d: %.0f s, loss %.3f", done, time.monotonic() - started, loss.item())
            if done > SURVEY_STEPS:
                right = accuracies(questions, held_out, held_out_labels)
                log.info("held-out accuracy: %s", ", ".join(f"{factor} {value:.3f}" for factor, value in right.items()))
                save(model, output)
                model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the demo's tiny ViT on drawn images.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pretrain(arguments.output)


if __name__ == "__main__":
    main()
