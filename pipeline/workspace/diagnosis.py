"""What machine, versions, devices, store, disk and permissions a command finds, and what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import PipelineError
from pipeline.files import write_text
from pipeline.tracking.journal import list_undelivered
from pipeline.workspace.workspace import Workspace

_PACKAGES = ("tensorflow", "keras", "tensorflow-datasets", "mlflow", "click", "numpy")
_OPTIONAL_PACKAGES = ("tf2onnx", "onnxruntime", "ai-edge-litert", "apache-beam", "torch")
_MIN_FREE_BYTES = 2_000_000_000  # a run on the digits writes some 20 MB, ImageNet's shards 150 GB
_MIN_MEMORY_BYTES = 4_000_000_000  # TensorFlow with a small network takes some 1.5 GB


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at.

    `state` is `ok`, `note` for something missing that some commands want, or `problem`.
    """

    subject: str
    state: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON can hold it."""
        return asdict(self)


def diagnose(workspace: Workspace) -> list[Diagnosis]:
    """Return what was found of the machine, the installation and the work directory."""
    checks: tuple[Callable[[Workspace], Iterator[Diagnosis]], ...] = (
        _check_machine,
        _check_packages,
        _check_devices,
        _check_directory,
        _check_store,
    )
    return [diagnosis for check in checks for diagnosis in check(workspace)]


def _check_machine(_workspace: Workspace) -> Iterator[Diagnosis]:
    system = f"{platform.system()} {platform.release()} on {platform.machine()}"
    linux = platform.system() == "Linux"
    yield Diagnosis(
        "machine",
        "ok" if linux else "note",
        f"{system}, {len(os.sched_getaffinity(0)) if linux else os.cpu_count()} processor cores",
        "" if linux else "Only Linux is tested.",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = memory >= _MIN_MEMORY_BYTES
    yield Diagnosis(
        "memory",
        "ok" if enough else "problem",
        f"{memory / 1e9:.1f} GB",
        "" if enough else "Training needs 4 GB; use a smaller --batch-size or another machine.",
    )
    tested = sys.version_info[:2] == (3, 11)
    yield Diagnosis(
        "Python",
        "ok" if tested else "note",
        f"{platform.python_version()} in {sys.prefix}",
        "" if tested else "3.11 is the version that is tested.",
    )


def _check_packages(_workspace: Workspace) -> Iterator[Diagnosis]:
    for name in _PACKAGES:
        version = _installed_version(name)
        yield Diagnosis(
            name,
            "ok" if version else "problem",
            version or "not installed",
            "" if version else f"Install it: pip install {name}",
        )
    missing = [name for name in _OPTIONAL_PACKAGES if not _installed_version(name)]
    found = [f"{name} {_installed_version(name)}" for name in _OPTIONAL_PACKAGES]
    yield Diagnosis(
        "optional packages",
        "note" if missing else "ok",
        ", ".join(text for text in found if not text.endswith("None")) or "none",
        f"Not installed: {', '.join(missing)}; `alexnet export`, data.beam and tests name them when"
        " they need one."
        if missing
        else "",
    )


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _check_devices(_workspace: Workspace) -> Iterator[Diagnosis]:
    try:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what it logs at its start
        import tensorflow as tf

        gpus = [
            tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in tf.config.list_physical_devices("GPU")
        ]
    except (ImportError, RuntimeError) as error:
        yield Diagnosis("devices", "problem", f"TensorFlow does not start: {error}")
        return
    if gpus:
        yield Diagnosis("devices", "ok", f"{len(gpus)} GPU: {', '.join(gpus)}")
    elif Path("/proc/driver/nvidia/version").exists():
        yield Diagnosis(
            "devices",
            "problem",
            "an NVIDIA driver, but TensorFlow sees no GPU",
            "Install CUDA's libraries: pip install 'alexnet-pipeline[gpu]'",
        )
    else:
        yield Diagnosis("devices", "ok", "no GPU; training uses the CPU")


def _check_directory(workspace: Workspace) -> Iterator[Diagnosis]:
    folder = workspace.directory
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    probe = existing / f".alexnet-doctor-{os.getpid()}"
    try:
        write_text(probe, "")
        probe.unlink()
    except OSError as error:
        yield Diagnosis(
            "work directory",
            "problem",
            f"{folder} cannot be written ({error.strerror})",
            "Name another with --workdir.",
        )
        return
    state = "exists" if folder.exists() else "will be made"
    yield Diagnosis("work directory", "ok", f"{folder.absolute()} {state} and can be written")
    free = shutil.disk_usage(existing).free
    enough = free >= _MIN_FREE_BYTES
    yield Diagnosis(
        "disk",
        "ok" if enough else "problem",
        f"{free / 1e9:.1f} GB free",
        "" if enough else "Type `alexnet clean`, or --workdir with a folder on another disk.",
    )


def _check_store(workspace: Workspace) -> Iterator[Diagnosis]:
    config = workspace.resolve_for_store().config.tracking
    if not config.enabled:
        yield Diagnosis("tracking", "note", "off (tracking.enabled=no)")
        return
    from pipeline.tracking.store import connect_store, get_store_uri

    if not config.uri and not (workspace.directory / "mlflow.db").exists():
        yield Diagnosis("tracking", "ok", "no store yet; the first run makes mlflow.db")
        return
    uri = get_store_uri(config, workspace.directory)
    try:
        connect_store(config, workspace.directory)
    except PipelineError as error:
        yield Diagnosis("tracking", "problem", str(error), "Type `alexnet sync` when it answers.")
        return
    waiting = len(list_undelivered(workspace.directory))
    yield Diagnosis(
        "tracking",
        "note" if waiting else "ok",
        f"{uri} answers" + (f"; {waiting} runs are unsent" if waiting else ""),
        "Type `alexnet sync`." if waiting else "",
    )
