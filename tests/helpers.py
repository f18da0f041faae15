"""Small networks and drawn images that several tests share."""

import json

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from recast_cli.engine.images.decode import Images

VIT = "vit_tiny_patch16_224"
VIT_ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 12, "num_heads": 2, "num_classes": 5}
CONV = "resnet18"
CONV_ARGS = {"channels": [8, 12, 16, 24], "num_classes": 5}
MEAN, STD = [0.5, 0.4, 0.6], [0.5, 0.3, 0.4]


def network(name=VIT, args=VIT_ARGS, seed=0):
    """A timm network in eval mode whose random weights are large enough for every one of them to count."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, **args).eval()
        for tensor in model.state_dict().values():
            if not tensor.is_floating_point():
                continue
            if tensor.ndim > 1:
                tensor.normal_(0, (tensor[0].numel()) ** -0.5)
            else:  # biases, norms and running statistics: positive, so that variances stay variances
                tensor.uniform_(0.5, 1.5)
    return model


def save_folder(folder, name=VIT, args=VIT_ARGS, size=32, seed=0):
    """The network as a folder that timm's `local-dir:` opens."""
    model = network(name, args, seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": name,
        "num_classes": args["num_classes"],
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": MEAN,
            "std": STD,
            "num_classes": args["num_classes"],
            "first_conv": model.pretrained_cfg["first_conv"],
            "classifier": model.pretrained_cfg["classifier"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def draw_images(root, classes=("blue", "green", "red"), count=12, size=32, seed=0, noise=60):
    """A folder of classes with `count` images each: the colour of the class under noise."""
    generator = np.random.default_rng(seed)
    for place, name in enumerate(classes):
        colour = np.random.default_rng(1000 + place).uniform(40, 215, 3)
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = (colour + generator.normal(0, noise, (size, size, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return root


def random_images(count=2, size=32, seed=0):
    """Random normalised images (count, 3, size, size)."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def perturbed(base, scale=0.3, seed=0):
    """The base's coefficients, each moved at random."""
    noise = torch.randn(len(base.vector), generator=torch.Generator().manual_seed(seed))
    return base.vector + scale * noise


def drawn(count, seed):
    """Images of random numbers in two classes."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (count,), generator=generator)
    return Images(pixels, labels, [str(i) for i in range(count)], [])
