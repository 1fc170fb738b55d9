"""The records that flow from stage to stage.

A record points at files and says what the next stage must know: names, counts, shapes and digests,
never a tensor. Its identity is a hash of every field except paths, so the same content in another
place is the same input.

Longer than 400 lines because every stage reads these records, and one file shows how they connect.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import CheckpointError
from pipeline.image_size import ImageSize, describe_image_size

# How an image of any shape becomes a square: its central square, or the whole on a border.
Fit: TypeAlias = Literal["crop", "pad"]


def digest_of(value: object) -> str:
    """Return the SHA-256, in hexadecimal, of a value that JSON can hold."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Artifact(BaseModel):
    """What a finished stage leaves for the next: a small record beside its files."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    FILE: ClassVar[str] = "artifact.json"
    # How the tracking store knows it besides its files: as a dataset, as a model, or not at all.
    TRACKED_AS: ClassVar[Literal["dataset", "model", ""]] = ""
    # Fields that say something of few records: where they are empty the identity is that of a
    # record without them.
    RARE: ClassVar[frozenset[str]] = frozenset()

    directory: Path = Field(
        default=Path(),
        exclude=True,
        description="The stage's folder; known when the record is read.",
    )

    def identity(self) -> str:
        """Return the SHA-256 of every field that is not a path."""
        paths = {
            name for name, field in type(self).model_fields.items() if field.annotation is Path
        }
        empty = {name for name in self.RARE if not getattr(self, name)}
        return digest_of(self.model_dump(mode="json", exclude=paths | empty))

    @property
    def ends_chain(self) -> bool:
        """Whether the stages after it are not wanted."""
        return False

    def promised_files(self) -> tuple[Path, ...]:
        """Return the files that must exist for this record to be usable."""
        return ()

    def headline(self) -> str:
        """Say in a few words what was made."""
        return ""

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the record of a finished stage from its folder."""
        text = (directory / cls.FILE).read_text(encoding="utf-8")
        return cls.model_validate_json(text).model_copy(update={"directory": directory})


class DatasetArtifact(Artifact):
    """A prepared dataset: TFDS shards of `image` (encoded bytes), `label` and `key` (image name).

    `reads` maps `train`, `validation` and `test` to TFDS split instructions such as `train[:90%]`,
    read from `builder_directory`.
    """

    # What a manifest says of its images besides their labels: a column `key` and others, all text.
    # Only where it says something.
    ATTRIBUTES_FILE: ClassVar[str] = "index/attributes.parquet"
    # Which images belong together, as duplicates or by a manifest: `key` and `group`, a number.
    # Only where there are such images, and only those.
    GROUPS_FILE: ClassVar[str] = "index/groups.parquet"
    TRACKED_AS: ClassVar[Literal["dataset", "model", ""]] = "dataset"
    RARE: ClassVar[frozenset[str]] = frozenset({"groups_sha256"})

    name: str = Field(description="What --dataset was called, without its folders.")
    digest: str = Field(description="SHA-256 over every split's (key, label, image bytes).")
    class_names: tuple[str, ...] = Field(description="Names in the order of their class ids.")
    class_counts: dict[str, tuple[int, ...]] = Field(
        description="Images per class id, for each split."
    )
    reads: dict[str, str] = Field(description="TFDS split instruction for each split.")
    image_key: str = Field(
        default="image", description="Feature that holds the image in the shards."
    )
    label_key: str = Field(default="label", description="Feature that holds the class id.")
    short_side: int = Field(
        description="Height and width of the square that an image becomes, before crops are cut."
    )
    fit: Fit = Field(default="crop", description="How it becomes one.")
    channel_mean: tuple[float, float, float] = Field(
        description="Mean RGB of the training split, 0-255."
    )
    channel_covariance: tuple[
        tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]
    ] = Field(
        description=(
            "Covariance of RGB over training pixels, 0-255 squared; its eigenvectors are the"
            " directions of color noise."
        )
    )
    upright_jpeg: bool = Field(
        default=False,
        description="Every image is a JPEG that need not be turned, which is decoded fastest.",
    )
    largest_short_side: int = Field(
        default=1 << 16,
        description="Pixels of the shorter side of the image where it is longest.",
    )
    store: str = Field(
        default="encoded",
        description="`pixels` where `pixels/<split>.npy` holds every image at short_side.",
    )
    quarantined: int = Field(default=0, description="Files left out because they cannot be used.")
    excluded_duplicates: int = Field(
        default=0, description="Duplicates of images of another split, left out."
    )
    groups_sha256: str = Field(
        default="",
        description="SHA-256 over the groups of images that belong together; empty for none.",
    )
    builder_directory: Path = Field(
        description=(
            "Folder of the TFDS builder that holds the shards; may be relative to `directory`."
        )
    )

    @property
    def channel_std(self) -> tuple[float, float, float]:
        """Standard deviation of RGB over training pixels, 0-255."""
        red, green, blue = (
            math.sqrt(self.channel_covariance[channel][channel]) for channel in range(3)
        )
        return red, green, blue

    @property
    def shards(self) -> Path:
        """The folder to give to `tfds.builder_from_directory`."""
        return self.directory / self.builder_directory

    def count_images(self, split: str) -> int:
        """Return the number of images in a split."""
        return sum(self.class_counts[split])

    def headline(self) -> str:
        """Images by split, and classes."""
        splits = ", ".join(f"{sum(counts):,} {name}" for name, counts in self.class_counts.items())
        left_out = f", {self.quarantined:,} files quarantined" if self.quarantined else ""
        duplicates = (
            f", {self.excluded_duplicates:,} excluded duplicates"
            if self.excluded_duplicates
            else ""
        )
        padded = ", padded to squares" if self.fit == "pad" else ""
        return (
            f"{self.name}: {len(self.class_names):,} classes, {splits} images{padded}{left_out}"
            f"{duplicates}"
        )

    def pixels_path(self, split: str) -> Path:
        """The images of a split where `store` is `pixels`.

        Uint8 [images, short_side, short_side, 3], in stored order.
        """
        return self.directory / "pixels" / f"{split}.npy"

    @property
    def sample_path(self) -> Path:
        """Some training images of many classes.

        `pixels` uint8 [images, short_side, short_side, 3] and `labels`.
        """
        return self.directory / "sample.npz"

    def promised_files(self) -> tuple[Path, ...]:
        """The shards' own index, ours of each split, the sample and the dataset card."""
        ours = [self.directory / "index" / f"{split}.parquet" for split in self.reads]
        ours += [self.pixels_path(split) for split in self.reads if self.store == "pixels"]
        ours += [self.directory / self.GROUPS_FILE] if self.groups_sha256 else []
        return (
            self.shards / "dataset_info.json",
            self.directory / "report" / "dataset_card.html",
            self.sample_path,
            *ours,
        )


