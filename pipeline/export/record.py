"""Records of an export that was read back: what parity.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.release.package import Release
from pipeline.reports.export import describe_export

FORMATS = ("savedmodel", "onnx", "litert")
PARITY_FILE, REPORT_FILE = "parity.json", "report.html"
# The path in the folder that the runtime opens; a SavedModel is the folder itself.
_MODEL_FILES: Mapping[str, str] = {
    "savedmodel": "",
    "onnx": "model.onnx",
    "litert": "model.tflite",
}


@dataclass(frozen=True)
class EndpointParity:
    """An endpoint of an export, read back, compared with the released model.

    Attributes:
        endpoint: its name.
        images: number of images.
        difference: largest difference of a logit.
        allowed: largest one that passes; None for int8, which is measured by its errors.
        probability_difference: largest difference of a calibrated probability, in [0, 1].
        same_top5: images with the same five likeliest classes in the same order; logits within
            twice the rounding that is allowed to float32 count as equal.
    """

    endpoint: str
    images: int
    difference: float
    allowed: float | None
    probability_difference: float
    same_top5: int


@dataclass(frozen=True)
class IntegerCost:
    """Errors, size and time of 8-bit integers and of float32, on the same labeled images.

    Errors are fractions in [0, 1].

    Attributes:
        images: number of images.
        float_top1_error: of the released model.
        float_interval: its 95 % interval.
        int8_top1_error: of the network of integers.
        int8_interval: its 95 % interval.
        rise: int8_top1_error less float_top1_error.
        rise_interval: the 95 % interval of this paired difference (Tango 1998, as in
            `pipeline.release.gate`).
        float_bytes: size of the LiteRT file in float32.
        float_seconds: median time of one image in a call of LiteRT's interpreter on this machine,
            in turn with the integers.
    """

    images: int
    float_top1_error: float
    float_interval: tuple[float, float]
    int8_top1_error: float
    int8_interval: tuple[float, float]
    rise: float
    rise_interval: tuple[float, float]
    float_bytes: int
    float_seconds: float


@dataclass(frozen=True)
class ExportRecord:
    """An export that was read back.

    Attributes:
        release: the release that was exported.
        format: one of `FORMATS`.
        int8: whether it computes in 8-bit integers.
        runtime: package that read it back.
        version: of the runtime.
        bytes: size of the file, or of all files of a SavedModel.
        seconds: median time of one image in a call of the runtime, on this machine.
        checks: one for each endpoint.
        cost: of int8; None for float32.
        directory: the folder.
    """

    release: Release
    format: str
    int8: bool
    runtime: str
    version: str
    bytes: int
    seconds: float
    checks: tuple[EndpointParity, ...]
    cost: IntegerCost | None = None
    directory: Path = Path()

    @property
    def file(self) -> Path:
        """The path for the runtime: a file, or a SavedModel's folder."""
        return self.directory / _MODEL_FILES[self.format]

    @property
    def page(self) -> Path:
        """The parity report."""
        return self.directory / REPORT_FILE

    def headline(self) -> str:
        """Return a sentence, without its full stop, of what was exported and how it compares."""
        return describe_export(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Return what parity.json holds."""
        known = {
            name: getattr(self.release, name)
            for name in ("model_sha256", "image_size", "short_side", "fit", "temperature")
        }
        known |= {"model": self.release.title, "classes": len(self.release.class_names)}
        numbers = known | asdict(replace(self, release=None))  # type: ignore[arg-type]
        del numbers["release"]
        return numbers | {
            "directory": str(self.directory),
            "file": str(self.file),
            "page": str(self.page),
        }
