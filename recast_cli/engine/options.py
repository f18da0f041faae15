"""How a task is trained; plain values, so that the command line and recast.yaml can know them without torch."""

from __future__ import annotations

from dataclasses import dataclass

from recast_cli.engine.errors import RecastError


@dataclass(frozen=True)
class AdaptOptions:
    """The recipe, and how images become training data. All of it is recorded in task.yaml.

    Attributes:
        epochs: Passes over the training images.
        lr: Learning rate of the coefficients at the start of the cosine.
        head_lr: The same for the head.
        batch_size: Images a step.
        seed: Of order, flips and crops.
        image_size: Height and width in pixels; None: the network's own.
        split: `auto` keeps the folder's own parts; `pooled` cuts all images together.
        split_seed: Of the split; the training seed never changes it.
        class_weights: `none`, or `balanced` by inverse frequency in train.
        on_bad_image: `skip` or `fail`.
    """

    epochs: int = 10
    lr: float = 0.02
    head_lr: float = 1e-3
    batch_size: int = 32
    seed: int = 0
    image_size: int | None = None
    split: str = "auto"
    split_seed: int = 0
    class_weights: str = "none"
    on_bad_image: str = "skip"

    def __post_init__(self) -> None:
        for option, value in (
            ("epochs", self.epochs),
            ("lr", self.lr),
            ("head-lr", self.head_lr),
            ("batch-size", self.batch_size),
            ("image-size", self.image_size),
        ):
            if value is not None and not 0 < value < float("inf"):
                raise RecastError(f"--{option} {value} is not a positive number", "Give a number above 0.")
        for option, word, known in (
            ("split", self.split, ("auto", "pooled")),
            ("class-weights", self.class_weights, ("none", "balanced")),
            ("on-bad-image", self.on_bad_image, ("skip", "fail")),
        ):
            if word not in known:
                raise RecastError(f"--{option} {word} is unknown", f"Use {' or '.join(known)}.")