class LayerRecord(BaseModel):
    """One layer of a network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str = Field(description="Its name.")
    kind: str = Field(description="What it is, with window and stride.")
    output: tuple[int, ...] = Field(description="Shape of its output, without the batch.")
    parameters: int = Field(description="Trainable parameters.")
    macs: int = Field(description="MACs, multiplications with a weight, per image.")
    bytes: int = Field(description="Memory of its output per image, in float32 but for the pixels.")
    block: str = Field(default="", description="Name of the last layer of the block it belongs to.")


class SavedModel(Artifact):
    """A `.keras` file with what is needed to use it.

    The common part of built and trained models.
    """

    MODEL_FILE: ClassVar[str] = "model.keras"

    model_sha256: str = Field(description="SHA-256 of the .keras file.")
    parameters: int = Field(description="Trainable parameters.")
    macs: int = Field(default=0, description="MACs, multiplications with a weight, per image.")
    layers: tuple[LayerRecord, ...] = Field(default=(), description="The layers in order.")
    network: str = Field(description="Name of the network, as in `model.network`.")
    fidelity: str = Field(default="code", description="As the code or as the paper of 2012.")
    image_size: ImageSize = Field(
        description="Height and width of the input, in pixels; one number where they are the same."
    )
    short_side: int = Field(
        default=0,
        description=(
            "Height and width, in pixels, of the squares that inputs are cut from; 0 where none"
            " were."
        ),
    )
    fit: Fit = Field(default="crop", description="How images become these squares.")
    pretrained: str = Field(
        default="",
        description="The weights that it began with: `imagenet`, or a file's name; empty: fresh.",
    )
    weights_sha256: str = Field(
        default="", description="SHA-256 of the file of weights; empty: fresh."
    )
    weights_licence: str = Field(
        default="", description="Licence of the weights, by its SPDX name; empty where unknown."
    )
    class_names: tuple[str, ...] = Field(description="Names in the order of the logits.")

    def as_dict(self, batch_size: int) -> dict[str, Any]:
        """Return the model as a command's result shows it; memory in bytes, for a batch."""
        return {
            "path": str(self.model_path),
            "sha256": self.model_sha256,
            "network": self.network,
            "parameters": self.parameters,
            "macs": self.macs,
            "activation_bytes": self.activation_bytes(batch_size),
            "layers": [layer.model_dump() for layer in self.layers],
        }

    @property
    def model_path(self) -> Path:
        """The `.keras` file."""
        return self.directory / self.MODEL_FILE

    def network_fields(self) -> dict[str, Any]:
        """Return the fields that describe the network and not its weights."""
        return {
            name: getattr(self, name)
            for name in SavedModel.model_fields
            if name not in ("directory", "model_sha256")
        }

    def activation_bytes(self, batch_size: int) -> int:
        """Return what the outputs of all layers take for a batch, in bytes.

        Their gradients take as much again while training.
        """
        return batch_size * sum(layer.bytes for layer in self.layers)

    def promised_files(self) -> tuple[Path, ...]:
        """The `.keras` file."""
        return (self.model_path,)

    def verified_model_path(self) -> Path:
        """Return the `.keras` file after comparing its bytes with the recorded digest.

        Raises:
            CheckpointError: the file is missing or is not the one that was saved.
        """
        found = file_sha256(self.model_path) if self.model_path.exists() else "no file"
        if found != self.model_sha256:
            raise CheckpointError(
                f"The model file {self.model_path} is damaged",
                expected=f"SHA-256 {self.model_sha256[:12]}...",
                received=f"{found[:12]}...",
                hint=f"Type the same command with --rerun {self.directory.name.split('-')[0]}",
            )
        return self.model_path


