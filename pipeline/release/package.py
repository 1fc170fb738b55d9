"""A release: a folder with a `.keras` file, all that serving needs, and digests that verify it.

    data/model.keras       the network
    release.json           its digest, class names, sizes, temperature, and the golden images with
                           the logits of the evaluation
    golden/                the files of these images

The SHA-256 of release.json names the release; it holds those of all other files. So that one
digest, which a version in the registry has, verifies everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.artifacts import EvaluationReport, Fit, digest_of, file_sha256
from pipeline.config.settings import Config
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluate.external_model import find_external_model
from pipeline.files import write_text
from pipeline.image_size import ImageSize
from pipeline.tracking.fetching import fetch_model_file, fetch_version
from pipeline.tracking.registry import Version, resolve_version

if TYPE_CHECKING:
    from pipeline.arrays import Floats


class GoldenEntry(BaseModel):
    """An image with the logits that every copy of the model must give."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(description="Its file, below the folder.", pattern=r"^golden/[0-9]+$")
    sha256: str = Field(description="SHA-256 of the file.")
    label: int = Field(description="Its right class.")
    logits: tuple[float, ...] = Field(description="The model's logits of it at evaluation.")


class Release(BaseModel):
    """A model with what serving needs; `directory` holds its files."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    FILE: ClassVar[str] = "release.json"
    MODEL_FILE: ClassVar[str] = "data/model.keras"

    directory: Path = Field(default=Path(), exclude=True)
    model_file: str = Field(default=MODEL_FILE, exclude=True)
    name: str = Field(
        default="",
        exclude=True,
        description="Name in the registry, such as `alexnet`, or the file's name.",
    )
    version: str = Field(
        default="", exclude=True, description="The version in the registry; empty elsewhere."
    )

    model_sha256: str = Field(description="SHA-256 of the .keras file.")
    class_names: tuple[str, ...] = Field(
        default=(), description="Names in the order of the logits; empty where unknown."
    )
    image_size: ImageSize = Field(
        default=0,
        description=(
            "Height and width of the input, in pixels, one number where they are the same; 0 until"
            " the file is opened."
        ),
    )
    short_side: int = Field(
        default=0,
        description="Height and width of the square before the center crop; 0: image_size.",
    )
    fit: Fit = Field(default="crop", description="How an image becomes that square.")
    temperature: float = Field(
        default=1.0, gt=0, description="Divisor of the logits for calibrated probabilities."
    )
    dataset_digest: str = Field(
        default="", description="Digest of the dataset that it was judged on; empty where unknown."
    )
    pretrained: str = Field(
        default="", description="The weights that its training began with; empty: fresh ones."
    )
    weights_licence: str = Field(
        default="",
        description="Licence of these weights, by its SPDX name, which the model stays under.",
    )
    golden: tuple[GoldenEntry, ...] = Field(
        default=(), description="Images with the logits to expect."
    )

    @property
    def model_path(self) -> Path:
        """The `.keras` file."""
        return self.directory / self.model_file

    @property
    def title(self) -> str:
        """Name and version, such as `alexnet 3`, or the file's name."""
        return f"{self.name} {self.version}".strip()

    def sha256(self) -> str:
        """Return the digest that names the release."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the content of release.json.

        Without the fit `crop`, so that releases from before there was another keep their digests.
        """
        without = {"fit"} if self.fit == "crop" else set()
        return json.dumps(self.model_dump(mode="json", exclude=without), indent=1, sort_keys=True)


@dataclass(frozen=True)
class GoldenImage:
    """An image file's bytes, its right class, and float32 [classes] logits of the model."""

    encoded: bytes
    label: int
    logits: Floats


def write_package(
    release: Release, model: Path, images: Sequence[GoldenImage], directory: Path
) -> Release:
    """Write a release into an empty folder and return it with its golden images.

    Equal input gives equal files.

    Args:
        release: without golden images.
        model: the `.keras` file, copied.
        images: those that every copy is tested with.
        directory: made if it is not there.
    """
    golden = []
    (directory / "golden").mkdir(parents=True, exist_ok=True)
    (directory / "data").mkdir(exist_ok=True)
    for index, image in enumerate(images):
        path = directory / "golden" / f"{index:02d}"
        path.write_bytes(image.encoded)
        logits = tuple(float(value) for value in image.logits)
        golden.append(
            GoldenEntry(
                file=f"golden/{path.name}",
                sha256=hashlib.sha256(image.encoded).hexdigest(),
                label=image.label,
                logits=logits,
            )
        )
    shutil.copyfile(model, directory / Release.MODEL_FILE)
    written = release.model_copy(
        update={"golden": tuple(golden), "directory": directory, "model_file": Release.MODEL_FILE}
    )
    write_text(directory / Release.FILE, written.to_json())
    return written


