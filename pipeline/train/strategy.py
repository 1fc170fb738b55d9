"""Devices: what TensorFlow may use, decided before it starts, and how a step is distributed."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.config.train import TrainConfig, explain_batch_multiple
from pipeline.errors import ConfigError
from pipeline.train.cluster import Cluster, read_cluster

if TYPE_CHECKING:
    from pipeline.arrays import Dataset, Floats, Strategy, Tensor


@dataclass(frozen=True)
class Devices:
    """What a training runs on.

    Attributes:
        strategy: of `tf.distribute`; None for one device, where it would only cost time.
        cluster: the workers, and which of them this process is.
    """

    strategy: Strategy | None = None
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def replicas(self) -> int:
        """The number of copies of the network that train together, over all workers."""
        return int(self.strategy.num_replicas_in_sync) if self.strategy is not None else 1

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which trained variables must be made."""
        return self.strategy.scope() if self.strategy is not None else contextlib.nullcontext()

    def distribute_batches(self, batches: Dataset) -> Iterator[Any]:
        """Return an iterator of this worker's batches, divided among its devices.

        A device takes neighboring images.

        Args:
            batches: what the worker takes in a step, or in a scoring step.
        """
        import tensorflow as tf

        if self.strategy is None:
            return iter(batches)
        local = self.replicas // self.cluster.workers
        rows = next(iter(batches.element_spec.values())).shape[0]
        divided = batches.rebatch(rows // local, drop_remainder=True) if local > 1 else batches
        if self.cluster.workers > 1:
            # Else the workers ask each other before every batch whether all have one; here they
            # know how many there are.
            divided = divided.apply(
                tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            )
        return iter(self.strategy.distribute_datasets_from_function(lambda _: divided))

    def sum_over_workers(self, values: Floats) -> Floats:
        """Return the sum over the workers of each one's numbers, float64 [n].

        All of them must call this.
        """
        return self._compiled_total(values).numpy() if self.cluster.workers > 1 else values

    def broadcast_from_chief(self, value: float) -> float:
        """Return the chief's number to every worker; all of them must call this."""
        import numpy as np

        return float(self.sum_over_workers(np.array([value if self.cluster.is_chief else 0.0]))[0])

    @functools.cached_property
    def _compiled_total(self) -> Callable[[Floats], Tensor]:
        import tensorflow as tf

        from pipeline.train.dropout import get_replica_number

        strategy: Strategy = self.strategy  # which several workers always have
        local = self.replicas // self.cluster.workers

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float64)])
        def sum_values(values: Tensor) -> Tensor:
            def take_once() -> Tensor:
                return values if get_replica_number() % local == 0 else tf.zeros_like(values)

            return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(take_once), axis=None)

        return sum_values


def configure_runtime(config: TrainConfig, *, join: bool = False) -> None:
    """Import TensorFlow with the devices and threads of the settings, and deterministic operations.

    Must come before anything else uses TensorFlow in this process. Thread counts are pinned to the
    processors that this process may use (or to TF_NUM_INTRAOP_THREADS), because a sum's last bits
    depend on how many threads share it.

    Args:
        config: devices, batch and precision.
        join: meet the other workers that TF_CONFIG names, which TensorFlow must do before anything
            else.

    Raises:
        ConfigError: a device that was asked for is missing, replicas do not divide the batch, or
            TensorFlow already runs otherwise.
        HungError: the other workers did not answer in time.
    """
    tf = _import_tensorflow()
    kind, _, which = config.devices.partition(":")
    workers = read_cluster().workers if join else 1
    try:
        _enable_determinism(tf)
        _choose_gpus(tf, kind, which)
        _split_cpu(tf, int(which) if kind == "cpu" and which else 1)
        gpus = len(tf.config.get_visible_devices("GPU"))
        require_divisible(config, workers, gpus or (int(which) if kind == "cpu" and which else 1))
        _require_onednn(config, gpus)
        if workers > 1 and not _join_workers.cache_info().currsize:
            read_cluster().wait_for_workers(config.watchdog_seconds)
            _join_workers()
    except RuntimeError as error:
        raise ConfigError(
            f"TensorFlow already runs in this process with other devices or threads ({error})",
            expected=f"a fresh process for train.devices={config.devices}",
            hint="Restart the notebook's kernel or use the command line",
        ) from error


def configure_inference() -> None:
    """Import TensorFlow for inference, configured as for evaluation but on one device.

    A TensorFlow that already runs stays as it is.
    """
    tf = _import_tensorflow()
    with contextlib.suppress(RuntimeError):
        _enable_determinism(tf)
        _choose_gpus(tf, "auto", "")
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # other processes use it too


def _import_tensorflow() -> ModuleType:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "3"
    )  # without a GPU TensorFlow would warn of that
    with _silence_stderr():
        import tensorflow as tf

    return tf


