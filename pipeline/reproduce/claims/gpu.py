"""Claim: it takes a GPU to train a network as large as this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.artifacts import DatasetArtifact
from pipeline.config.model import ModelConfig
from pipeline.config.settings import Config
from pipeline.config.train import TrainConfig
from pipeline.engine.stage import Context
from pipeline.reproduce.arms import Arm
from pipeline.reproduce.claims.replicas import processors, timing, visible_gpus
from pipeline.reproduce.lab import Experiment, Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion, Figure, Row
from pipeline.reproduce.verdict import Question, find, not_measured

_PAIRS = 3
_STEPS, _SECONDS = 30, 6.0
_CLASSES, _SHORT_SIDE, _IMAGE_SIZE = 1000, 256, 224
_BATCH = 128  # of 2012
_SMALL_BATCH = 32  # where only a processor is there, for which nothing is compared
_IMAGES_OF_2012 = 90 * 1_200_000  # 90 passes over 1.2 million images (section 5)
_RATIO = Question(
    what="images a second while training the network of 2012, on a GPU over on the processor",
    unit="times",
    published=None,
    source=(
        "no ratio was published: paper, section 1, and section 5, five to six days on two GTX 580"
    ),
    least=1.0,
)


def arms(_config: Config) -> tuple[Arm, ...]:
    """Return nothing: no network needs to be trained to its end."""
    return ()


def conclude(lab: Lab, _measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare the processor with the GPU, or time the processor alone."""
    gpus = visible_gpus(lab.config.train)
    devices, pairs = (["cpu", f"gpu:{gpus[0]}"], _PAIRS) if gpus else (["cpu"], 1)
    batch = _BATCH if gpus else _SMALL_BATCH
    spec = {
        "devices": devices,
        "networks": {
            "paper": ModelConfig(network="paper", image_size=_IMAGE_SIZE).model_dump(mode="json")
        },
        "settings": TrainConfig(global_batch_size=batch, color_noise=0.1).model_dump(mode="json"),
        "pairs": pairs,
        "steps": _STEPS,
        "seconds": _SECONDS,
    }
    made = lab.perform(f"speed-{'-'.join(devices).replace(':', '')}", spec, time_on_each)
    speeds = {
        device: tuple(made.numbers[f"{device}/{pair}"] for pair in range(pairs))
        for device in devices
    }
    rows = tuple(_row(device, speeds[device], batch) for device in devices)
    if not gpus:
        finding = not_measured(
            _RATIO, "No GPU on this machine; `alexnet reproduce gpu` on one measures it."
        )
        return Conclusion((finding,), rows, (), _notes(speeds))
    from pipeline.reports.claim_figures import draw_arms

    draw_arms(
        rows, "images_per_second", lab.folder / "speeds.png", xlabel="training images a second"
    )
    figure = Figure(
        file="speeds.png",
        caption="Images a second while training the network of 2012, a dot a timing.",
    )
    cpu, gpu = speeds.values()
    finding = find(_RATIO, [one / other for one, other in zip(gpu, cpu, strict=True)])
    return Conclusion((finding,), rows, (figure,), _notes(speeds))


def _row(device: str, speeds: Sequence[float], batch: int) -> Row:
    values = {
        "images_per_second": tuple(speeds),
        "seconds_per_step": tuple(batch / speed for speed in speeds),
    }
    cpu = device == "cpu"
    return Row(
        arm=processors() if cpu else "one GPU",
        setting=f"{device}, {batch} images a step",
        values=values,
    )


def _notes(speeds: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Say how long 2012's training would take here, and what the numbers depend on."""
    days = {
        device: _IMAGES_OF_2012 / (sum(own) / len(own)) / 86_400 for device, own in speeds.items()
    }
    here = " and ".join(f"{_days(number)} on `{device}`" for device, number in days.items())
    timed = (
        "The paper's 90 passes over 1.2 million images took five to six days on two GTX 580,"
        f" some 210 to 250 images a second; at the speed measured here they take {here}. Images"
        " are noise in memory: reading and decoding them is not timed, cutting and color noise"
        " are."
    )
    precision = (
        "On a GPU, TensorFlow may multiply with TF32, and its deterministic operations are slower"
        " than the others; both are as this program trains."
    )
    return (timed, precision) if len(speeds) > 1 else (timed,)


def _days(number: float) -> str:
    return (
        f"{number:,.0f} days"
        if number >= 10
        else f"{number:.1f} days"
        if number >= 1
        else f"{24 * number:.1f} hours"
    )


def time_on_each(
    spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context
) -> Measurement:
    """Time the network on each device, by turns and each time in a process of its own."""
    names = tuple(f"class {number}" for number in range(_CLASSES))
    large = dataset.model_copy(
        update={"class_names": names, "class_counts": {}, "short_side": _SHORT_SIDE}
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
            found = timing({**spec, "settings": {**spec["settings"], "devices": device}}, large)
            context.run.set_tags({f"hardware.{device.partition(':')[0]}": found["hardware"]})
            numbers[f"{device}/{pair}"] = found["images_per_second"]["paper"]
    context.run.log_metrics(numbers)
    return Measurement(directory=context.directory, name="speed", numbers=numbers)


EXPERIMENT = Experiment(
    "gpu",
    "It takes a GPU to train a network as large as this",
    "Section 1: GPUs with a highly optimized convolution are powerful enough to train large"
    " networks; section 5: the training took five to six days on two GTX 580. Here: training"
    " images a second of the paper's network, 224 x 224 pixels and 1,000 classes, on the"
    " processor and on one GPU, by turns and each time in a process of its own.",
    arms,
    conclude,
)