def read_package(
    directory: Path, sha256: str = "", *, name: str = "", version: str = ""
) -> Release:
    """Read a release after comparing every file with its digest.

    Args:
        directory: the folder.
        sha256: the release's own digest, from a trusted source; empty where unknown.
        name: of the model.
        version: in the registry.

    Raises:
        CheckpointError: a file is missing, or is not the one that was released.
    """
    path = directory / Release.FILE
    found = file_sha256(path) if path.is_file() else "no file"
    if sha256 and found != sha256:
        raise _make_damage_error(path, sha256, found)
    try:
        release = Release.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError) as error:
        raise CheckpointError(
            f"{directory} holds no release that can be read ({' '.join(str(error).split())[:150]})",
            expected="release.json as `alexnet promote` writes it",
            hint="Name another model with --model",
        ) from error
    promised = {Release.MODEL_FILE: release.model_sha256} | {
        image.file: image.sha256 for image in release.golden
    }
    for file, digest in promised.items():
        own = file_sha256(directory / file) if (directory / file).is_file() else "no file"
        if own != digest:
            raise _make_damage_error(directory / file, digest, own)
    return release.model_copy(
        update={"directory": directory, "name": name or directory.name, "version": version}
    )


def _make_damage_error(path: Path, expected: str, received: str) -> CheckpointError:
    return CheckpointError(
        f"The released file {path} is damaged",
        expected=f"SHA-256 {expected[:12]}...",
        received=received[:12],
        hint="Nothing was opened: promote the model again, or type `alexnet model rollback`",
    )


def open_release(reference: str, config: TrackingConfig, workdir: Path) -> Release:
    """Return a model by its reference, verified: every file has its digest.

    Args:
        reference: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a `.keras` file, the folder of a
            release, or the id of an MLflow run that trained one.
        config: the tracking store, whose registry is asked.
        workdir: the work directory, where files from elsewhere are kept.

    Raises:
        ConfigError: there is no such model.
        CheckpointError: it is not the one that was released, or that its record describes.
    """
    if reference.startswith("models:/"):
        found = resolve_version(reference, config, workdir)
        return open_version(found, config, workdir)
    path = Path(reference).expanduser()
    if (path / Release.FILE).is_file():
        return read_package(path)
    if path.suffix != ".keras":
        if path.exists():
            raise ConfigError(
                f"{path} is not a model",
                expected="a .keras file, the folder of a release, models:/NAME@ALIAS or the id of"
                " an MLflow run",
                hint="Check --model",
            )
        path = fetch_model_file(reference, config, workdir)
    return _describe_file(path, workdir)


def open_version(version: Version, config: TrackingConfig, workdir: Path) -> Release:
    """Return a version of the registry, fetched if its files lie elsewhere, and verified."""
    if not version.release_sha256:
        raise CheckpointError(
            f"Version {version.number} of {version.name} cannot be verified: it was not registered"
            " by `alexnet promote`",
            expected="a version with the tag release_sha256",
            hint="Nothing was opened: name another version, or promote a model",
        )
    known = {"name": version.name, "version": version.number}
    try:
        return read_package(
            fetch_version(version, config, workdir), version.release_sha256, **known
        )
    except CheckpointError:  # perhaps only a copy that was kept here
        return read_package(
            fetch_version(version, config, workdir, again=True), version.release_sha256, **known
        )


def _describe_file(path: Path, workdir: Path) -> Release:
    """Return a bare `.keras` file as a release.

    The record beside it and an evaluation in the work directory add what they know.
    """
    external = find_external_model(path)
    evaluated = _find_evaluation(external.sha256, workdir)
    return Release(
        directory=path.parent,
        model_file=path.name,
        name=path.name,
        model_sha256=external.sha256,
        class_names=external.class_names or (),
        short_side=external.short_side,
        fit=external.fit or "crop",
        temperature=evaluated.temperature if evaluated else 1.0,
        dataset_digest=evaluated.dataset_digest if evaluated else "",
    )


def _find_evaluation(model_sha256: str, workdir: Path) -> EvaluationReport | None:
    """Return the last evaluation of a model in a work directory, or None."""
    records = sorted(
        workdir.glob(f"stages/evaluate*/{EvaluationReport.FILE}"),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in records:
        with contextlib.suppress(OSError, ValueError):
            report = EvaluationReport.read(path.parent)
            if report.model_sha256 == model_sha256:
                return report
    return None


def digest_settings(config: Config) -> str:
    """Return the SHA-256 of the settings that the trained model and the verdict depend on.

    They depend on the images and the champion besides.
    """
    train = config.train.model_dump(mode="json", exclude=set(config.train.WITHOUT_EFFECT))
    gate = config.release.model_dump(mode="json", exclude={"approve", "dry_run"})
    return digest_of(
        {"model": config.model.model_dump(mode="json"), "train": train, "release": gate}
    )
