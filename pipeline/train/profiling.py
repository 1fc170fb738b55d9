"""What training takes of the machine: its use, measured, and a trace of some steps."""

from __future__ import annotations

import os
from pathlib import Path

import tensorflow as tf


class StepTracer:
    """Writes a trace of some steps for TensorBoard's profiler.

    It begins after the first call, which compiles.

    Args:
        folder: for the trace; None traces nothing.
        steps: how many to trace; 0 traces nothing.
    """

    def __init__(self, folder: Path | None, steps: int):
        self._folder, self._steps, self._first = folder, steps, -1

    def trace_step(self, step: int) -> None:
        """Begin or end the trace where it is due, after so many steps of the training."""
        if not self._steps or self._folder is None:
            return
        if self._first < 0:
            self._first = step
            tf.profiler.experimental.start(str(self._folder))
        elif step >= self._first + self._steps:
            self.stop()

    def stop(self) -> None:
        """Write what was traced, at the latest when training ends."""
        if self._steps and self._first >= 0:
            tf.profiler.experimental.stop()
            self._steps = 0


def measure_machine_usage(processors: float) -> dict[str, float]:
    """Return processors busy on average, GB of memory, and the peak GB of each GPU's memory.

    Args:
        processors: processors busy on average.
    """
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    used = {
        "system/processors": processors,
        "system/memory_gb": pages * os.sysconf("SC_PAGE_SIZE") / 1e9,
    }
    for number, _ in enumerate(tf.config.list_logical_devices("GPU")):
        used[f"system/gpu{number}_memory_gb"] = (
            tf.config.experimental.get_memory_info(f"GPU:{number}")["peak"] / 1e9
        )
    return used


def describe_machine_usage(processors: float) -> str:
    """Return the use of processors and GPU memory in a few words.

    Args:
        processors: processors busy on average.
    """
    memory = [
        f"{name.split('/')[1].partition('_')[0]} {gb:.1f} GB"
        for name, gb in measure_machine_usage(0).items()
        if "/gpu" in name
    ]
    return "  ".join([f"{processors:.1f} of {len(os.sched_getaffinity(0))} cores", *memory])
