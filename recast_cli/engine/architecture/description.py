"""What timm needs to build a network again, and how its images are prepared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recast_cli.engine.images.preprocessing import Preprocessing


@dataclass(frozen=True)
class Architecture:
    """What timm needs to build a network again, and how its images are prepared.

    Attributes:
        name: timm's model name, with its tag where there is one.
        args: Model arguments, as in `timm.create_model(name, **args)`.
        config: timm's pretrained config, without the fields that name a source.
        data: timm's data config: input_size (3, H, W), mean, std, interpolation, crop_pct, crop_mode.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def preprocessing(self) -> Preprocessing:
        """How the network wants its images, at its own size."""
        return Preprocessing.from_config(self.data)

    @property
    def image_size(self) -> int:
        """Height of the images the network was made for, in pixels."""
        return int(self.data["input_size"][-2])

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Names of the classifier's modules, see `classifiers_of`."""
        return classifiers_of(self.config)

    @property
    def classifies(self) -> bool:
        """Whether the network has a classifier; without one it gives features."""
        return bool(self.args.get("num_classes"))


def classifiers_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classifier's modules, by timm's pretrained config: none, one, or two in distilled networks."""
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)
