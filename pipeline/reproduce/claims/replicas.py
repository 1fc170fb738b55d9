"""Claim: the network on two GPUs takes slightly less time to train than half of it on one.

TensorFlow's devices are fixed once it runs, so each timing is a process of its own: `python -m
pipeline.reproduce.claims.replicas` reads what to time from its input and writes one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import DatasetArtifact
from pipeline.config.model import ModelConfig
from pipeline.config.settings import Config
from pipeline.config.train import TrainConfig
from pipeline.engine.stage import Context
from pipeline.errors import PipelineError
from pipeline.reproduce.arms import Arm
from pipeline.reproduce.lab import Experiment, Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion, Figure, Row
from pipeline.reproduce.verdict import Question, find, not_measured

if TYPE_CHECKING:
    from pipeline.data.loader import LoadedSplit
    from pipeline.train.strategy import Devices

_PAIRS = 3
_STEPS, _SECONDS = 30, 4.0  # a timing has so many steps, fewer where they take longer
_MIN_STEPS = 3
_WARM_UP_STEPS = 2  # the first compiles
_PATIENCE_SECONDS = 900
_NO_STEP = 1e-6  # a learning rate at which nothing is learned from noise, and nothing diverges
_RATIO = Question(
    what=(
        "images a second of the two-tower network on two devices, over those of the network with"
        " half the filters on one"
    ),
    unit="times",
    published=None,
    source="qualitative: paper, section 3.2, 'slightly less time'",
    least=1.0,
)
_ARMS = {
    "half": "half the filters, one device",
    "one": "two towers, one device",
    "two": "two towers, two devices",
}


def arms(_config: Config) -> tuple[Arm, ...]:
    """Return nothing: no network needs to be trained to its end."""
    return ()


def conclude(lab: Lab, _measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare how fast the networks train."""
    model, gpus = (
        lab.config.model,
        visible_gpus(lab.config.train),
    )  # first: it imports TensorFlow as it is to be
    from pipeline.model.networks import find_network
    from pipeline.reports.claim_figures import draw_arms

    if find_network(model.network).layers.towers < 2:
        why = (
            f"The network {model.network} has one tower. Type `alexnet reproduce replicas --set"
            " model.network=small`, or `paper`."
        )
        return Conclusion((not_measured(_RATIO, why),))
    devices = [f"gpu:{gpus[0]}", f"gpu:{gpus[0]},{gpus[1]}"] if len(gpus) > 1 else ["cpu", "cpu:2"]
    spec = {
        "devices": devices,
        "networks": {
            "half": half_of(model).model_dump(mode="json"),
            "whole": model.model_dump(mode="json"),
        },
        "settings": shared_by(2, lab.config.train).model_dump(mode="json"),
        "pairs": _PAIRS,
        "steps": _STEPS,
        "seconds": _SECONDS,
    }
    made = lab.perform(
        f"replicas-{devices[1].replace(':', '').replace(',', '-')}", spec, time_in_turns
    )
    speeds = {arm: [made.numbers[f"{arm}/{pair}"] for pair in range(_PAIRS)] for arm in _ARMS}
    rows = tuple(
        Row(
            arm=label,
            setting=devices[arm == "two"],
            values={"images_per_second": tuple(speeds[arm])},
        )
        for arm, label in _ARMS.items()
    )
    draw_arms(
        rows, "images_per_second", lab.folder / "speeds.png", xlabel="training images a second"
    )
    caption = (
        "Images a second while training, a dot a timing. The claim is that the lowest row is"
        " faster than the first."
    )
    ratios = [two / half for two, half in zip(speeds["two"], speeds["half"], strict=True)]
    why = (
        "There are no two GPUs here, and two replicas on the processor share its cores, so that"
        " their speed says nothing of two GPUs. `alexnet reproduce replicas` on a machine with two"
        " GPUs measures it."
    )
    finding = find(_RATIO, ratios) if len(gpus) > 1 else not_measured(_RATIO, why)
    batch = shared_by(2, lab.config.train).global_batch_size
    return Conclusion(
        (finding,),
        rows,
        (Figure(file="speeds.png", caption=caption),),
        _notes(speeds, batch, on_gpus=len(gpus) > 1),
    )


