"""Timings of trainings, each in a process of its own.

TensorFlow's devices are fixed once it runs. So `python -m pipeline.reproduce.timing` reads a spec
as JSON from standard input, trains, and writes one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import DatasetArtifact
from pipeline.config.model import ModelConfig
from pipeline.config.train import TrainConfig
from pipeline.engine.stage import Context
from pipeline.errors import PipelineError
from pipeline.reproduce.measurement import Measurement

if TYPE_CHECKING:
    from pipeline.data.loader import LoadedSplit
    from pipeline.train.strategy import Devices

_MIN_STEPS = 3
_WARM_UP_STEPS = 2  # the first compiles
_TIMEOUT_SECONDS = 900
_TINY_RATE = 1e-6  # a learning rate at which nothing is learned from noise, and nothing diverges
# The network of 2012 has 1,000 classes and crops of images of this size.
_CLASSES_OF_2012, _SHORT_SIDE_OF_2012 = 1000, 256


def time_on_one_and_two_devices(
    spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context
) -> Measurement:
    """Time networks on one device and on two.

    In the order one, two, two, one, one, two, so that slow changes of speed affect both alike.

    Args:
        spec: as for `time_in_process`, with `devices`, the setting for one device and for two, and
            `pairs`, the number of timings of each; `networks` are `half` and `whole`.
        dataset: whose kind of images.
        context: of the experiment.
    """
    one, two = spec["devices"]
    numbers: dict[str, float] = {}
    for pair in range(spec["pairs"]):
        for devices in (one, two) if pair % 2 == 0 else (two, one):
            context.progress(len(numbers), 3 * spec["pairs"], "timings", f"training on {devices}")
            networks = spec["networks"] if devices == one else {"whole": spec["networks"]["whole"]}
            timing = time_in_process(
                {
                    **spec,
                    "networks": networks,
                    "settings": {**spec["settings"], "devices": devices},
                },
                dataset,
            )
            context.run.set_tags(
                {f"hardware.{'one' if devices == one else 'two'}": timing["hardware"]}
            )
            speeds = timing["images_per_second"]
            numbers |= (
                {f"half/{pair}": speeds["half"], f"one/{pair}": speeds["whole"]}
                if devices == one
                else {f"two/{pair}": speeds["whole"]}
            )
    context.run.log_metrics(numbers)
    return Measurement(directory=context.directory, name="replicas", numbers=numbers)


def time_on_each_device(
    spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context
) -> Measurement:
    """Time the network of 2012 on each device, in alternating order.

    Args:
        spec: as for `time_in_process`, with `devices`, the settings to compare, and `pairs`, the
            number of timings of each; the network is `paper`.
        dataset: whose colors; its images are made as large and its classes as many as in 2012.
        context: of the experiment.
    """
    names = tuple(f"class {number}" for number in range(_CLASSES_OF_2012))
    large = dataset.model_copy(
        update={"class_names": names, "class_counts": {}, "short_side": _SHORT_SIDE_OF_2012}
    )
    numbers: dict[str, float] = {}
    for pair in range(spec["pairs"]):
        for device in spec["devices"] if pair % 2 == 0 else spec["devices"][::-1]:
            context.progress(
                len(numbers),
                len(spec["devices"]) * spec["pairs"],
                "timings",
                f"training on {device}",
            )
            timing = time_in_process(
                {**spec, "settings": {**spec["settings"], "devices": device}}, large
            )
            context.run.set_tags({f"hardware.{device.partition(':')[0]}": timing["hardware"]})
            numbers[f"{device}/{pair}"] = timing["images_per_second"]["paper"]
    context.run.log_metrics(numbers)
    return Measurement(directory=context.directory, name="speed", numbers=numbers)


def time_in_process(spec: Mapping[str, Any], dataset: DatasetArtifact) -> dict[str, Any]:
    """Return the timing of networks in a process of its own.

    Args:
        spec: `networks` by name and `settings`, of models and of a training; `steps` and `seconds`,
            the limits of a timing.
        dataset: whose kind of images; they are noise.

    Returns:
        `images_per_second` of each network, `replicas`, and the `hardware` of the process.

    Raises:
        PipelineError: the process failed.
    """
    # This process may hold memory of the same GPU; without this, TensorFlow asks for all of it.
    environment = {**os.environ, "TF_FORCE_GPU_ALLOW_GROWTH": "true", "TF_CPP_MIN_LOG_LEVEL": "3"}
    arguments = [sys.executable, "-m", __name__]
    request = json.dumps({**spec, "dataset": dataset.model_dump(mode="json")})
    try:
        child = subprocess.run(
            arguments,
            input=request,
            capture_output=True,
            text=True,
            env=environment,
            timeout=_TIMEOUT_SECONDS,
            check=True,
        )
        timing: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        message = (
            error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        ).strip().splitlines() or [str(error)]
        raise PipelineError(
            f"A timing on {spec['settings']['devices']} failed: {message[-1][:300]}",
            expected="a process of its own to train for some steps",
            hint="If the device ran out of memory, type `alexnet reproduce` with this claim alone",
        ) from error
    return timing


def time_networks(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of `time_in_process`, measured in this process.

    Its devices are fixed from then on.
    """
    from pipeline.train.strategy import configure_runtime, make_devices

    config = TrainConfig.model_validate(spec["settings"])
    configure_runtime(config)
    dataset, devices = DatasetArtifact.model_validate(spec["dataset"]), make_devices()
    speeds = {
        name: measure_training_speed(
            ModelConfig.model_validate(model),
            config,
            dataset,
            devices,
            steps=spec["steps"],
            seconds=spec["seconds"],
        )
        for name, model in spec["networks"].items()
    }
    return {
        "images_per_second": speeds,
        "replicas": devices.replicas,
        "hardware": describe_devices(),
    }


