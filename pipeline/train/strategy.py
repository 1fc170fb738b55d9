"""Devices: what TensorFlow may use, decided before it starts, and how a step is spread over it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from pipeline.config import TrainConfig, why_unit
from pipeline.errors import ConfigError


def configure_runtime(config: TrainConfig) -> None:
    """Import TensorFlow with the devices and threads of the settings, and with deterministic operations.

    Must come before anything else uses TensorFlow in this process. Thread counts are pinned to the processors that this process may
    use (or to TF_NUM_INTRAOP_THREADS), because a sum's last bits depend on how many threads share it.

    Raises:
        ConfigError: a device that was asked for is not there, replicas do not divide the batch, or TensorFlow already runs otherwise.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # a CPU machine need not be told that it has no GPU
    with _quiet_stderr():
        import tensorflow as tf

    kind, _, which = config.devices.partition(":")
    threads = int(os.environ.get("TF_NUM_INTRAOP_THREADS", "0")) or len(os.sched_getaffinity(0))
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        tf.config.experimental.enable_op_determinism()
        _choose_gpus(tf, kind, which)
        _split_cpu(tf, int(which) if kind == "cpu" and which else 1)
    except RuntimeError as error:
        raise ConfigError(
            f"TensorFlow already runs in this process with other devices or threads ({error}). Expected a fresh process for "
            f"train.devices={config.devices}. Restart the notebook's kernel or use the command line."
        ) from error
    _require_fast(tf, config)
    replicas = len(device_names())
    unit = replicas * config.unit
    if config.global_batch_size % unit:
        raise ConfigError(
            f"train.global_batch_size must be a multiple of {unit}: {replicas} devices share it{why_unit(config)}. Received "
            f"{config.global_batch_size}. Type --set train.global_batch_size={-(-config.global_batch_size // unit) * unit}."
        )


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silence what TensorFlow's libraries write to file descriptor 2 while they are loaded, before any log level counts."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as null:  # noqa: PTH123 - a device, not a path of ours
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _choose_gpus(tf: Any, kind: str, which: str) -> None:
    """Show TensorFlow only the GPUs that were asked for."""
    present = tf.config.list_physical_devices("GPU")
    numbers = [int(number) for number in which.split(",")] if kind == "gpu" and which else list(range(len(present)))
    if kind == "gpu" and (not present or max(numbers) >= len(present)):
        raise ConfigError(
            f"train.devices={kind}{':' if which else ''}{which} asks for a GPU that is not there. TensorFlow sees {len(present)}. "
            "Type --devices auto, or install the `gpu` extra and look at `nvidia-smi`."
        )
    tf.config.set_visible_devices([] if kind == "cpu" else [present[number] for number in numbers], "GPU")


def _split_cpu(tf: Any, count: int) -> None:
    """Make `count` logical devices of the CPU, to try several replicas on one machine."""
    (cpu, *_) = tf.config.list_physical_devices("CPU")
    wanted = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
    if len(tf.config.get_logical_device_configuration(cpu) or [None]) != count:
        tf.config.set_logical_device_configuration(cpu, wanted)


def _require_fast(tf: Any, config: TrainConfig) -> None:
    """Refuse bfloat16 on a processor without oneDNN, whose kernels are the ones that know it."""
    if config.precision == "bfloat16" and not tf.config.list_logical_devices("GPU") and os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0":
        raise ConfigError(
            "train.precision=bfloat16 needs oneDNN on a processor; without it a step takes some fifteen times as long. Expected "
            "TF_ENABLE_ONEDNN_OPTS unset or 1, received 0. Unset it, or type --set train.precision=float32."
        )


def device_names() -> list[str]:
    """Return the devices that training uses: every visible GPU, or else every logical CPU."""
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    return [device.name for device in gpus or tf.config.list_logical_devices("CPU")]


def make_strategy() -> Any:
    """Return a MirroredStrategy over the devices, or None for one device, where a strategy would only cost time."""
    import tensorflow as tf

    names = device_names()
    return tf.distribute.MirroredStrategy(names) if len(names) > 1 else None


def describe_runtime() -> dict[str, Any]:
    """Return what decides the last bits of a result besides the settings: devices, threads, oneDNN."""
    import tensorflow as tf

    return {
        "devices": ", ".join(device_names()),
        "threads.intra_op": tf.config.threading.get_intra_op_parallelism_threads(),
        "threads.inter_op": tf.config.threading.get_inter_op_parallelism_threads(),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
    }