def _notes(speeds: Mapping[str, Sequence[float]], batch: int, *, on_gpus: bool) -> tuple[str, ...]:
    """Say what was measured beside the claim, and how its two GPUs were others."""
    halves, ones, twos = (sum(speeds[arm]) / len(speeds[arm]) for arm in ("half", "one", "two"))
    where = "GPUs" if on_gpus else f"replicas on the same {processors()}"
    return (
        (
            f"The two-tower network trains at {twos / ones:.2f} times the images a second on two"
            f" {where} that it has on one, at {twos / halves:.2f} times those of the network with"
            f" half the filters; {batch} images a step in each, noise of a fixed seed."
        ),
        (
            "In 2012 each GPU held half of the network, and they exchanged activations. Here each"
            " has all of it and half of each batch (MirroredStrategy), and they exchange gradients."
            " Half of the network is `single_tower`, as in 2012; of `small` it is half of every"
            " layer, the hidden ones too."
        ),
    )


def processors() -> str:
    """Say how many processors this process may use."""
    count = len(os.sched_getaffinity(0))
    return f"{count} processor{'' if count == 1 else 's'}"


def half_of(model: ModelConfig) -> ModelConfig:
    """Return the one-GPU net of section 3.2, whose last convolution and hidden layers are those of the whole; of `small` half of all."""
    if model.network in ("paper", "caffenet"):
        return model.model_copy(update={"network": "single_tower"})
    half = {"width_multiplier": model.alexnet.width_multiplier / 2}
    return model.model_copy(update={"alexnet": model.alexnet.model_copy(update=half)})