def measure_training_speed(
    model: ModelConfig,
    config: TrainConfig,
    dataset: DatasetArtifact,
    devices: Devices,
    *,
    steps: int,
    seconds: float,
) -> float:
    """Return the training speed of a fresh network after its compilation, in images/s.

    Input and augmentation are included.

    Args:
        model: the network's settings.
        config: the training's.
        dataset: whose classes, colors and size of images.
        devices: to train on.
        steps: upper limit of the timed steps.
        seconds: limit of the timed duration; at least three steps are timed.
    """
    import tensorflow as tf

    from pipeline.data.training_batches import make_training_batches
    from pipeline.model.networks import build_network
    from pipeline.train.stage import apply_fidelity
    from pipeline.train.state import prepare_state
    from pipeline.train.step import compile_training

    config = apply_fidelity(config, model.alexnet.fidelity)
    config = config.model_copy(update={"class_weights": False})
    images = make_noise_split(dataset, 2 * config.global_batch_size)
    mean, std, classes = dataset.channel_mean, dataset.channel_std, len(dataset.class_names)
    state = prepare_state(
        lambda: build_network(model, num_classes=classes, channel_mean=mean, channel_std=std),
        config,
        devices,
    )
    state.optimizer.learning_rate.assign(_TINY_RATE)
    train_steps = compile_training(state, images, config, devices)
    # Of two steps each; some batches more, so that the last step does not wait.
    epochs = (_WARM_UP_STEPS + 1 + max(steps, _MIN_STEPS)) // 2 + 2
    batches = devices.distribute_batches(
        make_training_batches(images, config, image_size=model.image_size, epoch=0, epochs=epochs)
    )

    def time_steps(count: int) -> float:
        started = time.perf_counter()
        train_steps(batches, tf.constant(count, tf.int64), tf.constant(True)).numpy()
        return time.perf_counter() - started

    time_steps(_WARM_UP_STEPS)
    count = max(_MIN_STEPS, min(steps, int(seconds / time_steps(1))))
    return config.global_batch_size * count / time_steps(count)


def make_noise_split(dataset: DatasetArtifact, count: int) -> LoadedSplit:
    """Return training images of noise with the image size and classes of a dataset."""
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


def list_visible_gpus(config: TrainConfig) -> list[str]:
    """Return the numbers of the GPUs that the settings let TensorFlow use.

    TensorFlow is configured so in this process from then on.
    """
    from pipeline.train.strategy import configure_runtime

    configure_runtime(config)
    import tensorflow as tf

    return [device.name.rpartition(":")[2] for device in tf.config.get_visible_devices("GPU")]


def describe_processors() -> str:
    """Return the number of processors that this process may use as text."""
    count = len(os.sched_getaffinity(0))
    return f"{count} processor{'' if count == 1 else 's'}"


def describe_devices() -> str:
    """Return the names of the GPUs of this process, or the number of its processors, as text."""
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    return (
        ", ".join(
            tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus
        )
        or describe_processors()
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(time_networks(json.load(sys.stdin))) + "\n")
