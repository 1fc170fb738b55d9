"""The train stage."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    from pipeline.arrays import Images, Network
    from pipeline.data.loader import LoadedSplit
    from pipeline.train.finetune import Mode
    from pipeline.train.loop import Training
    from pipeline.train.state import TrainingState
    from pipeline.train.strategy import Devices

_SAMPLE_IMAGES = 16


def train_as_worker(
    config: TrainConfig, dataset: DatasetArtifact, model: ModelArtifact, context: Context
) -> None:
    """Train as one of several workers beside the chief, which alone writes.

    The chief fits the classifier of a fine-tuning alone; the others wait for its weights.
    """
    from pipeline.train.loop import train_epochs

    job = _prepare_job(config, dataset, model, context)
    # The others wait here until the chief has fitted the classifier.
    if job.mode == "head" or (job.mode == "full" and not job.devices.broadcast_from_chief(1.0)):
        return
    state, training = _prepare_training(job, context)
    with contextlib.closing(train_epochs(state, training)) as epochs:
        for _ in epochs:
            pass


def list_solvers(config: TrainConfig, model: ModelArtifact, **_: object) -> tuple[str, ...]:
    """Return the libraries that fit the classifier of a fine-tuning; none without one."""
    automatic = config.finetune == "auto" and model.pretrained == "imagenet"
    tuned = automatic or config.finetune in ("head", "full")
    return ("scikit-learn", "scipy") if tuned else ()


@stage(
    resumable=True,
    take_part=train_as_worker,
    chosen_packages=list_solvers,
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
    from pipeline.model.weights import save_model
    from pipeline.reports.store import write_report_data
    from pipeline.train.loop import remove_clock_readings
    from pipeline.train.strategy import describe_runtime

    context.run.set_tags({"seed": config.seed, **describe_runtime()}, summary=True)
    job = _prepare_job(config, dataset, model, context)
    context.run.set_tags({"training_images": job.train.location, "finetune": job.mode})
    images, descriptions = _collect_training_sample(job, model)
    kept = _fine_tune(job, context) if job.mode != "off" else _train_network(job, context)
    path = context.directory / TrainingResult.MODEL_FILE
    save_model(kept.network, path)
    values = {"history": kept.history, "finetune": kept.finetune, **descriptions}
    write_report_data(context.directory, values, {"images": images})
    return TrainingResult(
        directory=context.directory,
        model_sha256=file_sha256(path),
        **model.network_fields(),
        finetuned=kept.finetuned,
        best_epoch=kept.best_epoch,
        epochs=len(kept.history),
        validation_top1_error=kept.validation_top1_error,
        history_sha256=digest_of([remove_clock_readings(entry) for entry in kept.history]),
    )


@dataclass(frozen=True)
class _Job:
    """What is trained: settings with every `auto` decided, both splits, devices and network.

    `classifier_path` is the file of the classifier that phase one of a fine-tuning fitted.
    """

    config: TrainConfig
    mode: Mode
    train: LoadedSplit
    validation: LoadedSplit
    devices: Devices
    model: ModelArtifact
    classifier_path: Path

    def load_network(self) -> Network:
        """Return the network before training, with the fitted classifier where there is one."""
        from pipeline.model.weights import load_model
        from pipeline.train.finetune import install_classifier
        from pipeline.train.head import read_head

        network = load_model(self.model.verified_model_path())
        if self.mode != "off" and self.classifier_path.exists():
            install_classifier(network, read_head(self.classifier_path))
        return network


@dataclass(frozen=True)
class _Kept:
    """A network that is kept, and how it came about; fields as of the record."""

    network: Network
    validation_top1_error: float
    finetuned: Literal["", "head", "full"] = ""
    best_epoch: int = 0
    history: Sequence[dict[str, float]] = ()
    finetune: Mapping[str, Any] = field(default_factory=dict)


def _prepare_job(
    config: TrainConfig, dataset: DatasetArtifact, model: ModelArtifact, context: Context
) -> _Job:
    from pipeline.data.loader import load_split
    from pipeline.train.finetune import choose_mode
    from pipeline.train.strategy import list_devices, make_devices

    config, devices = apply_fidelity(config, model.fidelity), make_devices()
    on_gpu = any("GPU" in name for name in list_devices())
    return _Job(
        config,
        choose_mode(config, model, on_gpu=on_gpu),
        load_split(dataset, "train"),
        load_split(dataset, "validation"),
        devices,
        model,
        context.scratch_directory / "classifier.npz",
    )


def _fine_tune(job: _Job, context: Context) -> _Kept:
    """Return the network after phase one, or after phase two where that is wanted and better."""
    from pipeline.train.finetune import explain_left_out, find_wrong_answers, is_better

    first = _tune_classifier(job, context)
    if job.mode == "head":
        return first
    before = find_wrong_answers(first.network, job.validation)
    batch_size = _plan_training(job).global_batch_size
    reason = explain_left_out(before, batch_size)
    job.devices.broadcast_from_chief(0.0 if reason else 1.0)  # the others wait for this
    if reason:
        context.notify(f"the upper blocks are not trained: {reason}")
        return replace(first, finetune={**first.finetune, "left_out": reason})
    if batch_size < job.config.global_batch_size:
        context.notify(
            f"the upper blocks are trained with {batch_size} images per step: the training split"
            f" has {len(job.train)}, and train.global_batch_size is {job.config.global_batch_size}"
        )
    second = _train_network(job, context)
    after = find_wrong_answers(second.network, job.validation)
    better, p_value = is_better(before, after)
    comparison = {
        "images": len(before),
        "wrong_before": int(before.sum()),
        "wrong_after": int(after.sum()),
        "p_value": p_value,
        "better": better,
    }
    finetune = {**first.finetune, "comparison": comparison}
    if better:
        return replace(second, finetuned="full", finetune=finetune)
    context.notify(
        f"training the upper blocks changed {comparison['wrong_before']} wrong validation answers"
        f" into {comparison['wrong_after']} of {len(before)}, which may be chance (p ="
        f" {p_value:.2g}): the classifier on frozen features is kept"
    )
    return replace(first, history=second.history, finetune=finetune)


def _tune_classifier(job: _Job, context: Context) -> _Kept:
    """Return the network with the classifier that fits the features of the training images."""
    from pipeline.train.finetune import fit_classifier
    from pipeline.train.head import write_head

    splits = (job.train, job.validation)
    folder = context.scratch_directory / "features"
    fitted = fit_classifier(job.load_network(), splits, job.config, folder, context.progress)
    write_head(fitted.head, job.classifier_path)
    if note := fitted.explain_edge():
        context.notify(note)
    context.run.log_metrics({f"head_{name}": value for name, value in fitted.numbers.items()})
    return _Kept(
        job.load_network(),
        fitted.numbers["validation_top1_error"],
        finetuned="head",
        finetune={"head": fitted.describe()},
    )


def _train_network(job: _Job, context: Context) -> _Kept:
    """Return the network with the weights of the best epoch of the training loop."""
    from pipeline.train import loop

    state, training = _prepare_training(job, context)
    with contextlib.closing(loop.train_epochs(state, training)) as epochs:
        for epoch in epochs:
            numbers = {
                name: value for name, value in epoch.items() if name not in ("epoch", "time")
            }
            context.run.log_metrics(numbers, step=int(epoch["epoch"]), at=epoch["time"])
    best = loop.choose_best_epoch(state.history, by_loss=training.by_loss)
    # Loaded outside the strategy's scope, so that the file holds nothing of devices.
    network = job.load_network()
    network.set_weights(state.best_weights)
    return _Kept(
        network,
        best["validation_top1_error"],
        best_epoch=int(best["epoch"]),
        history=state.history,
    )


def _plan_training(job: _Job) -> TrainConfig:
    """Return the settings of the training loop: those of phase two in a fine-tuning."""
    from pipeline.train.finetune import plan_phase_two

    if job.mode == "full":
        return plan_phase_two(job.config, len(job.train), job.devices.replicas)
    return job.config


def _prepare_training(job: _Job, context: Context) -> tuple[TrainingState, Training]:
    """Return the state at the first step and what the loop needs besides."""
    from pipeline.train.finetune import freeze_lower_blocks
    from pipeline.train.loop import Training
    from pipeline.train.state import prepare_state

    config, devices = _plan_training(job), job.devices
    rates: dict[str, float] = {}

    def load_network() -> Network:
        network = job.load_network()
        if job.mode == "full":
            rates.update(freeze_lower_blocks(network, config.finetune_layer_decay))
        return network

    state = prepare_state(load_network, config, devices)
    state.rate_fractions = rates

    def report_progress(done: int, total: int, detail: str) -> None:
        context.progress(
            done * config.global_batch_size, total * config.global_batch_size, "images", detail
        )

    return state, Training(
        job.train,
        job.validation,
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
        by_loss=job.mode == "full",
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


def _collect_training_sample(job: _Job, model: ModelArtifact) -> tuple[Images, dict[str, Any]]:
    """Return the first images that training sees, uint8 [16, height, width, 3], and their classes.

    The classes as `labels` and, of mixed images, `partners` and `fractions` of the first class in
    [0, 1]; else these are empty.
    """
    from pipeline.data.augment import augment_batch
    from pipeline.data.training_batches import make_training_batches

    images, config = job.train, job.config
    if job.mode != "off":  # which needs no batch, or chooses its own
        fitting = len(images) // config.batch_multiple * config.batch_multiple or len(images)
        batch_size = min(config.global_batch_size, fitting)
        config = config.model_copy(update={"global_batch_size": batch_size})
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
