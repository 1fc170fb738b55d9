"""The training loop, explicit.

Several optimizer steps in each compiled call, on one device or many.

    for each epoch, until it is finished:
        rate  = compute_learning_rate(settings, history)
        for each step:                                     # several a call, inside one tf.function
            on every replica, with its rows of the batch:
                images, labels = augment_batch(batch)      # as drawn ahead on the host
                gradient = d(sum of losses / global batch) # in micro-batches, where accumulated
                sum the gradients over the replicas; clip; decay; momentum; update
            averaged weights += (1 - decay) (weights - averaged weights)
        score the validation split                         # each worker its part, each image once
        history += the epoch's numbers; keep the weights if they are the best

Whatever a step changes is a variable, also the count of steps and the epoch's sums, and one
compiled call changes them all. So the state is whole between any two calls: training can be stopped
there, killed there and resumed there, and goes the same way, bit for bit. Several workers run this
loop side by side; every decision follows from numbers that they have in common, and the chief alone
writes.

Longer than 400 lines, as an epoch is one thing: what a reader needs in order to follow it is here.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.evaluation_batches import make_evaluation_batches, make_scoring_batches
from pipeline.data.loader import LoadedSplit
from pipeline.data.training_batches import iterate_training_epochs
from pipeline.errors import CheckpointError, LostWorkerError, TrainingDivergedError
from pipeline.model.signal import (
    SIGNAL_IMAGES,
    build_signal_probe,
    read_signal,
    spread_weighted_layers,
)
from pipeline.train.checkpoint_saver import CheckpointSaver
from pipeline.train.diagnosis import diagnose_divergence, diagnose_hang
from pipeline.train.memory import choose_accumulation_steps, diagnose_memory
from pipeline.train.optimizer import compute_learning_rate, is_finished, plan_epochs
from pipeline.train.profiling import StepTracer, describe_machine_usage, measure_machine_usage
from pipeline.train.state import TrainingState
from pipeline.train.step import compile_scoring, compile_training, copy_ema_statistics
from pipeline.train.strategy import Devices
from pipeline.train.watchdog import Watchdog

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Network, Tensor
    from pipeline.train.step import LoadedBatch

# (optimizer steps done, steps planned, loss and use of the machine in a few words).
ReportProgress = Callable[[int, int, str], None]
# A compiled call takes about this long: long enough that its overhead is nothing, short enough that
# Ctrl-C is answered.
_CALL_SECONDS = 0.5
_MAX_STEPS_PER_CALL = 64
# How long a step that is under way when training is interrupted may still take, so that it can be
# saved.
_LAST_STEP_SECONDS = 10.0
# The signal after each epoch: of a network with more layers it is that of these, through fewer
# images, so that it takes a fiftieth of an epoch of 500 images and not a tenth.
_MAX_SIGNAL_LAYERS, _SIGNAL_IMAGES_OF_MANY_LAYERS = 16, 8
_CLOCK_FIELDS = frozenset({"seconds", "images_per_second", "time"})
# What TensorFlow raises in the others when a worker is gone.
_LOST_WORKER_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.InternalError,
    tf.errors.DeadlineExceededError,
)


def _ignore_call(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Training:
    """What the loop needs besides its state: images, settings, devices, files and callbacks.

    Attributes:
        train: the training split.
        validation: the validation split.
        config: the settings.
        devices: what the training runs on.
        checkpoint: the file to save to; an earlier attempt's is resumed.
        traces: the folder for a profile, where one is wanted.
        report_progress: called after every compiled call.
        notify: called with a sentence about what a person should know although training goes on.
        by_loss: the validation loss chooses the best epoch and ends training early, not the error.
    """

    train: LoadedSplit
    validation: LoadedSplit
    config: TrainConfig
    devices: Devices
    checkpoint: Path
    traces: Path | None = None
    report_progress: ReportProgress = _ignore_call
    notify: Callable[[str], None] = _ignore_call
    by_loss: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch; images that do not fill a batch are left out, others in each epoch."""
        return len(self.train) // self.config.global_batch_size


