"""What the registry says of every network, whatever its family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from pipeline.image_size import ImageSize

# For each of red, green and blue, in levels of 0-255.
Triple: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class NetworkRow:
    """One network.

    Attributes:
        name: what `model.network` calls it.
        summary: what it is, in at most 60 characters.
        family: which module builds it.
        min_image_size: smallest height and width of the input, in pixels; below, the pools have
            nothing left to see.
        image_size: natural size, for which it was made, in pixels.
        pixel_mean: RGB, what its published weights were trained on pixels less; none published:
            None.
        pixel_std: what these pixels were divided by.
        bgr: its published weights take blue first.
        licence: of the published weights, by SPDX; empty where there are none.
        imagenet_top1_error: published, fraction in [0, 1]; None: none.
        parameters: trainable ones, for 1,000 classes at the natural size; None where only building
            it shows.
        macs: multiplications with a weight per image, likewise.
    """

    name: str
    summary: str
    family: str
    min_image_size: int
    image_size: ImageSize
    pixel_mean: Triple | None = None
    pixel_std: Triple | None = None
    bgr: bool = False
    licence: str = ""
    imagenet_top1_error: float | None = None
    parameters: int | None = None
    macs: int | None = None

    @property
    def default_weights(self) -> str:
        """What `model.weights=auto` means: the published ones; none for AlexNets.

        These are here to be trained.
        """
        published = self.imagenet_top1_error is not None and self.family != "alexnet"
        return "imagenet" if published else ""

    @property
    def default_dropout(self) -> float:
        """What `model.dropout` is where it is not given.

        0.5 for AlexNets (paper, section 4.2); 0.2, that of EfficientNetB0, EfficientNet-Lite0 and
        MobileNetV3 (https://keras.io/api/applications), in front of other classifiers.
        """
        return 0.5 if self.family == "alexnet" else 0.2

    def numbers(self) -> list[Any]:
        """Return what decides the network, as JSON can hold it."""
        return [self.name, self.family, self.pixel_mean, self.pixel_std, self.bgr]
