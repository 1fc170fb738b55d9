"""Releases that a work directory can answer with: opened, served, exported."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import DatasetArtifact, SavedModel
from pipeline.errors import ConfigError
from pipeline.model.imagenet import IMAGENET_CLASSES
from pipeline.release.package import Release, open_release
from pipeline.tracking.registry import Version, resolve_version
from pipeline.tracking.tracker import NoTracker
from pipeline.workspace.workspace import NETWORK_STAGES, Workspace

if TYPE_CHECKING:
    from pipeline.export.record import ExportRecord
    from pipeline.release.classify import Classifier
    from pipeline.release.predict import Predictions


def find_version(workspace: Workspace, version: str) -> Version:
    """Return a version of the model `release.name`, by its number or an alias.

    Raises:
        ConfigError: there is none.
    """
    known = workspace.registry().list_versions()
    for found in known:
        if version == found.number or version in found.aliases:
            return found
    raise ConfigError(
        f"There is no version {version}",
        expected=f"one of {', '.join(item.number for item in known) or 'none, as yet'}",
        hint="Type `alexnet model list` to see them",
    )


def open_named_release(workspace: Workspace, model: str = "") -> Release:
    """Return the champion, or the model that is named, verified and not opened yet.

    Where the workspace's own settings name pretrained weights, and no dataset to train them
    with, it is that network.

    Args:
        workspace: the work directory.
        model: a name in MLflow's registry, a .keras file, a release's folder, or a run's id.

    Raises:
        ConfigError: it does not exist.
        CheckpointError: its files are not those that were released.
    """
    named = workspace.settings.keys()
    if {"model.network", "model.weights"} & named and "data.dataset" not in named:
        return _build_pretrained_release(workspace, model)
    reference = workspace.model_reference(model)
    config = workspace.resolve_for_store().config
    return open_release(reference, config.tracking, workspace.directory)


def _build_pretrained_release(workspace: Workspace, model: str) -> Release:
    """Return a network with ImageNet's classes and the weights that the settings name.

    It is built once, below `networks/` in the work directory, and recorded nowhere else.

    Raises:
        ConfigError: a model is named as well, or no weights are, or weights of other classes.
    """
    if model:
        raise ConfigError(
            "--model names a model with its weights",
            expected="it, or a network with --network and --weights",
            received="both",
        )
    if not workspace.settings.get("model.weights"):
        raise ConfigError(
            f"Network {workspace.settings['model.network']} has no weights to answer with",
            expected="--weights imagenet, or a file of weights with ImageNet's classes",
            hint="To answer with a network that was trained here, name its file with --model",
        )
    from pipeline.train.strategy import configure_inference

    fixed = {"model.classes": IMAGENET_CLASSES, "model.classifier": "keep"}
    settings = {"model.signal_check": "off"} | dict(workspace.settings) | fixed
    resolved = workspace.with_settings(None, settings).resolve(["build"])
    with workspace.hold():
        configure_inference()
        runner = workspace.runner(stages=NETWORK_STAGES, subfolder="networks")
        built = list(runner.run(resolved, ["build"], NoTracker()))[-1]
    path = str(built.directory / SavedModel.MODEL_FILE)
    release = open_release(path, resolved.config.tracking, workspace.directory)
    title = f"{resolved.config.model.network} with {workspace.settings['model.weights']}"
    return release.model_copy(update={"name": title})


def open_named_classifier(workspace: Workspace, model: str = "") -> Classifier:
    """Open the champion, or the model that is named, after its files were verified."""
    release = open_named_release(workspace, model)  # before TensorFlow: it may not be there
    from pipeline.train.strategy import configure_inference

    configure_inference()
    from pipeline.release.classify import load_classifier

    return load_classifier(release)


def serve_model(workspace: Workspace, model: str) -> None:
    """Answer over HTTP until SIGINT or SIGTERM; follow the alias if the model is named by one."""
    config = workspace.resolve_for_store().config
    reference = workspace.model_reference(model)

    def describe_version() -> str:
        version = resolve_version(reference, config.tracking, workspace.directory)
        return f"{version.number} {version.release_sha256}"

    def find_release() -> Release:
        return open_release(reference, config.tracking, workspace.directory)

    find_release()  # an error is shown before TensorFlow starts
    from pipeline.train.strategy import configure_inference

    configure_inference()
    from pipeline.serve.service import run_service

    follows = "@" in reference.partition(":/")[2]
    run_service(
        find_release,
        config.serve,
        log=workspace.observer.notified,
        identify_release=describe_version if follows else None,
    )


def export_model(
    workspace: Workspace,
    target: str,
    model: str = "",
    *,
    int8: bool = False,
    output: Path | str | None = None,
) -> ExportRecord:
    """Write a model for another runtime, if it answers real images there as it does here.

    The images are the release's golden ones and the first of the test split of the selected
    dataset.

    Args:
        workspace: the work directory.
        target: `savedmodel`, `onnx` or `litert`.
        model: as `open_named_release` takes it.
        int8: LiteRT in 8-bit integers, whose cost in accuracy is measured on the test split.
        output: the folder to make; by default one below `exports/`.

    Raises:
        ConfigError: there is no such model or format, or a package is missing.
        GateError: the export does not answer as the model does, or integers cost too much.
    """
    release = open_named_release(workspace, model)
    from pipeline.train.strategy import configure_inference

    configure_inference()
    from pipeline.export.export import PARITY_IMAGES, export_release

    dataset = _selected_dataset(workspace, release)
    golden = [(release.directory / image.file).read_bytes() for image in release.golden]
    test = itertools.islice(_labeled_images(dataset, "test"), PARITY_IMAGES)
    suffix = "int8" if int8 else ""
    parts = (release.name.removesuffix(".keras"), release.version, target, suffix)
    name = "-".join(filter(None, parts))
    return export_release(
        release,
        target,
        Path(output) if output else workspace.directory / "exports" / name,
        golden + [encoded for encoded, _ in test],
        int8=int8,
        calibration=_labeled_images(dataset, "train"),
        test=_labeled_images(dataset, "test"),
        progress=workspace.observer.notified,
    )


def _selected_dataset(workspace: Workspace, release: Release) -> DatasetArtifact | None:
    """Return the dataset that the last command used, if it has the model's classes."""
    runner = workspace.runner()
    folder = runner.selection.selected_folder("ingest")
    if folder is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        dataset = DatasetArtifact.read(runner.results.folder_named(folder))
        if not release.class_names or dataset.class_names == release.class_names:
            return dataset
    return None