def train_epochs(state: TrainingState, training: Training) -> Generator[dict[str, float]]:
    """Train from where the state is, and yield each epoch's numbers.

    Epochs of the resumed checkpoint are yielded first.

    `state` holds the weights of the last epoch and `state.best_weights` those of the best one when
    the iterator ends. When SIGINT or SIGTERM ends it, or it is closed, the checkpoint holds the
    last step.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite, more often than `train.nan_restarts`
            allows.
        OutOfMemoryError: a step does not fit into the device's memory.
        HungError: a step or its input does not come to an end.
        LostWorkerError: another worker is gone.
    """
    if problem := state.restore_from(training.checkpoint):
        training.notify(
            f"{problem}; the training goes on from step {int(state.steps.numpy())}, the checkpoint"
            " before it"
        )
    size = state.network.input_shape[1:3]
    watchdog = Watchdog(
        training.config.watchdog_seconds,
        lambda: diagnose_hang(training.train, training.config, size, training.devices),
    )
    try:
        with _translate_tensorflow_errors(state, training):
            watchdog.call(_agree_on_start, state, training)
            yield from state.history
            epochs = _EpochLoop(state, training, watchdog)
            with contextlib.closing(epochs):
                yield from _restart_after_nan(epochs, state, training)
    except (
        KeyboardInterrupt,
        GeneratorExit,
    ):  # in a step, between two, or where the epoch's numbers are made use of
        if watchdog.wait_until_idle(_LAST_STEP_SECONDS):
            with contextlib.suppress(
                TrainingDivergedError
            ):  # what is not finite is not worth keeping
                state.save_to(training.checkpoint)
        raise
    finally:
        watchdog.close()


def _agree_on_start(state: TrainingState, training: Training) -> None:
    """Require all workers to begin with the same step, and choose the micro-batches of a step."""
    config, devices = training.config, training.devices
    steps = float(state.steps.numpy())
    if devices.broadcast_from_chief(steps) != steps:
        raise CheckpointError(
            f"Worker {devices.cluster.index} begins with step {steps:.0f}, the chief with another"
            " one",
            expected=f"all workers to read {training.checkpoint} from storage that they share",
            hint="Give them all the same --workdir there",
        )
    replica_batch = config.global_batch_size // devices.replicas
    if config.gradient_accumulation_steps == "auto" and (
        not state.gradient_accumulation_steps or replica_batch % state.gradient_accumulation_steps
    ):
        state.gradient_accumulation_steps = int(
            devices.broadcast_from_chief(
                choose_accumulation_steps(state, training.train, config, devices)
            )
        )
        if state.gradient_accumulation_steps > 1:
            training.notify(
                f"a step is taken in {state.gradient_accumulation_steps} micro-batches, because"
                f" {replica_batch} images do not fit into memory"
            )


@contextlib.contextmanager
def _translate_tensorflow_errors(state: TrainingState, training: Training) -> Iterator[None]:
    """Raise this package's errors in place of TensorFlow's."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise diagnose_memory(state, training.train, training.config, training.devices) from error
    except _LOST_WORKER_ERRORS as error:
        message = " ".join(str(error.message).split())
        if training.devices.cluster.workers == 1 or (
            isinstance(error, tf.errors.InternalError) and "ollective" not in message
        ):
            raise
        raise LostWorkerError(
            f"Another worker of this training is gone ({type(error).__name__}: {message:.120})",
            hint=(
                "Only the steps since the last checkpoint are lost: start all workers with the same"
                " command again, and the training goes on from there"
            ),
        ) from error


def _restart_after_nan(
    epochs: _EpochLoop, state: TrainingState, training: Training
) -> Iterator[dict[str, float]]:
    """Yield the epochs; start again from the last one's end after a loss that is not finite."""
    while True:
        try:
            yield from epochs.run_epochs()
        except TrainingDivergedError as error:
            if len(state.nan_restarts) >= training.config.nan_restarts:
                raise
            _restore_last_epoch(state, epoch_checkpoint_path(training.checkpoint))
            state.save_to(training.checkpoint)
            training.notify(
                f"{error.what}: the training goes back to the end of epoch"
                f" {len(state.history)}, at half the rate ({len(state.nan_restarts)} of"
                f" {training.config.nan_restarts} times)"
            )
        else:
            return


def epoch_checkpoint_path(checkpoint: Path) -> Path:
    """Return the file of the state at the end of the last epoch, for a restart."""
    return checkpoint.with_name(f"epoch-{checkpoint.name}")


def _restore_last_epoch(state: TrainingState, checkpoint: Path) -> None:
    """Restore the state at the end of the last epoch, and record the restart."""
    nan_restarts, writes = [*state.nan_restarts, len(state.history) + 1], state.writes
    state.writes = False  # an interrupt here must not save a mixture of two states
    state.restore_from(checkpoint)
    state.nan_restarts, state.writes = nan_restarts, writes