def _enable_determinism(tf: ModuleType) -> None:
    threads = int(os.environ.get("TF_NUM_INTRAOP_THREADS", "0")) or len(os.sched_getaffinity(0))
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.experimental.enable_op_determinism()


def require_divisible(config: TrainConfig, workers: int, devices: int) -> None:
    """Refuse a batch that cannot be divided evenly.

    Args:
        config: the batch, and what each device's images must be a multiple of.
        workers: how many train together.
        devices: of each worker.

    Raises:
        ConfigError: it cannot.
    """
    if workers > 1 and devices > 1 and config.devices.startswith("cpu"):
        raise ConfigError(
            f"train.devices={config.devices} makes several devices of one processor, and there are"
            f" {workers} workers, which are several devices by themselves",
            expected="one of the two",
            hint="Type --devices cpu",
        )
    multiple = workers * devices * config.batch_multiple
    if config.global_batch_size % multiple:
        shared = (
            f"{workers} workers with {devices} device{'s' if devices > 1 else ''} each"
            if workers > 1
            else f"{devices} devices"
        )
        raise ConfigError(
            f"train.global_batch_size must be a multiple of {multiple}: {shared} share"
            f" it{explain_batch_multiple(config)}",
            received=str(config.global_batch_size),
            hint=(
                "Type --set"
                f" train.global_batch_size={-(-config.global_batch_size // multiple) * multiple}"
            ),
        )


@functools.cache
def _join_workers() -> Strategy:
    """Return the strategy over all workers; TensorFlow can make it once in a process."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    if (
        threading.current_thread() is threading.main_thread()
        and (handler := signal.getsignal(signal.SIGTERM)) is not None
    ):
        signal.signal(
            signal.SIGTERM, handler
        )  # TensorFlow has replaced it by that of its preemption watcher
    return strategy


@contextlib.contextmanager
def _silence_stderr() -> Iterator[None]:
    """Silence what TensorFlow's libraries write to file descriptor 2 while they are loaded.

    They do so before any log level counts.
    """
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as null:  # noqa: PTH123 - a device, not a path of ours
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _choose_gpus(tf: ModuleType, kind: str, which: str) -> None:
    """Make only the GPUs that were asked for visible to TensorFlow."""
    present = tf.config.list_physical_devices("GPU")
    numbers = (
        [int(number) for number in which.split(",")]
        if kind == "gpu" and which
        else list(range(len(present)))
    )
    if kind == "gpu" and (not present or max(numbers) >= len(present)):
        raise ConfigError(
            f"train.devices={kind}{':' if which else ''}{which} asks for a GPU that is not there",
            expected=f"one of the {len(present)} that TensorFlow sees",
            hint=(
                "Type --devices auto, or install the `gpu` extra and look at the output of"
                " `nvidia-smi`"
            ),
        )
    tf.config.set_visible_devices(
        [] if kind == "cpu" else [present[number] for number in numbers], "GPU"
    )


def _split_cpu(tf: ModuleType, count: int) -> None:
    """Make `count` logical devices of the CPU, to try several replicas on one machine."""
    cpu, *_ = tf.config.list_physical_devices("CPU")
    wanted = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
    if len(tf.config.get_logical_device_configuration(cpu) or [None]) != count:
        tf.config.set_logical_device_configuration(cpu, wanted)


def _require_onednn(config: TrainConfig, gpus: int) -> None:
    """Refuse bfloat16 on a processor without oneDNN, which has the kernels for it."""
    if (
        config.precision == "bfloat16"
        and not gpus
        and os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0"
    ):
        raise ConfigError(
            "train.precision=bfloat16 needs oneDNN on a processor; without it a step takes some"
            " fifteen times as long",
            expected="TF_ENABLE_ONEDNN_OPTS unset or 1",
            received="0",
            hint="Unset it, or type --set train.precision=float32",
        )


def list_devices() -> list[str]:
    """Return this process's devices for training: every visible GPU, or else every logical CPU."""
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    return [device.name for device in gpus or tf.config.list_logical_devices("CPU")]


def make_devices() -> Devices:
    """Return what to train on: the workers that were joined, or all devices of this process.

    With a strategy only for more than one.
    """
    import tensorflow as tf

    cluster = read_cluster()
    if cluster.workers > 1:
        return Devices(_join_workers(), cluster)
    names = list_devices()
    return Devices(tf.distribute.MirroredStrategy(names) if len(names) > 1 else None)


def describe_runtime() -> dict[str, Any]:
    """Return what decides the last bits of a result besides the settings, for MLflow's tags.

    Devices, workers, threads, oneDNN.
    """
    import tensorflow as tf

    return {
        "devices": ", ".join(list_devices()),
        "workers": read_cluster().workers,
        "threads.intra_op": tf.config.threading.get_intra_op_parallelism_threads(),
        "threads.inter_op": tf.config.threading.get_inter_op_parallelism_threads(),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
    }
