"""A description of the machine that measures, without TensorFlow."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from pathlib import Path


def describe_machine() -> str:
    """Return the accelerators and the processor of this machine as text."""
    models = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        models += re.findall(
            r"^Model:\s*(.+?)\s*$", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    accelerators = [
        f"{count} x {model}" if count > 1 else model for model, count in Counter(models).items()
    ]
    processor = f"{_find_processor_name()} ({cores} core{'s' if cores > 1 else ''})"
    return ", ".join([*accelerators, processor])


def _find_processor_name() -> str:
    """Return the name of the processor, or its architecture if the kernel has none, as on ARM."""
    path = Path("/proc/cpuinfo")
    found = (
        re.search(
            r"^model name\s*:\s*(.+?)\s*$",
            path.read_text(encoding="utf-8", errors="replace"),
            re.MULTILINE,
        )
        if path.exists()
        else None
    )
    return found[1] if found else platform.machine()
