"""How fast the saved network answers on this machine, and in how much memory.

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
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

_CALLS_AT_LEAST = 20
_PATIENCE = 10  # a slow network gets this many times `seconds` for these calls, and no more
_WARM_UP_CALLS = 1 + 3  # the first compiles; the next still fill caches and the allocator

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class BatchSpeed:
    """How fast batches of one size are answered.

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
class Speed:
    """What was read off the clock and the machine; `dataclasses.asdict` makes JSON of it.

    `tensor_bytes` and `resident_bytes` are what compiling for the largest batch and answering it
    added at its peak: to the tensors on the device, by TensorFlow's count, and to this process's
    resident memory, by the kernel's. The first is nearly the same in every run. The second is less,
    down to 0, where the process had kept memory of earlier work, which TensorFlow does not give
    back. Either is None where nobody counts it.
    """

    device: str
    processors: int
    model_bytes: int
    batches: tuple[BatchSpeed, ...]
    tensor_bytes: int | None
    resident_bytes: int | None


def measure_speed(
    model: Any, model_path: Path, *, seconds: float = 1.0, batches: Sequence[int] = (1, 32)
) -> Speed:
    """Return how fast the network answers batches of images that are in the host's memory.

    A call lasts from there until the logits are back in the host's memory, through one compiled
    program of a static shape. The images are noise of a fixed seed: dense arithmetic takes as long
    for noise as for anything else.

    Args:
        model: takes uint8 [batch, size, size, 3] in [0, 255], gives logits [batch, classes].
        model_path: the file that it was read from.
        seconds: how long each size is timed. A slow network is given up to ten times as long for
            its first 20 calls; one that cannot make them in that time is timed on fewer, as `calls`
            says. Warming up takes four calls, or as long at most.
        batches: images a call.
    """
    device, name = _device()
    largest, *others = sorted(
        set(batches), reverse=True
    )  # the largest first: its memory is not hidden by what a smaller one kept
    first = partial(_batch_speed, model, largest, seconds)
    (found, tensor_bytes), resident_bytes = resident_added(partial(_tensors_added, device, first))
    by_size = {largest: found} | {size: _batch_speed(model, size, seconds) for size in others}
    return Speed(
        device=name,
        processors=len(os.sched_getaffinity(0)),
        model_bytes=model_path.stat().st_size,
        batches=tuple(by_size[size] for size in sorted(by_size)),
        tensor_bytes=tensor_bytes,
        resident_bytes=resident_bytes,
    )


def table_rows(speed: Speed) -> list[tuple[str, ...]]:
    """Return (measure, value) for the report's table, formatted for people."""
    processors = "1 processor" if speed.processors == 1 else f"{speed.processors} processors"
    rows: list[tuple[str, ...]] = [("device", f"{speed.device}; {processors}")]
    for item in speed.batches:
        images = _images(item.batch)
        latency = ", ".join(
            f"{_short(1e3 * value)} ms"
            for value in (item.p50_seconds, item.p95_seconds, item.p99_seconds)
        )
        rows.append((f"latency, {images} a call: p50, p95, p99 of {item.calls:,} calls", latency))
        rows.append(
            (f"rate, {images} a call", f"{_short(item.images_per_second, digits=0)} images/s")
        )
    largest = _images(max(item.batch for item in speed.batches))
    sizes = (
        ("model file", speed.model_bytes),
        (f"peak memory that a call of {largest} adds: tensors", speed.tensor_bytes),
        (f"peak memory that a call of {largest} adds: the whole process", speed.resident_bytes),
    )
    rows += [
        (measure, "not known here" if size is None else f"{_short(size / 1e6)} MB")
        for measure, size in sizes
    ]
    return rows


def resident_added(work: Callable[[], _Result]) -> tuple[_Result, int | None]:
    """Do some work; return its result, and by how many bytes this process's resident memory rose at most meanwhile.

    The kernel is made to forget the peak so far (proc(5), clear_refs). None where there is no such
    file, or none that may be written.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmRSS")
    except OSError:
        return work(), None
    result = work()
    return result, max(0, _resident("VmHWM") - before)


def _tensors_added(device: str, work: Callable[[], _Result]) -> tuple[_Result, int | None]:
    """Do some work; return its result, and by how many bytes the tensors on a device rose at most meanwhile.

    None where the device's allocator does not count: that of a processor without oneDNN raises, or
    says 0 whatever it holds.
    """
    try:
        tf.config.experimental.reset_memory_stats(device)
        before = tf.config.experimental.get_memory_info(device)["current"]
    except ValueError:
        return work(), None
    result = work()
    peak = tf.config.experimental.get_memory_info(device)["peak"]
    return result, peak - before if peak else None


def _resident(field: str) -> int:
    """Return a size of /proc/self/status in bytes: `VmRSS`, resident now, or `VmHWM`, at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kilobytes) * 1024


def _device() -> tuple[str, str]:
    """Return TensorFlow's name of the device that answers, and one for people."""
    gpus = tf.config.get_visible_devices("GPU")
    if gpus:
        return "GPU:0", tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return "CPU:0", f"CPU: {_processor_name()}"


def _processor_name() -> str:
    """Return the processor's name, or its architecture where the kernel does not tell, as on ARM."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _batch_speed(model: Any, batch: int, seconds: float) -> BatchSpeed:
    """Return how fast batches of one size are answered."""
    answer, patience = _answering(model, batch), _PATIENCE * seconds
    _call_seconds(answer, calls=_WARM_UP_CALLS, seconds=0, patience=patience)
    taken = _call_seconds(answer, calls=_CALLS_AT_LEAST, seconds=seconds, patience=patience)
    p50, p95, p99 = np.quantile(taken, (0.5, 0.95, 0.99)).tolist()
    return BatchSpeed(batch, len(taken), p50, p95, p99, batch * len(taken) / sum(taken))


def _answering(model: Any, batch: int) -> Callable[[], Any]:
    """Return what answers the same batch of noise at every call, with logits as a NumPy array [batch, classes]."""
    shape = (batch, *model.input_shape[1:])
    with tf.device("CPU:0"):  # where images come from; the copy to a GPU belongs to an answer
        pixels = tf.constant(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    program = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec(shape, tf.uint8)],
    )
    return lambda: program(pixels).numpy()


def _call_seconds(
    call: Callable[[], Any], *, calls: int, seconds: float, patience: float
) -> list[float]:
    """Call again and again; return how long each call took.

    Args:
        call: what is timed, once at least.
        calls: as many at least, unless they take longer than `patience`.
        seconds: go on until the calls took so long together.
        patience: stop once the calls took so long together, however few there were.
    """
    taken: list[float] = []
    total = 0.0
    while not taken or (total < patience and (total < seconds or len(taken) < calls)):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
        total += taken[-1]
    return taken


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _short(value: float, digits: int = 1) -> str:
    """Return a positive number for people: `1,234.5`; one below 1 with two significant digits."""
    return f"{value:,.{digits}f}" if value >= 10 or (value >= 1 and digits) else f"{value:.2g}"
