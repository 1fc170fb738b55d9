"""The train stage."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import (
    DatasetArtifact,
    ModelArtifact,
    TrainingResult,
    digest_of,
    file_sha256,
)
from pipeline.config.train import TrainConfig
from pipeline.engine.stage import Context, stage

if TYPE_CHECKING:
    from pipeline.data.loader import LoadedSplit
    from pipeline.train.loop import Training
    from pipeline.train.state import State

_SHOWN_IMAGES = 16


def take_part(
    config: TrainConfig, dataset: DatasetArtifact, model: ModelArtifact, context: Context
) -> None:
    """Train as one of several workers beside the chief, who alone writes anything."""
    from pipeline.train.loop import fit

    state, training = _begin(config, dataset, model, context)
    with contextlib.closing(fit(state, training)) as epochs:
        for _ in epochs:
            pass


@stage(resumable=True, take_part=take_part)
def train(
    config: TrainConfig, dataset: DatasetArtifact, model: ModelArtifact, context: Context
) -> TrainingResult:
    """Train the network on one device or on many, and keep the weights of its best epoch."""
    from pipeline.model.weights import load_model, save_model
    from pipeline.reports.training import write_history, write_training_images
    from pipeline.train import loop
    from pipeline.train.strategy import describe_runtime

    context.run.set_tags({"seed": config.seed, **describe_runtime()}, summary=True)
    state, training = _begin(config, dataset, model, context)
    context.run.set_tags({"training_images": training.train.where})
    write_training_images(*_shown(training.train, training.config, model), context.report_directory)
    with contextlib.closing(loop.fit(state, training)) as epochs:
        for epoch in epochs:
            numbers = {
                name: value for name, value in epoch.items() if name not in ("epoch", "time")
            }
            context.run.log_metrics(numbers, step=int(epoch["epoch"]), at=epoch["time"])

    best = loop.best_epoch(state.history)
    kept = load_model(
        model.model_path
    )  # outside the strategy's scope, so that the file knows nothing of devices
    kept.set_weights(state.best)
    path = context.directory / TrainingResult.MODEL_FILE
    save_model(kept, path)
    write_history(state.history, int(best["epoch"]), context.report_directory)
    return TrainingResult(
        directory=context.directory,
        model_sha256=file_sha256(path),
        **model.network(),
        best_epoch=int(best["epoch"]),
        epochs=len(state.history),
        validation_top1_error=best["validation_top1_error"],
        history_sha256=digest_of([loop.without_clock(entry) for entry in state.history]),
    )


def _begin(
    config: TrainConfig, dataset: DatasetArtifact, model: ModelArtifact, context: Context
) -> tuple[State, Training]:
    """Return the state at the first step and what the loop needs besides."""
    from pipeline.data.loader import load_split
    from pipeline.model.weights import load_model
    from pipeline.train.loop import Training
    from pipeline.train.state import prepare
    from pipeline.train.strategy import make_devices

    config, devices = as_fidelity_says(config, model.fidelity), make_devices()
    state = prepare(lambda: load_model(model.verified_model_path()), config, devices)

    def progress(done: int, total: int, detail: str) -> None:
        context.progress(
            done * config.global_batch_size, total * config.global_batch_size, "images", detail
        )

    return state, Training(
        load_split(dataset, "train"),
        load_split(dataset, "validation"),
        config,
        devices,
        context.scratch_directory / "checkpoint.npz",
        (
            context.report_directory / "profile"
            if config.profile_steps and devices.cluster.is_chief
            else None
        ),
        progress,
        context.say,
    )


def as_fidelity_says(config: TrainConfig, fidelity: str) -> TrainConfig:
    """Return the settings with a choice of the code or the paper of 2012 in place of `auto`."""
    update = {"color_mode": fidelity} if config.color_mode == "auto" else {}
    update |= (
        {"bias_rate": "double" if fidelity == "code" else "same"}
        if config.bias_rate == "auto"
        else {}
    )
    return config.model_copy(update=update)


def _shown(images: LoadedSplit, config: TrainConfig, model: ModelArtifact) -> tuple[Any, list[str]]:
    """Return the first images that training sees, uint8 [16, size, size, 3] in [0, 255], and what they are."""
    from pipeline.data.augment import augment_batch
    from pipeline.data.training_batches import make_training_batches

    batch = next(iter(make_training_batches(images, config, image_size=model.image_size, epoch=0)))
    pixels, *found = (
        part if part is None else part.numpy()[:_SHOWN_IMAGES]
        for part in augment_batch(batch, config, images.dataset)
    )
    names = [
        [model.class_names[label][:18] for label in labels]
        for labels in found[:2]
        if labels is not None
    ]
    if found[2] is None:
        return pixels, names[0]
    return pixels, [
        f"{share:.0%} {one}\n{1 - share:.0%} {other}"
        for one, other, share in zip(*names, found[2], strict=True)
    ]