class ModelArtifact(SavedModel):
    """The network before training, uncompiled: with fresh weights, or those of a file."""

    signal: str = Field(
        default="not checked",
        description="What the signal check found: alive, weak, vanished or exploded.",
    )
    logit_spread: float | None = Field(
        default=None, description="Deviation of the logits across images."
    )

    def headline(self) -> str:
        """Which network, how large, and whether a signal passes."""
        size = (
            f"{describe_image_size(self.image_size)} pixels, {self.parameters:,} parameters,"
            f" {self.macs / 1e6:,.1f} M MACs"
        )
        spread = "" if self.logit_spread is None else f" ({self.logit_spread:.1e})"
        return f"{self.network}, {size}, signal {self.signal}{spread}"


class TrainingResult(SavedModel):
    """The trained network, uncompiled: the weights of the best epoch on the validation split."""

    TRACKED_AS: ClassVar[Literal["dataset", "model", ""]] = "model"

    finetuned: Literal["", "head", "full"] = Field(
        default="",
        description=(
            "What is kept of a fine-tuning: the classifier on frozen features, or all that was"
            " trained; empty for a training as from scratch."
        ),
    )
    best_epoch: int = Field(
        description="Epoch, counted from 1, whose weights are kept; 0 for frozen features."
    )
    epochs: int = Field(description="Epochs trained.")
    validation_top1_error: float = Field(
        description="Top-1 error of the kept weights, fraction in [0, 1]."
    )
    history_sha256: str = Field(
        description="SHA-256 of the numbers of every epoch, times excluded."
    )

    def headline(self) -> str:
        """Which epoch is kept, and its error."""
        kept = f"epoch {self.best_epoch} of {self.epochs} kept"
        if self.finetuned == "head":
            dropped = f", {self.epochs} epochs of fine-tuning were no better" if self.epochs else ""
            kept = f"classifier on frozen features{dropped}"
        return f"{kept}, validation top-1 error {self.validation_top1_error:.2%}"


class Review(Artifact):
    """Whether to train again, and why: what every trigger found."""

    REPORT_FILE: ClassVar[str] = "report/review.html"

    retrain: bool = Field(description="Whether any trigger fired.")
    text: str = Field(description="What is done and why, with the numbers.")
    brief: str = Field(description="The same in a few words.")
    triggers: tuple[str, ...] = Field(description="Those that fired.")
    reasons: dict[str, str] = Field(description="What each trigger says, in a sentence.")
    numbers: dict[str, float] = Field(description="The same as `trigger.number`.")
    notes: tuple[str, ...] = Field(description="What could not be measured, and why.")
    champion: str = Field(description="The version that serves; empty for none.")
    champion_dataset_digest: str = Field(
        description="Digest of the dataset that it was released with; empty for none."
    )
    dataset_digest: str = Field(description="Digest of the dataset as it is now.")

    @property
    def ends_chain(self) -> bool:
        """Whether the champion stays as it is."""
        return not self.retrain

    def headline(self) -> str:
        """What is done, and why."""
        return self.text

    def promised_files(self) -> tuple[Path, ...]:
        """The page."""
        return (self.directory / self.REPORT_FILE,)