def _labeled_images(dataset: DatasetArtifact | None, split: str) -> Iterator[tuple[bytes, int]]:
    """Yield the images of a split as files' bytes with their class ids; none without a dataset."""
    if dataset is None:
        return
    from pipeline.data.loader import load_split, read_encoded_images

    for encoded, _, label in read_encoded_images(load_split(dataset, split, in_memory=False)):
        yield encoded, label


def roll_back(workspace: Workspace, version: str | None) -> tuple[str, Version]:
    """Make an earlier version the champion again; return the number of the one that was, and it."""
    from pipeline.release import rollback

    return rollback.roll_back(workspace.registry(), version)


def predict_images(
    workspace: Workspace,
    model: str | Classifier,
    paths: Sequence[str | os.PathLike[str]],
    *,
    top: int,
    strict: bool,
    progress: Callable[[int, int | None, int], None],
) -> Predictions:
    """Return the guesses for images, in order; arguments as of `pipeline.api.predict`."""
    from pipeline.release.image_paths import expand_paths
    from pipeline.release.predict import Predictions, predict_files

    files = list(expand_paths([os.fspath(path) for path in paths]))  # before anything heavy
    classifier = open_named_classifier(workspace, model) if isinstance(model, str) else model
    found = predict_files(classifier, files, top=top, strict=strict, progress=progress)
    return Predictions(classifier.release, len(files), found)
