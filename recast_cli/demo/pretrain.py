"""Pretrain the demo's tiny ViT on drawn pictures: ``python -m recast_cli.demo.pretrain --output recast_cli/demo/vit``.

The classifier has one output for each value of each factor that a picture is drawn from (its figure, fill, ground and
hue) and the loss is the mean of one cross-entropy a factor. The result is a plain timm ViT: its folder opens with
``timm.create_model("local-dir:<folder>", pretrained=True)``.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional as F

from recast_cli.demo.draw import FACTORS, draw_pretraining

log = logging.getLogger(__name__)

SIZE = 48  # pixels a side of what the model sees
MARGIN = 6  # further pixels a side of what is drawn: every step sees another crop
POOL = 61_440  # pictures drawn for training
CHUNK = 1024  # pictures drawn by one job; a chunk's number is its seed
HELD_OUT = 2  # further chunks, never trained on
BATCH = 64
PEAK_LR = 1.5e-3
WARMUP = 300  # steps
WEIGHT_DECAY = 0.05

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": SIZE, "patch_size": 8, "embed_dim": 64, "depth": 12, "num_heads": 4}
LABELS = [f"{factor}: {value}" for factor, values in FACTORS.items() for value in values]


def draw_pool(workers: int = 2) -> tuple[Tensor, Tensor]:
    """Draw the pictures, uint8 [n, 3, side, side], and labels, int64 [n, factors]; the held-out chunks come first."""
    side = SIZE + MARGIN
    with ProcessPoolExecutor(workers) as executor:
        chunks = list(executor.map(partial(draw_pretraining, CHUNK, side), range(HELD_OUT + POOL // CHUNK)))
    pictures = np.concatenate([pictures for pictures, _ in chunks])
    labels = np.concatenate([labels for _, labels in chunks])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2), torch.from_numpy(labels)


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop and, half of the time, a horizontal flip of each picture; uint8 [n, 3, SIZE, SIZE]."""
    out = torch.empty(len(pictures), 3, SIZE, SIZE, dtype=torch.uint8)
    corners = torch.randint(MARGIN + 1, (len(pictures), 2), generator=generator).tolist()
    flips = torch.rand(len(pictures), generator=generator) < 0.5
    for index, ((top, left), flip) in enumerate(zip(corners, flips.tolist(), strict=True)):
        crop = pictures[index, :, top : top + SIZE, left : left + SIZE]
        out[index] = crop.flip(-1) if flip else crop
    return out


def normalise(pictures: Tensor) -> Tensor:
    """Bytes to floats in [-1, 1]: mean and standard deviation 0.5, as the saved configuration says."""
    return pictures.float() / 127.5 - 1


def by_factor(logits: Tensor) -> tuple[Tensor, ...]:
    """Cut logits [n, len(LABELS)] into one block [n, values] for each factor."""
    return logits.split([len(values) for values in FACTORS.values()], dim=1)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of the factors' cross-entropies (a scalar), from logits [n, len(LABELS)] and labels [n, factors]."""
    losses = [F.cross_entropy(block, label) for block, label in zip(by_factor(logits), labels.T, strict=True)]
    return torch.stack(losses).mean()


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < WARMUP:
        return PEAK_LR * (step + 1) / WARMUP
    return PEAK_LR * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


@torch.no_grad()
def initialise(model: nn.Module, pictures: Tensor) -> None:
    """Start from weights with which a ViT this small learns within minutes; timm's own are meant for wide models.

    Most of the variance of raw patches is their mean colour. Whitening them makes patterns and edges just as loud, and
    the first few hundred steps then do what otherwise takes thousands.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    width, patch = MODEL_ARGS["embed_dim"], MODEL_ARGS["patch_size"]
    tiles = normalise(pictures[:, :, :SIZE, :SIZE]).unfold(2, patch, patch).unfold(3, patch, patch)
    vectors = tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)  # [patches, 3 * patch * patch]
    mean = vectors.mean(0)
    variances, directions = torch.linalg.eigh((vectors - mean).T @ (vectors - mean) / len(vectors))  # ascending
    floor = 0.01  # keeps directions that hold little but pixel noise from being blown up
    whitening = (directions[:, -width:] / (variances[-width:] + floor).sqrt()).T
    model.patch_embed.proj.weight.copy_(whitening.view(width, 3, patch, patch))
    model.patch_embed.proj.bias.copy_(-whitening @ mean)
    side = SIZE // patch
    model.pos_embed[:, 1:].copy_(0.5 * build_sincos2d_pos_embed((side, side), width))  # the class token's stays


@torch.no_grad()
def accuracies(model: nn.Module, pictures: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of every factor on centre crops, as fractions."""
    model.eval()
    centre = slice(MARGIN // 2, MARGIN // 2 + SIZE)
    crops = normalise(pictures[:, :, centre, centre])
    blocks = by_factor(torch.cat([model(batch) for batch in crops.split(256)]))
    right = [(block.argmax(1) == label).float().mean().item() for block, label in zip(blocks, labels.T, strict=True)]
    return dict(zip(FACTORS, right, strict=True))


def save(model: nn.Module, folder: Path) -> None:
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
        folder,
        model_config={"pretrained_cfg": preprocessing},
        model_args=MODEL_ARGS,
        safe_serialization=True,
    )
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner may read


def pretrain(output: Path, epochs: int, seed: int = 0) -> None:
    """Draw, train, and write the model's folder after every epoch."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    started = time.monotonic()
    pictures, labels = draw_pool()
    held_out, pictures = pictures.split([HELD_OUT * CHUNK, len(pictures) - HELD_OUT * CHUNK])
    held_out_labels, labels = labels.split([len(held_out), len(pictures)])
    log.info("drew %d pictures in %.0f s", len(pictures), time.monotonic() - started)

    model = timm.create_model(ARCHITECTURE, num_classes=len(LABELS), **MODEL_ARGS)
    initialise(model, pictures[:2048])
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    steps_an_epoch = len(pictures) // BATCH
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(pictures), generator=generator)
        for number, chosen in enumerate(order[: steps_an_epoch * BATCH].split(BATCH)):
            lr = learning_rate(epoch * steps_an_epoch + number, epochs * steps_an_epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = loss_of(model(normalise(augment(pictures[chosen], generator))), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        held = ", ".join(f"{k} {v:.3f}" for k, v in accuracies(model, held_out, held_out_labels).items())
        log.info("epoch %d: %.0f s, loss %.3f; %s", epoch + 1, time.monotonic() - started, loss.item(), held)
        save(model, output)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the demo's tiny ViT on drawn pictures.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the drawn pictures")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pretrain(arguments.output, arguments.epochs)


if __name__ == "__main__":
    main()
