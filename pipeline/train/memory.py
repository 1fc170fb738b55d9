"""How many images' gradients fit into a device's memory, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.loader import LoadedSplit, usable_memory_bytes
from pipeline.errors import OutOfMemoryError
from pipeline.reports.training_advice import make_memory_error, make_unfitting_error
from pipeline.train.state import TrainingState
from pipeline.train.step import make_gradient_function
from pipeline.train.strategy import Devices

if TYPE_CHECKING:
    from pipeline.arrays import Images, Tensor

# Of the memory of a machine without GPUs, what a step may fill; the rest is for other programs.
_STEP_MEMORY_FRACTION = 0.85
_FIRST_ROWS = 8


def choose_accumulation_steps(
    state: TrainingState, images: LoadedSplit, config: TrainConfig, devices: Devices
) -> int:
    """Return the smallest number of equal micro-batches of a device's images that fit into memory.

    Raises:
        OutOfMemoryError: not even one image does.
    """
    replica_batch = config.global_batch_size // devices.replicas
    fits = _find_fitting_rows(state, images, config, replica_batch)
    if not fits:
        raise make_unfitting_error()
    return _count_micro_batches(replica_batch, fits)


def diagnose_memory(
    state: TrainingState, images: LoadedSplit, config: TrainConfig, devices: Devices
) -> OutOfMemoryError:
    """Return the error for a step that did not fit, with the number of images that does."""
    replica_batch = config.global_batch_size // devices.replicas
    rows = replica_batch // max(1, state.gradient_accumulation_steps)
    fits = _find_fitting_rows(state, images, config, rows - 1) if rows > 1 else 0
    if not fits:
        return make_unfitting_error()
    multiple = config.batch_multiple
    return make_memory_error(
        images=rows,
        fitting_images=fits,
        steps=_count_micro_batches(replica_batch, fits),
        batch_size=max(1, fits // multiple) * multiple * devices.replicas,
        automatic=config.gradient_accumulation_steps == "auto",
    )


def _count_micro_batches(replica_batch: int, fits: int) -> int:
    """Return the smallest number of equal micro-batches that are no larger than what fits."""
    return next(
        count
        for count in range(1, replica_batch + 1)
        if replica_batch % count == 0 and replica_batch // count <= fits
    )


def _find_fitting_rows(
    state: TrainingState, images: LoadedSplit, config: TrainConfig, max_rows: int
) -> int:
    """Return how many images' gradients fit into memory at a time.

    `max_rows`, or the largest number tried by doubling; 0 if none fits.

    A GPU refuses what does not fit. A processor's memory does not end before the system ends the
    process, so there the growth from one try to the next predicts whether the next would fit.
    """
    shape = state.network.input_shape[1:]
    compute_gradients = make_gradient_function(state, images, config)

    @tf.function(input_signature=[tf.TensorSpec([None, *shape], tf.uint8)])
    def attempt(pixels: Tensor) -> Tensor:
        batch = (pixels, tf.zeros([tf.shape(pixels)[0]], tf.int32), None, None)
        gradients, _ = compute_gradients(batch, tf.constant(0, tf.int64), 0)
        return tf.add_n([tf.reduce_sum(tf.cast(gradient, tf.float32)) for gradient in gradients])

    untouched = [variable.numpy() for variable in state.network.non_trainable_variables]
    try:
        return _find_largest_success(attempt, shape, max_rows)
    finally:  # such as the statistics of batch normalization
        for variable, value in zip(state.network.non_trainable_variables, untouched, strict=True):
            variable.assign(value)


def _find_largest_success(
    attempt: Callable[[Images], Tensor], shape: Sequence[int], max_rows: int
) -> int:
    """Return the largest number of images with which an attempt succeeds.

    As `_find_fitting_rows` describes it.
    """
    fits, rows, peaks = 0, min(_FIRST_ROWS, max_rows), [0, 0]
    while rows > fits:
        if (
            fits
            and _predict_peak(peaks, rows / fits) > _STEP_MEMORY_FRACTION * usable_memory_bytes()
        ):
            return fits
        _reset_peak()
        try:
            attempt(np.zeros((rows, *shape), np.uint8)).numpy()
        except (tf.errors.ResourceExhaustedError, tf.errors.AbortedError):  # the second is oneDNN's
            if fits or rows == 1:
                return fits
            rows = max(1, rows // 2)
            max_rows = rows
            continue
        peaks, fits = [peaks[1], _read_peak()], rows
        rows = min(2 * rows, max_rows)
    return fits


def _predict_peak(peaks: list[int], growth: float) -> float:
    """Return the memory that the next try will take, in bytes, from what the last two took.

    Args:
        peaks: of the try before the last and of the last, in bytes.
        growth: images of the next try over those of the last.
    """
    before, last = peaks
    return last + (last - before if before else 0) * 2 * (growth - 1)


def _reset_peak() -> None:
    """Have the kernel count this process's greatest memory anew (proc(5), clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (
        OSError
    ):  # not allowed here: then the peak is that of the whole process, which is on the safe side
        return


def _read_peak() -> int:
    """Return the greatest resident memory of this process since `_reset_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024
