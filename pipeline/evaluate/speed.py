"""Speed: latency, rate and memory of the saved network on this machine.

These are readings of a clock and of a machine: another run, another neighbor on the processors,
gives others. So they go into a file of their own, speed.json, and never into a record, a digest or
anything else that decides whether work is done again.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from pipeline.arrays import Logits, Network

_MIN_CALLS = 20
_SLOW_FACTOR = 10  # a slow network gets this many times `seconds` for these calls at most
_WARM_UP_CALLS = 1 + 3  # the first compiles; the next still fill caches and the allocator

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class BatchSpeed:
    """Latency and rate for batches of one size.

    The latency is the time of one call: quantiles of all timed ones. `images_per_second` is all
    images / the sum of the calls' times, which is the same as batch / mean latency. Quantiles
    interpolate linearly between the two nearest calls, as NumPy does by default: of 20 calls the 99
    % one lies four fifths of the way from the second slowest to the slowest, so below some hundred
    calls it says little more than the slowest one.
    """

    batch: int
    calls: int
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    images_per_second: float


@dataclass(frozen=True)
class SpeedMeasurement:
    """Readings of the clock and the machine; `dataclasses.asdict` makes JSON of it.

    `tensor_bytes` and `resident_bytes` are what compiling for the largest batch and answering it
    added at its peak: to the tensors on the device, by TensorFlow's count, and to this process's
    resident memory, by the kernel's. The first is nearly the same in every run. The second is less,
    down to 0, where the process had kept memory of earlier work, which TensorFlow does not give
    back. Either is None where it is not counted.
    """

    device: str
    processors: int
    model_bytes: int
    batches: tuple[BatchSpeed, ...]
    tensor_bytes: int | None
    resident_bytes: int | None


def measure_speed(
    model: Network, model_path: Path, *, seconds: float = 1.0, batches: Sequence[int] = (1, 32)
) -> SpeedMeasurement:
    """Return latency, rate and memory for batches of images that are in the host's memory.

    A call lasts from there until the logits are back in the host's memory, through one compiled
    program of a static shape. The images are noise of a fixed seed: dense arithmetic takes as long
    for noise as for anything else.

    Args:
        model: takes uint8 [batch, height, width, 3] in [0, 255], gives logits [batch, classes].
        model_path: the file that it was read from.
        seconds: how long each size is timed. A slow network is given up to ten times as long for
            its first 20 calls; one that cannot make them in that time is timed on fewer, as `calls`
            shows. Warming up takes four calls, or as long at most.
        batches: images a call.
    """
    device, name = _name_device()
    largest, *others = sorted(
        set(batches), reverse=True
    )  # the largest first: its memory is not hidden by what a smaller one kept
    first = partial(_time_batches, model, largest, seconds)
    (found, tensor_bytes), resident_bytes = measure_resident_memory(
        partial(_measure_tensor_memory, device, first)
    )
    by_size = {largest: found} | {size: _time_batches(model, size, seconds) for size in others}
    return SpeedMeasurement(
        device=name,
        processors=len(os.sched_getaffinity(0)),
        model_bytes=model_path.stat().st_size,
        batches=tuple(by_size[size] for size in sorted(by_size)),
        tensor_bytes=tensor_bytes,
        resident_bytes=resident_bytes,
    )


def measure_resident_memory(work: Callable[[], _Result]) -> tuple[_Result, int | None]:
    """Run a function; return its result and the bytes by which resident memory rose at its peak.

    The kernel is made to forget the peak so far (proc(5), clear_refs). None without such a file,
    or where it may not be written.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _read_resident_bytes("VmRSS")
    except OSError:
        return work(), None
    result = work()
    return result, max(0, _read_resident_bytes("VmHWM") - before)


def _measure_tensor_memory(device: str, work: Callable[[], _Result]) -> tuple[_Result, int | None]:
    """Run a function; return its result and the bytes by which a device's tensors rose at most.

    None where the device's allocator does not count: that of a processor without oneDNN raises, or
    counts 0 whatever it holds.
    """
    try:
        tf.config.experimental.reset_memory_stats(device)
        before = tf.config.experimental.get_memory_info(device)["current"]
    except ValueError:
        return work(), None
    result = work()
    peak = tf.config.experimental.get_memory_info(device)["peak"]
    return result, peak - before if peak else None


def _read_resident_bytes(field: str) -> int:
    """Return a size of /proc/self/status in bytes: `VmRSS`, resident now, or `VmHWM`, at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kilobytes) * 1024


def _name_device() -> tuple[str, str]:
    """Return TensorFlow's name of the device that answers, and its name for people."""
    gpus = tf.config.get_visible_devices("GPU")
    if gpus:
        return "GPU:0", tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return "CPU:0", f"CPU: {_read_processor_name()}"


def _read_processor_name() -> str:
    """Return the processor's name, or its architecture where the kernel has none, as on ARM."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _time_batches(model: Network, batch: int, seconds: float) -> BatchSpeed:
    """Return latency and rate for batches of one size."""
    answer, max_seconds = _compile_answer(model, batch), _SLOW_FACTOR * seconds
    _time_calls(answer, min_calls=_WARM_UP_CALLS, seconds=0, max_seconds=max_seconds)
    taken = _time_calls(answer, min_calls=_MIN_CALLS, seconds=seconds, max_seconds=max_seconds)
    p50, p95, p99 = np.quantile(taken, (0.5, 0.95, 0.99)).tolist()
    return BatchSpeed(batch, len(taken), p50, p95, p99, batch * len(taken) / sum(taken))


def _compile_answer(model: Network, batch: int) -> Callable[[], Logits]:
    """Return a function that answers the same batch of noise at every call.

    It gives the logits as a NumPy array [batch, classes].
    """
    shape = (batch, *model.input_shape[1:])
    with tf.device("CPU:0"):  # where images come from; the copy to a GPU belongs to an answer
        pixels = tf.constant(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    program = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec(shape, tf.uint8)],
    )
    return lambda: program(pixels).numpy()


def _time_calls(
    call: Callable[[], object], *, min_calls: int, seconds: float, max_seconds: float
) -> list[float]:
    """Return how long each of several calls took, in seconds.

    Args:
        call: the function that is timed, once at least.
        min_calls: the fewest calls, unless they take longer than `max_seconds`.
        seconds: the shortest total time of the calls.
        max_seconds: the longest total time, whatever the number of calls.
    """
    taken: list[float] = []
    total = 0.0
    while not taken or (total < max_seconds and (total < seconds or len(taken) < min_calls)):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
        total += taken[-1]
    return taken
