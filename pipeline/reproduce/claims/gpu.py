"""Claim: training a network as large as this takes a GPU (sections 1 and 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.model import ModelConfig
from pipeline.config.train import TrainConfig
from pipeline.reports.claim_records import ArmRow, ClaimFigure, ClaimQuestion
from pipeline.reproduce.arms import list_no_arms
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.experiment import ArmMeasurements, Conclusion, Experiment
from pipeline.reproduce.timing import describe_processors, list_visible_gpus, time_on_each_device
from pipeline.reproduce.verdict import judge_effects, make_unmeasured_finding

_GPU_PAIRS = 3
_GPU_STEPS, _GPU_SECONDS = 30, 6.0  # limits of a timing
_IMAGE_SIZE_OF_2012 = 224
_BATCH_OF_2012 = 128  # of 2012
_SMALL_BATCH = 32  # on a processor alone, where nothing is compared
_IMAGES_OF_2012 = 90 * 1_200_000  # 90 passes over 1.2 million images (section 5)
_GPU_RATIO = ClaimQuestion(
    quantity="images/s while training the network of 2012, on a GPU over on the processor",
    unit="times",
    published=None,
    source=(
        "no ratio was published: paper, section 1, and section 5, five to six days on two GTX 580"
    ),
    null_effect=1.0,
)


def conclude_gpu(run: ClaimRun, _measured: ArmMeasurements) -> Conclusion:
    """Compare the processor with the GPU, or time the processor alone."""
    gpus = list_visible_gpus(run.config.train)
    devices, pairs = (["cpu", f"gpu:{gpus[0]}"], _GPU_PAIRS) if gpus else (["cpu"], 1)
    batch = _BATCH_OF_2012 if gpus else _SMALL_BATCH
    spec = {
        "devices": devices,
        "networks": {
            "paper": ModelConfig(network="paper", image_size=_IMAGE_SIZE_OF_2012).model_dump(
                mode="json"
            )
        },
        "settings": TrainConfig(global_batch_size=batch, color_noise=0.1).model_dump(mode="json"),
        "pairs": pairs,
        "steps": _GPU_STEPS,
        "seconds": _GPU_SECONDS,
    }
    made = run.perform_experiment(
        f"speed-{'-'.join(devices).replace(':', '')}", spec, time_on_each_device
    )
    speeds = {
        device: tuple(made.numbers[f"{device}/{pair}"] for pair in range(pairs))
        for device in devices
    }
    rows = tuple(_make_device_row(device, speeds[device], batch) for device in devices)
    if not gpus:
        finding = make_unmeasured_finding(
            _GPU_RATIO, "No GPU on this machine; `alexnet reproduce gpu` on one measures it."
        )
        return Conclusion((finding,), rows, (), _write_gpu_notes(speeds))
    from pipeline.reports.claim_figures import draw_arms

    draw_arms(rows, "images_per_second", run.folder / "speeds.png", xlabel="training images/s")
    figure = ClaimFigure(
        file="speeds.png",
        caption="Images/s while training the network of 2012, one dot per timing.",
    )
    cpu, gpu = speeds.values()
    finding = judge_effects(_GPU_RATIO, [one / other for one, other in zip(gpu, cpu, strict=True)])
    return Conclusion((finding,), rows, (figure,), _write_gpu_notes(speeds))


def _make_device_row(device: str, speeds: Sequence[float], batch: int) -> ArmRow:
    """Return the row of a device: its speeds and the durations of a step."""
    values = {
        "images_per_second": tuple(speeds),
        "seconds_per_step": tuple(batch / speed for speed in speeds),
    }
    return ArmRow(
        arm=describe_processors() if device == "cpu" else "one GPU",
        setting=f"{device}, {batch} images per step",
        values=values,
    )


def _write_gpu_notes(speeds: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Return how long the training of 2012 would take here, and the limits of the numbers."""
    days = {
        device: _IMAGES_OF_2012 / (sum(own) / len(own)) / 86_400 for device, own in speeds.items()
    }
    here = " and ".join(f"{_format_days(number)} on `{device}`" for device, number in days.items())
    timed = (
        "The paper's 90 passes over 1.2 million images took five to six days on two GTX 580, about"
        f" 210 to 250 images/s; at the speed measured here they take {here}. Images are noise in"
        " memory: reading and decoding are not timed, crops and color noise are."
    )
    precision = (
        "On a GPU, TensorFlow may multiply with TF32, and its deterministic operations are slower"
        " than the others; both are as this program trains."
    )
    return (timed, precision) if len(speeds) > 1 else (timed,)


def _format_days(number: float) -> str:
    """Return a number of days as `78 days`, `1.5 days` or `12.0 hours`."""
    return (
        f"{number:,.0f} days"
        if number >= 10
        else f"{number:.1f} days"
        if number >= 1
        else f"{24 * number:.1f} hours"
    )


EXPERIMENTS = (
    Experiment(
        name="gpu",
        position=140,
        title="Training a network as large as this takes a GPU",
        text=(
            "Section 1: GPUs with a highly optimized convolution are powerful enough to train large"
            " networks; section 5: the training took five to six days on two GTX 580. Here:"
            " training images/s of the paper's network, 224 x 224 pixels and 1,000 classes, on the"
            " processor and on one GPU, in alternating order and each in a process of its own."
        ),
        summary="a GPU makes it possible",
        section="sections 1, 5",
        criterion="only on a GPU",
        list_arms=list_no_arms,
        conclude=conclude_gpu,
    ),
)