def shared_by(devices: int, config: TrainConfig) -> TrainConfig:
    """Return the settings with the nearest smaller batch that so many devices can share."""
    unit = devices * config.batch_multiple
    return config.model_copy(
        update={"global_batch_size": max(unit, config.global_batch_size // unit * unit)}
    )


def visible_gpus(config: TrainConfig) -> list[str]:
    """Return the numbers of the GPUs that the settings let TensorFlow use, in this process and from now on."""
    from pipeline.train.strategy import configure_runtime

    configure_runtime(config)
    import tensorflow as tf

    return [device.name.rpartition(":")[2] for device in tf.config.get_visible_devices("GPU")]


def time_in_turns(
    spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context
) -> Measurement:
    """Time the networks on one device and on two.

    One, two, two, one, one, two, so that what changes with time hits both alike.
    """
    one, two = spec["devices"]
    numbers: dict[str, float] = {}
    for pair in range(spec["pairs"]):
        for devices in (one, two) if pair % 2 == 0 else (two, one):
            context.progress(len(numbers), 3 * spec["pairs"], "timings", f"training on {devices}")
            networks = spec["networks"] if devices == one else {"whole": spec["networks"]["whole"]}
            found = timing(
                {
                    **spec,
                    "networks": networks,
                    "settings": {**spec["settings"], "devices": devices},
                },
                dataset,
            )
            context.run.set_tags(
                {f"hardware.{'one' if devices == one else 'two'}": found["hardware"]}
            )
            speeds = found["images_per_second"]
            numbers |= (
                {f"half/{pair}": speeds["half"], f"one/{pair}": speeds["whole"]}
                if devices == one
                else {f"two/{pair}": speeds["whole"]}
            )
    context.run.log_metrics(numbers)
    return Measurement(directory=context.directory, name="replicas", numbers=numbers)


def timing(spec: Mapping[str, Any], dataset: DatasetArtifact) -> dict[str, Any]:
    """Return what a process of its own found of the spec.

    `images_per_second` of each network, and the `hardware` that it had.

    Args:
        spec: `networks` by name and `settings`, of models and of a training; `steps` and `seconds`,
            what a timing has at most.
        dataset: whose kind of images; they are noise.

    Raises:
        PipelineError: the process failed.
    """
    # This process may hold memory of the same GPU; without this, TensorFlow asks for all that there
    # is.
    environment = {**os.environ, "TF_FORCE_GPU_ALLOW_GROWTH": "true", "TF_CPP_MIN_LOG_LEVEL": "3"}
    words = [sys.executable, "-m", __name__]
    asked = json.dumps({**spec, "dataset": dataset.model_dump(mode="json")})
    try:
        child = subprocess.run(
            words,
            input=asked,
            capture_output=True,
            text=True,
            env=environment,
            timeout=_PATIENCE_SECONDS,
            check=True,
        )
        found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        said = (
            error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        ).strip().splitlines() or [str(error)]
        raise PipelineError(
            f"A timing on {spec['settings']['devices']} failed: {said[-1][:300]}. Expected a"
            " process of its own to train for some steps. Where the device's memory was short,"
            " type `alexnet reproduce` with this claim alone."
        ) from error
    return found


def time_networks(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `timing` says, in this process, whose devices are fixed from then on."""
    from pipeline.train.strategy import configure_runtime, make_devices

    config = TrainConfig.model_validate(spec["settings"])
    configure_runtime(config)
    dataset, devices = DatasetArtifact.model_validate(spec["dataset"]), make_devices()
    speeds = {
        name: images_per_second(
            ModelConfig.model_validate(model),
            config,
            dataset,
            devices,
            steps=spec["steps"],
            seconds=spec["seconds"],
        )
        for name, model in spec["networks"].items()
    }
    return {"images_per_second": speeds, "replicas": devices.replicas, "hardware": _hardware()}


def images_per_second(
    model: ModelConfig,
    config: TrainConfig,
    dataset: DatasetArtifact,
    devices: Devices,
    *,
    steps: int,
    seconds: float,
) -> float:
    """Return how many images a second a fresh network trains on, input and augmentation among it, after it is compiled.

    Args:
        model: the network's settings.
        config: the training's.
        dataset: whose classes, colors and size of images.
        devices: what to train on.
        steps: how many are timed at most.
        seconds: fewer are where they would take longer, but three.
    """
    import tensorflow as tf

    from pipeline.data.training_batches import make_training_batches
    from pipeline.model.networks import build_network
    from pipeline.train.stage import apply_fidelity
    from pipeline.train.state import prepare_state
    from pipeline.train.step import compile_training

    config = apply_fidelity(config, model.alexnet.fidelity)
    config = config.model_copy(update={"class_weights": False})
    images = noise(dataset, 2 * config.global_batch_size)
    mean, std, classes = dataset.channel_mean, dataset.channel_std, len(dataset.class_names)
    state = prepare_state(
        lambda: build_network(model, num_classes=classes, channel_mean=mean, channel_std=std),
        config,
        devices,
    )
    state.optimizer.learning_rate.assign(_NO_STEP)
    train_steps = compile_training(state, images, config, devices)
    epochs = (
        _WARM_UP_STEPS + 1 + max(steps, _MIN_STEPS)
    ) // 2 + 2  # of two steps each; some batches more, so that the last does not wait
    batches = devices.distribute_batches(
        make_training_batches(images, config, image_size=model.image_size, epoch=0, epochs=epochs)
    )

    def taken(count: int) -> float:
        started = time.perf_counter()
        train_steps(batches, tf.constant(count, tf.int64), tf.constant(True)).numpy()
        return time.perf_counter() - started

    taken(_WARM_UP_STEPS)
    count = max(_MIN_STEPS, min(steps, int(seconds / taken(1))))
    return config.global_batch_size * count / taken(count)


def noise(dataset: DatasetArtifact, count: int) -> LoadedSplit:
    """Return so many training images of noise, of a dataset's size and classes."""
    import numpy as np

    from pipeline.data.loader import LoadedSplit

    rng, side, classes = np.random.default_rng(0), dataset.short_side, len(dataset.class_names)
    labels = np.arange(count, dtype=np.int32) % classes
    counts = {
        **dataset.class_counts,
        "train": tuple(np.bincount(labels, minlength=classes).tolist()),
    }
    pixels = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    keys = tuple(str(number) for number in range(count))
    return LoadedSplit(
        dataset.model_copy(update={"class_counts": counts}), "train", labels, keys, pixels
    )


def _hardware() -> str:
    """Name the GPUs of this process, or say how many processors it has."""
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    return (
        ", ".join(
            tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus
        )
        or processors()
    )


EXPERIMENT = Experiment(
    "replicas",
    "Two GPUs train the whole network faster than one trains half of it",
    "Section 3.2: the network on two GPUs takes slightly less time to train than one with half as"
    " many filters in each convolution, whose last convolution and hidden layers are those of the"
    " whole, on one GPU. Here: images a second of both while training, on two devices and on one,"
    " with the same batch, by turns and each in a process of its own. A ratio above 1 is what the"
    " paper says; it gives no number.",
    arms,
    conclude,
)

if __name__ == "__main__":
    sys.stdout.write(json.dumps(time_networks(json.load(sys.stdin))) + "\n")
