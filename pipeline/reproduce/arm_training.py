"""The training of one arm with one seed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import DatasetArtifact
from pipeline.config.model import ModelConfig
from pipeline.config.train import TrainConfig
from pipeline.engine.stage import Context
from pipeline.files import write_text
from pipeline.reproduce.measurement import Measurement, hash_files
from pipeline.reproduce.scoring import find_wrong_answers, load_cached_split, take_first_images

if TYPE_CHECKING:
    from pipeline.arrays import Network
    from pipeline.data.loader import LoadedSplit
    from pipeline.train.state import TrainingState

# Training images that the training error is measured on, cropped as the test images are.
MAX_SCORED_TRAINING_IMAGES = 5000


@dataclass(frozen=True)
class ArmTraining:
    """A network under training and the epochs that it yields."""

    state: TrainingState
    epochs: Generator[dict[str, float]]


def train_arm(spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context) -> Measurement:
    """Train one arm with one seed and score it on the test split and on training images.

    The scored weights are those of the epoch with the lowest validation error. Training images are
    scored without dropout and random crops.
    """
    import numpy as np

    from pipeline.model.weights import save_model
    from pipeline.train.loop import choose_best_epoch

    training = start_training(spec, dataset, context, "checkpoint.npz", "")
    curve: list[dict[str, float]] = []
    with contextlib.closing(training.epochs) as epochs:
        for epoch in epochs:
            curve.append(epoch)
            context.run.log_metrics(
                {name: value for name, value in epoch.items() if name not in ("epoch", "time")},
                step=int(epoch["epoch"]),
            )
            if spec["goal"] and epoch["train_top1_error"] <= spec["goal"]:
                break
    network = build_arm_network(spec, dataset)
    train = take_first_images(load_cached_split(dataset.directory, "train"), spec["images"])
    network.set_weights(training.state.best_weights)
    save_model(network, context.directory / Measurement.MODEL_FILE)
    wrong = find_wrong_answers(network, load_cached_split(dataset.directory, "test"))
    np.save(context.directory / Measurement.WRONG_FILE, wrong)
    write_text(context.directory / Measurement.CURVE_FILE, json.dumps(curve))
    scored = take_first_images(train, MAX_SCORED_TRAINING_IMAGES)
    numbers = {
        "test_top1_error": float(wrong.mean()),
        "train_top1_error": float(find_wrong_answers(network, scored).mean()),
        "validation_top1_error": choose_best_epoch(curve)["validation_top1_error"],
        "last_train_top1_error": curve[-1]["train_top1_error"],
        "learning_rate": spec["train"]["learning_rate"],
        "epochs": float(len(curve)),
        "best_epoch": choose_best_epoch(curve)["epoch"],
        "images": float(len(train)),
        "images_per_second": float(np.median([epoch["images_per_second"] for epoch in curve])),
        "seconds": sum(epoch["seconds"] for epoch in curve),
    }
    numbers |= _measure_gradients(build_arm_network(spec, dataset), train) if spec["depth"] else {}
    context.run.log_metrics(numbers)
    # The curve holds durations, so it differs in each repetition.
    hashed = (Measurement.MODEL_FILE, Measurement.WRONG_FILE)
    return Measurement(
        directory=context.directory,
        name="training",
        numbers=numbers,
        files=(*hashed, Measurement.CURVE_FILE),
        sha256=hash_files(context.directory, hashed),
    )


def start_training(
    spec: Mapping[str, Any],
    dataset: DatasetArtifact,
    context: Context,
    checkpoint: str,
    detail: str,
) -> ArmTraining:
    """Return a training, which resumes from a checkpoint in the scratch folder if there is one.

    Args:
        spec: of the arm and seed.
        dataset: the prepared dataset.
        context: of the experiment.
        checkpoint: name of the checkpoint file in the scratch folder.
        detail: text that the progress begins with.
    """
    from pipeline.train.loop import Training, train_epochs
    from pipeline.train.stage import apply_fidelity
    from pipeline.train.state import prepare_state
    from pipeline.train.strategy import make_devices

    config = apply_fidelity(
        TrainConfig.model_validate(spec["train"]), spec["model"]["alexnet"]["fidelity"]
    )
    train = take_first_images(load_cached_split(dataset.directory, "train"), spec["images"])
    devices = make_devices()
    config = config.model_copy(
        update={"global_batch_size": min(config.global_batch_size, len(train))}
    )
    state = prepare_state(lambda: build_arm_network(spec, dataset), config, devices)

    def progress(done: int, total: int, text: str) -> None:
        batch = config.global_batch_size
        context.progress(
            done * batch, total * batch, "images", f"{detail}  {text}" if detail else text
        )

    path = context.scratch_directory / checkpoint
    training = Training(
        train,
        load_cached_split(dataset.directory, "validation"),
        config,
        devices,
        path,
        None,
        progress,
        context.notify,
    )
    return ArmTraining(state, train_epochs(state, training))


def build_arm_network(spec: Mapping[str, Any], dataset: DatasetArtifact) -> Network:
    """Return the network of an arm with its fresh weights."""
    from pipeline.model.networks import build_network
    from pipeline.reproduce.plain_network import build_plain_network

    model = ModelConfig.model_validate(spec["model"])
    classes, mean, std = len(dataset.class_names), dataset.channel_mean, dataset.channel_std
    if depth := spec["depth"]:
        return build_plain_network(
            depth, model, num_classes=classes, channel_mean=mean, channel_std=std
        )
    return build_network(model, num_classes=classes, channel_mean=mean, channel_std=std)


def _measure_gradients(network: Network, images: LoadedSplit) -> dict[str, float]:
    """Return the gradient norm of the loss by each layer's output, mean over a batch of images.

    Args:
        network: with fresh weights.
        images: whose first batch is used.
    """
    from pipeline.data.evaluation_batches import make_evaluation_batches
    from pipeline.model.signal import SIGNAL_IMAGES, measure_signal

    pixels, labels = next(
        iter(
            make_evaluation_batches(
                images, image_size=network.input_shape[1:3], batch_size=SIGNAL_IMAGES
            )
        )
    )
    return {
        f"gradient/{layer.layer}": layer.arriving
        for layer in measure_signal(network, pixels, labels).layers
    }
