"""How a network wants its images; plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """What timm's data config says of images, in timm's words.

    Attributes:
        input_size: (channels, H, W) in pixels.
        mean: Of each channel, taken off pixels from 0 to 1; `std` what they are then divided by.
        interpolation: E.g. `bicubic`.
        crop_pct: Share of the scaled image's side that the centre crop keeps.
        crop_mode: `center`, `squash` or `border`.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Of a data config of timm's; further keys are left out. Raises KeyError where one is missing."""
        channels, height, width = config["input_size"]
        return cls(
            input_size=(int(channels), int(height), int(width)),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )

    def at(self, image_size: int | None) -> Preprocessing:
        """The same for images of so many pixels in height and width; None: as it is."""
        return replace(self, input_size=(self.input_size[0], image_size, image_size)) if image_size else self
