"""What went wrong, in words: a lost loss, a step that hangs, a step that does not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.input_stages import list_input_stages
from pipeline.data.loader import LoadedSplit, usable_memory_bytes
from pipeline.errors import OutOfMemoryError
from pipeline.train.state import State
from pipeline.train.step import gradient_function
from pipeline.train.strategy import Devices
from pipeline.train.watchdog import answers_within

# A stage of the input that gives nothing for so long, when training waits for it already, is the
# one that hangs.
_STAGE_SECONDS = 15.0
# Of the memory of a machine without GPUs, what a step may fill; the rest is for whatever else runs.
_MEMORY_SHARE = 0.85
_FIRST_ROWS = 8
_NOT_EVEN_ONE = (
    "A step does not fit into the device's memory, not even with one image at a time. Expected a"
    " smaller network or image: try --set model.width_multiplier=0.5, or a smaller --image-size."
)


# -- a lost loss -----------------------------------------------------------------------------------


def likely_cause(state: State, config: TrainConfig, rate: float) -> str:
    """Say why a loss is probably not finite any more, and what to type.

    Args:
        state: as it was found.
        config: the settings.
        rate: the learning rate of the step.
    """
    history, step = state.history, int(state.steps.numpy())
    lost = [
        variable.path
        for variable in state.network.trainable_variables
        if not np.isfinite(variable.numpy()).all()
    ]
    if step <= 1:
        return (
            "It was so at the first step, before any weight had changed: the initial weights and"
            " the scale of the pixels do not fit each other. Leave model.initialization and"
            " model.input_scale at auto, or look at the file of model.weights."
        )
    if config.precision == "float16" and not lost:
        return (
            "Every weight is finite, so a number within the network has left float16's range,"
            " which ends at 65,504. Type --set train.precision=bfloat16, or --set"
            f" train.learning_rate={rate / 10:g}."
        )
    grown = max(
        (
            entry[name]
            for entry in history[-1:]
            for name in entry
            if name.startswith("signal/update_ratio/")
        ),
        default=math.nan,
    )
    seen = (
        f"; a layer's gradient asked for steps of {grown:.0%} of its weights after epoch"
        f" {len(history)}"
        if grown > 0.1
        else ""
    )
    return (
        f"The learning rate {rate:g} is probably too high{seen}: try --set"
        f" train.learning_rate={rate / 10:g}, or --set train.warmup_epochs=2, or --set"
        " train.nan_restarts=3 to go on from the last epoch at half the rate."
    )


# -- a step that hangs -----------------------------------------------------------------------------


def what_hangs(images: LoadedSplit, config: TrainConfig, size: int, devices: Devices) -> str:
    """Say which stage of the input gives nothing, or that all do and the step itself hangs.

    By trying each, from the disk on.
    """
    start = f"Nothing came of a step for {config.watchdog_seconds:g} s, which is train.watchdog_seconds."
    end = (
        "Nothing but the steps since the last checkpoint is lost: mend that and type the same"
        " command again."
    )
    for name, attempt in list_input_stages(images, config, size):
        if not answers_within(_STAGE_SECONDS, attempt):
            return (
                f"{start} What hangs is {name}: expected an answer within {_STAGE_SECONDS:g} s,"
                f" received none. {end}"
            )
    others = " or another worker" if devices.cluster.workers > 1 else ""
    return (
        f"{start} Images do arrive, so what hangs is the step itself: its device{others}."
        f" Expected a step to end. {end} If steps really take so long, set train.watchdog_seconds"
        " higher."
    )


# -- a step that does not fit ----------------------------------------------------------------------


def out_of_memory(
    state: State, images: LoadedSplit, config: TrainConfig, devices: Devices
) -> OutOfMemoryError:
    """Return the error for a step that did not fit into memory, with the number of images that does, found by trying."""
    share = config.global_batch_size // devices.replicas
    rows = share // max(1, state.parts)
    fits = _fitting_rows(state, images, config, rows - 1) if rows > 1 else 0
    if not fits:
        return OutOfMemoryError(_NOT_EVEN_ONE)
    smaller = (
        "--set"
        f" train.global_batch_size={max(1, fits // config.unit) * config.unit * devices.replicas}"
    )
    if config.gradient_accumulation_steps == "auto":
        return OutOfMemoryError(
            f"A part of {rows} images a device does not fit into its memory after all; {fits} do."
            f" Type --set train.gradient_accumulation_steps={_parts(share, fits)}, or {smaller}."
        )
    return OutOfMemoryError(
        f"A step of {rows} images a device does not fit into its memory; {fits} images do. Type"
        " --auto-batch, which trains the same in parts that fit, or --set"
        f" train.gradient_accumulation_steps={_parts(share, fits)}, or {smaller}."
    )


def fitting_parts(state: State, images: LoadedSplit, config: TrainConfig, devices: Devices) -> int:
    """Return the smallest number of equal parts of a device's share that fit into its memory, found by trying.

    Raises:
        OutOfMemoryError: not even one image does.
    """
    share = config.global_batch_size // devices.replicas
    fits = _fitting_rows(state, images, config, share)
    if not fits:
        raise OutOfMemoryError(_NOT_EVEN_ONE)
    return _parts(share, fits)


def _parts(share: int, fits: int) -> int:
    """Return the smallest divisor of a share whose parts are no larger than what fits."""
    return next(
        parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= fits
    )


def _fitting_rows(state: State, images: LoadedSplit, config: TrainConfig, most: int) -> int:
    """Return how many images' gradients fit into memory at a time.

    `most`, or the largest tried by doubling; 0 where none do.

    A GPU refuses what does not fit. A processor's memory does not end before the system ends the
    process, so there the growth from one try to the next says whether the next would fit.
    """
    size, gradients_of = state.network.input_shape[1], gradient_function(state, images, config)

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)])
    def attempt(pixels: Any) -> Any:
        batch = (pixels, tf.zeros([tf.shape(pixels)[0]], tf.int32), None, None)
        gradients, _ = gradients_of(batch, tf.constant(0, tf.int64), 0)
        return tf.add_n([tf.reduce_sum(tf.cast(gradient, tf.float32)) for gradient in gradients])

    untouched = [variable.numpy() for variable in state.network.non_trainable_variables]
    try:
        return _largest(attempt, size, most)
    finally:  # such as the statistics of batch normalization
        for variable, value in zip(state.network.non_trainable_variables, untouched, strict=True):
            variable.assign(value)


def _largest(attempt: Callable[[Any], Any], size: int, most: int) -> int:
    """Return the largest number of images with which an attempt succeeds, as `_fitting_rows` says."""
    fits, rows, peaks = 0, min(_FIRST_ROWS, most), [0, 0]
    while rows > fits:
        if fits and _next_peak(peaks, rows / fits) > _MEMORY_SHARE * usable_memory_bytes():
            return fits
        _forget_peak()
        try:
            attempt(np.zeros((rows, size, size, 3), np.uint8)).numpy()
        except (tf.errors.ResourceExhaustedError, tf.errors.AbortedError):  # the second is oneDNN's
            if fits or rows == 1:
                return fits
            rows = max(1, rows // 2)
            most = rows
            continue
        peaks, fits = [peaks[1], _peak()], rows
        rows = min(2 * rows, most)
    return fits


def _next_peak(peaks: list[int], growth: float) -> float:
    """Return the memory that the next try will take, from what the last two took, when it is so many times as large as the last."""
    before, last = peaks
    return last + (last - before if before else 0) * 2 * (growth - 1)


def _forget_peak() -> None:
    """Have the kernel count this process's greatest memory anew (proc(5), clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (
        OSError
    ):  # not allowed here: then the peak is that of the whole process, which is on the safe side
        return


def _peak() -> int:
    """Return the greatest resident memory of this process since then, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024
