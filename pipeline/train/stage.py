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
from pipeline.reports.training import draw_training_pages

if TYPE_CHECKING:
    from pipeline.arrays import Images
    from pipeline.data.loader import LoadedSplit
    from pipeline.train.loop import Training
    from pipeline.train.state import TrainingState

_SAMPLE_IMAGES = 16


def train_as_worker(
    config: TrainConfig, dataset: DatasetArtifact, model: ModelArtifact, context: Context
) -> None:
    """Train as one of several workers beside the chief, which alone writes."""
    from pipeline.train.loop import train_epochs

    state, training = _prepare_training(config, dataset, model, context)
    with contextlib.closing(train_epochs(state, training)) as epochs:
        for _ in epochs:
            pass


@stage(
    resumable=True,
    take_part=train_as_worker,
    draw=draw_training_pages,
    # They decide when a call is given up, when a checkpoint is saved, which use of the
    # machine is recorded and what an error advises; they change no number of a finished training.
    without_effect=[
        "pipeline.train.checkpoint_saver",
        "pipeline.train.diagnosis",
        "pipeline.train.profiling",
        "pipeline.train.watchdog",
    ],
)
def train(
    config: TrainConfig, dataset: DatasetArtifact, model: ModelArtifact, context: Context
) -> TrainingResult:
    """Train the network and keep the weights of its best epoch."""
    from pipeline.model.weights import load_model, save_model
    from pipeline.reports.store import write_report_data
    from pipeline.train import loop
    from pipeline.train.strategy import describe_runtime

    context.run.set_tags({"seed": config.seed, **describe_runtime()}, summary=True)
    state, training = _prepare_training(config, dataset, model, context)
    context.run.set_tags({"training_images": training.train.location})
    images, descriptions = _collect_training_sample(training.train, training.config, model)
    with contextlib.closing(loop.train_epochs(state, training)) as epochs:
        for epoch in epochs:
            numbers = {
                name: value for name, value in epoch.items() if name not in ("epoch", "time")
            }
            context.run.log_metrics(numbers, step=int(epoch["epoch"]), at=epoch["time"])

    best = loop.choose_best_epoch(state.history)
    kept = load_model(
        model.model_path
    )  # outside the strategy's scope, so that the file holds nothing of devices
    kept.set_weights(state.best_weights)
    path = context.directory / TrainingResult.MODEL_FILE
    save_model(kept, path)
    write_report_data(
        context.directory, {"history": state.history, **descriptions}, {"images": images}
    )
    return TrainingResult(
        directory=context.directory,
        model_sha256=file_sha256(path),
        **model.network_fields(),
        best_epoch=int(best["epoch"]),
        epochs=len(state.history),
        validation_top1_error=best["validation_top1_error"],
        history_sha256=digest_of([loop.remove_clock_readings(entry) for entry in state.history]),
    )


def _prepare_training(
    config: TrainConfig, dataset: DatasetArtifact, model: ModelArtifact, context: Context
) -> tuple[TrainingState, Training]:
    """Return the state at the first step and what the loop needs besides."""
    from pipeline.data.loader import load_split
    from pipeline.model.weights import load_model
    from pipeline.train.loop import Training
    from pipeline.train.state import prepare_state
    from pipeline.train.strategy import make_devices

    config, devices = apply_fidelity(config, model.fidelity), make_devices()
    state = prepare_state(lambda: load_model(model.verified_model_path()), config, devices)

    def report_progress(done: int, total: int, detail: str) -> None:
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
        report_progress,
        context.notify,
    )


def apply_fidelity(config: TrainConfig, fidelity: str) -> TrainConfig:
    """Return the settings with a choice of the code or the paper of 2012 instead of `auto`."""
    update = {"color_mode": fidelity} if config.color_mode == "auto" else {}
    update |= (
        {"bias_rate": "double" if fidelity == "code" else "same"}
        if config.bias_rate == "auto"
        else {}
    )
    return config.model_copy(update=update)


def _collect_training_sample(
    images: LoadedSplit, config: TrainConfig, model: ModelArtifact
) -> tuple[Images, dict[str, Any]]:
    """Return the first images that training sees, uint8 [16, size, size, 3], and their classes.

    The classes as `labels` and, of mixed images, `partners` and `fractions` of the first class in
    [0, 1]; else these are empty.
    """
    from pipeline.data.augment import augment_batch
    from pipeline.data.training_batches import make_training_batches

    batch = next(iter(make_training_batches(images, config, image_size=model.image_size, epoch=0)))
    pixels, *classes = (
        [] if part is None else part.numpy()[:_SAMPLE_IMAGES]
        for part in augment_batch(batch, config, images.dataset)
    )
    labels, partners, fractions = classes
    return pixels, {
        "labels": [model.class_names[label] for label in labels],
        "partners": [model.class_names[label] for label in partners],
        "fractions": [float(fraction) for fraction in fractions],
    }