class GateCheck(BaseModel):
    """One check of the gate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Name of the check, such as `against_champion`.")
    passed: bool = Field(description="Whether the check passed.")
    measured: str = Field(description="The measured value, formatted.")
    required: str = Field(description="The required value, formatted.")
    text: str = Field(description="One sentence with the numbers.")


class EvaluationReport(Artifact):
    """What the saved model scores on one split, each image exactly once."""

    REPORT_FILE: ClassVar[str] = "report/report.html"
    PREDICTIONS_FILE: ClassVar[str] = "predictions.parquet"

    split: str = Field(description="Which split was scored.")
    view: str = Field(
        description=(
            "How images were cut: `center crop` or `mean of ten crops`. Numbers of unlike views"
            " are not compared."
        )
    )
    images: int = Field(description="Images scored.")
    top1_error: float = Field(description="Share whose first guess is wrong, in [0, 1].")
    top5_error: float = Field(
        description="Share whose first five guesses are all wrong, in [0, 1]."
    )
    loss: float = Field(description="Mean cross-entropy in nats, without any penalty.")
    top1_error_interval: tuple[float, float] = Field(
        description="95 % Wilson interval of the top-1 error."
    )
    majority_error: float = Field(
        description="Top-1 error of always answering the commonest training class."
    )
    calibration_error: float = Field(
        description="Expected calibration error of the probabilities as they come, share in [0, 1]."
    )
    temperature: float = Field(
        description=(
            "What logits are divided by for calibrated probabilities; fitted on the validation"
            " split."
        )
    )
    class_names: tuple[str, ...] = Field(description="Names in the order of the logits.")
    model_sha256: str = Field(
        description="SHA-256 of the .keras file that was scored, whose temperature this is."
    )
    dataset_digest: str = Field(description="Digest of the dataset whose images were scored.")
    images_sha256: str = Field(
        description="SHA-256 of the scored images' names, labels and contents, in order."
    )
    predictions_sha256: str = Field(
        description="SHA-256 of the predictions' keys, labels and logits."
    )

    def headline(self) -> str:
        """The error with its interval."""
        low, high = self.top1_error_interval
        return (
            f"{self.split} top-1 error {self.top1_error:.2%} ({low:.2%} to {high:.2%}),"
            f" {self.view}, on {self.images:,} images"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as a command's result shows them."""
        names = (
            "split",
            "view",
            "images",
            "top1_error",
            "top1_error_interval",
            "top5_error",
            "loss",
            "calibration_error",
            "temperature",
            "model_sha256",
            "dataset_digest",
        )
        shown = {name: getattr(self, name) for name in names}
        return shown | {"report": str(self.directory / self.REPORT_FILE)}

    @property
    def predictions_path(self) -> Path:
        """What the model said of each image, as `pipeline.evaluate.predictions` describes it."""
        return self.directory / self.PREDICTIONS_FILE

    def promised_files(self) -> tuple[Path, ...]:
        """The report and the predictions."""
        return (self.directory / self.REPORT_FILE, self.predictions_path)


class Decision(Artifact):
    """The outcome of a promotion, with its reasons."""

    REPORT_FILE: ClassVar[str] = "report/decision.html"
    PACKAGE: ClassVar[str] = "package"

    outcome: Literal["promoted", "refused", "unchanged", "waiting", "would promote"] = Field(
        description=(
            "`waiting`: it passed and needs a person's approval; `unchanged`: it is the champion"
            " already."
        )
    )
    reason: str = Field(description="The reason, in a sentence.")
    name: str = Field(description="Name in the registry.")
    version: str = Field(
        description="The candidate's version there; empty when nothing was registered."
    )
    champion: str = Field(description="The version that it was judged against; empty for none.")
    policy: str = Field(description="`non_inferior` or `superior`.")
    checks: tuple[GateCheck, ...] = Field(description="All checks; empty when nothing was judged.")
    images: int = Field(description="Test images that both models were scored on.")
    top1_error: float | None = Field(description="The candidate's, in [0, 1].")
    champion_top1_error: float | None = Field(
        description="The champion's on the images that it knows the classes of, in [0, 1]."
    )
    advice: str = Field(description="The number of test images needed; empty without a champion.")
    test_images_note: str = Field(
        default="",
        description=(
            "Which test images counted, where these are not the whole test split as it is now."
        ),
    )
    model_sha256: str = Field(description="SHA-256 of the candidate's .keras file.")
    release_sha256: str = Field(
        description="Digest that names the release in its folder `package`."
    )
    dataset_digest: str = Field(description="Digest of the dataset whose test split was used.")

    @property
    def page(self) -> Path:
        """The page of the decision."""
        return self.directory / self.REPORT_FILE

    def headline(self) -> str:
        """Return the outcome and its reason."""
        return f"{self.outcome}: {self.reason}"

    def promised_files(self) -> tuple[Path, ...]:
        """The page, and the release where one was made."""
        package = (self.directory / self.PACKAGE / "release.json",) if self.release_sha256 else ()
        return (self.page, *package)