class _EpochLoop:
    """The remaining epochs, each a number of compiled calls and a scoring."""

    def __init__(self, state: TrainingState, training: Training, watchdog: Watchdog):
        self._state, self._training, self._watchdog = state, training, watchdog
        self._size, self._per_epoch = state.network.input_shape[1:3], training.steps_per_epoch
        self._train_steps = compile_training(
            state, training.train, training.config, training.devices
        )
        self._score = compile_scoring(state.ema_network, training.devices)
        self._signal = _compile_signal(state.ema_network, training.validation)
        self._saver = CheckpointSaver(state, training.checkpoint, training.config)
        self._tracer = StepTracer(training.traces, training.config.profile_steps)

    def run_epochs(self) -> Iterator[dict[str, float]]:
        """Yield each epoch's numbers."""
        state, config, devices = self._state, self._training.config, self._training.devices
        done, start = (
            len(state.history),
            int(state.steps.numpy()) - len(state.history) * self._per_epoch,
        )
        worker = (devices.cluster.index, devices.cluster.workers)
        options = {
            "image_size": self._size,
            "first": done,
            "start": start,
            "worker": worker,
            "opened": devices.distribute_batches,
        }
        epochs = iterate_training_epochs(self._training.train, config, **options)
        self._watchdog.keep_alive(epochs)
        while (batches := self._watchdog.call(next, epochs, None)) is not None:
            if is_finished(config, state.history, by_loss=self._training.by_loss):
                return
            if (
                config.nan_restarts
                and int(state.steps.numpy()) == len(state.history) * self._per_epoch
            ):
                state.save_to(epoch_checkpoint_path(self._training.checkpoint))
            yield self._train_epoch(batches)

    def close(self) -> None:
        """End a trace that is under way."""
        self._tracer.stop()

    def _train_epoch(self, batches: Iterator[LoadedBatch]) -> dict[str, float]:
        """Train for the rest of an epoch, score, and return the numbers added to the history."""
        state, config = self._state, self._training.config
        begun, processor, entered = (
            time.monotonic() - state.seconds,
            time.process_time(),
            time.monotonic(),
        )
        epoch, rate = (
            len(state.history) + 1,
            compute_learning_rate(config, state.history, len(state.nan_restarts)),
        )
        state.optimizer.learning_rate.assign(rate)
        images_per_second = self._run_steps(batches, begun)
        copy_ema_statistics(state)
        scored = self.score_validation()
        _require_finite(scored[0], f"on the validation split after epoch {epoch}", state, config)
        entry = {
            "epoch": epoch,
            "learning_rate": rate,
            **compute_means("train", state.sums.numpy()),
            **compute_means("validation", scored),
        }
        entry |= self._watchdog.call(self._signal, rate) | (
            {"nan_restarts": len(state.nan_restarts)} if config.nan_restarts else {}
        )
        seconds = self._watchdog.call(
            self._training.devices.broadcast_from_chief, time.monotonic() - begun
        )  # they decide when `max_minutes` are over
        entry |= {"images_per_second": images_per_second, "seconds": seconds, "time": time.time()}
        entry |= measure_machine_usage(
            (time.process_time() - processor) / (time.monotonic() - entered)
        )
        weights = [np.asarray(value) for value in state.ema_network.get_weights()]
        if not all(
            np.isfinite(value).all() for value in weights
        ):  # ReLU can turn them into zeros, and the loss stays finite
            cause = diagnose_divergence(state, config, rate)
            raise TrainingDivergedError(
                f"A weight was not finite after epoch {epoch}",
                expected="finite numbers",
                hint=cause,
            )
        epochs = [*state.history, entry]
        if choose_best_epoch(epochs, by_loss=self._training.by_loss) is entry:
            state.best_weights = weights
        state.history.append(
            entry
        )  # this alone ends the epoch: what was set before is computed again after an interrupt
        state.seconds = 0.0
        self._saver.save_if_due()
        return entry

    def _run_steps(self, batches: Iterator[LoadedBatch], begun: float) -> float:
        """Do an epoch's remaining steps, as many in one call as take about half a second.

        Return images per second.
        """
        state, training, per_epoch = self._state, self._training, self._per_epoch
        epoch, before, started, per_call = (
            len(state.history),
            int(state.steps.numpy()),
            time.monotonic(),
            1,
        )
        end, epochs = (epoch + 1) * per_epoch, plan_epochs(training.config, state.history)
        while (done := int(state.steps.numpy())) < end:
            called, processor = time.monotonic(), time.process_time()
            # The chief's number for all: TensorFlow matches what workers exchange by the index of a
            # step in its call.
            count = int(
                self._watchdog.call(
                    training.devices.broadcast_from_chief,
                    min(per_call, end - done, self._saver.steps_until_due),
                )
            )
            sums = self._watchdog.call(
                _call_train_steps, self._train_steps, batches, count, done == epoch * per_epoch
            )
            elapsed = time.monotonic() - called
            state.seconds = time.monotonic() - begun
            done = int(state.steps.numpy())
            _require_finite(
                sums[0],
                f"in epoch {epoch + 1}, at step {done - epoch * per_epoch} of {per_epoch}",
                state,
                training.config,
            )
            per_call = max(
                1, min(_MAX_STEPS_PER_CALL, 2 * count, int(_CALL_SECONDS * count / elapsed))
            )
            self._saver.save_if_due()
            self._tracer.trace_step(done)
            busy = (time.process_time() - processor) / elapsed
            detail = (
                f"epoch {epoch + 1}/{epochs}  loss {sums[0] / sums[3]:.3f}  error"
                f" {sums[1] / sums[3]:.1%}  {describe_machine_usage(busy)}"
            )
            training.report_progress(done, epochs * per_epoch, detail)
        return float(
            (end - before) * training.config.global_batch_size / (time.monotonic() - started)
        )

    def score_validation(self) -> Floats:
        """Return the sums over the validation split, each image once, float64 [4].

        As `step.compute_sums` gives them; each worker scores its part.
        """
        images, devices = self._training.validation, self._training.devices
        worker = (devices.cluster.index, devices.cluster.workers)
        batch = (
            self._training.config.global_batch_size
            // worker[1]
            // max(1, self._state.gradient_accumulation_steps)
        )  # no more than training has at a time
        full = devices.strategy is not None
        batches = devices.distribute_batches(
            make_scoring_batches(
                images, image_size=self._size, batch_size=batch, worker=worker, full=full
            )
        )
        own = range(worker[0], -(-len(images) // batch), worker[1])
        sums = sum(
            (self._watchdog.call(lambda: self._score(batches).numpy()) for _ in own),
            start=np.zeros(4),
        )
        return self._watchdog.call(devices.sum_over_workers, sums)


def _call_train_steps(
    train_steps: Callable[[Iterator[LoadedBatch], Tensor, Tensor], Tensor],
    batches: Iterator[LoadedBatch],
    count: int,
    fresh: bool,
) -> Floats:
    return train_steps(batches, tf.constant(count, tf.int64), tf.constant(fresh)).numpy()


def choose_best_epoch(
    history: list[dict[str, float]], *, by_loss: bool = False
) -> dict[str, float]:
    """Return the epoch with the lowest validation error, or with the lowest validation loss.

    Ties of the error go to the lowest loss, then to the first.
    """
    names = ("validation_loss",) if by_loss else ("validation_top1_error", "validation_loss")
    return min(history, key=lambda entry: [entry[name] for name in names])


def _compile_signal(
    network: Network, validation: LoadedSplit
) -> Callable[[float], dict[str, float]]:
    """Return a function of the learning rate -> the signal through the layers.

    Measured on some of the validation images; through each layer with a kernel, or where there are
    many through some from the first to the last.
    """
    layers = spread_weighted_layers(network, _MAX_SIGNAL_LAYERS)
    many = len(layers) == _MAX_SIGNAL_LAYERS
    batch_size = _SIGNAL_IMAGES_OF_MANY_LAYERS if many else SIGNAL_IMAGES
    images, labels = next(
        iter(
            make_evaluation_batches(
                validation, image_size=network.input_shape[1:3], batch_size=batch_size
            )
        )
    )
    numbers = tf.function(build_signal_probe(network, training=False, layers=layers))
    return lambda rate: read_signal(network, numbers(images, labels), rate, layers).to_metrics()


def remove_clock_readings(entry: dict[str, float]) -> dict[str, float]:
    """Return an epoch's numbers without readings of the clock and of the machine.

    What is left is equal whenever the same training is repeated.
    """
    return {
        name: value
        for name, value in entry.items()
        if name not in _CLOCK_FIELDS and not name.startswith("system/")
    }


def _require_finite(loss: float, where: str, state: TrainingState, config: TrainConfig) -> None:
    """Refuse to go on with a loss that is NaN or infinite."""
    if not math.isfinite(loss):
        cause = diagnose_divergence(state, config, float(state.optimizer.learning_rate))
        raise TrainingDivergedError(
            f"The loss became {loss} {where}", expected="a finite number", hint=cause
        )


def compute_means(prefix: str, sums: Floats) -> dict[str, float]:
    """Return mean loss and errors, as fractions, from summed numbers."""
    names = ("loss", "top1_error", "top5_error")
    return {
        f"{prefix}_{name}": float(value / sums[3]) for name, value in zip(names, sums, strict=False)
    }
