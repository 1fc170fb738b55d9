"""The training loop, explicit.

Several optimizer steps in each compiled call, on one device or many.

    for each epoch, until it is finished:
        rate  = learning_rate(settings, history)
        for each step:                                     # several a call, inside one tf.function
            on every replica, with its share of the batch:
                images, labels = augmented(batch)          # as drawn ahead on the host
                gradient = d(sum of losses / global batch) # in parts, where they are accumulated
                sum the gradients over the replicas; clip; decay; momentum; update
            averaged weights += (1 - share) (weights - averaged weights)
        score the validation split                         # each worker its share, each image once
        history += the epoch's numbers; keep the weights if they are the best

Whatever a step changes is a variable, also the count of steps and the epoch's sums, and one
compiled call changes them all. So the state is whole between any two calls: training can be stopped
there, killed there and taken up there, and goes the same way, bit for bit. Several workers run this
loop side by side; every decision follows from numbers that they have in common, and the chief alone
writes.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.evaluation_batches import make_evaluation_batches, make_scoring_batches
from pipeline.data.loader import LoadedSplit
from pipeline.data.training_batches import iterate_training_epochs
from pipeline.errors import CheckpointError, LostWorkerError, TrainingDivergedError
from pipeline.model.signal import IMAGES, named_signal, signal_numbers
from pipeline.train import trouble
from pipeline.train.optimizer import is_finished, learning_rate, planned_epochs
from pipeline.train.state import State
from pipeline.train.step import compiled_scoring, compiled_training, finish_average
from pipeline.train.strategy import Devices
from pipeline.train.watchdog import Patience

Progress = Callable[[int, int, str], None]
Say = Callable[[str], None]
# A compiled call takes about this long: long enough that its overhead is nothing, short enough that
# Ctrl-C is answered.
_CALL_SECONDS = 0.5
_MAX_STEPS_PER_CALL = 64
# How long a step that is under way when somebody asks to stop may still take, so that it can be
# saved.
_LAST_STEP_SECONDS = 10.0
_CLOCK = frozenset({"seconds", "images_per_second", "time"})
# Checkpoints wait until they take no more than this share of the time.
_CHECKPOINT_SHARE = 0.025
# What TensorFlow raises in the others when a worker is gone.
_GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.InternalError,
    tf.errors.DeadlineExceededError,
)


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Training:
    """What the loop is given besides its state: the images, the settings and the devices.

    Where it saves; and whom it tells.

    `checkpoint` is a file that may be there from an earlier attempt. `traces` is the folder for a
    profile, where one is wanted.
    """

    train: LoadedSplit
    validation: LoadedSplit
    config: TrainConfig
    devices: Devices
    checkpoint: Path
    traces: Path | None = None
    progress: Progress = _nothing
    say: Say = _nothing

    @property
    def per_epoch(self) -> int:
        """Steps an epoch; what does not fill a batch is left out, in each epoch something else."""
        return len(self.train) // self.config.global_batch_size


def fit(state: State, training: Training) -> Generator[dict[str, float]]:
    """Train from where the state is, and yield each epoch's numbers.

    Epochs taken up from the checkpoint are yielded first.

    `state` holds the weights of the last epoch and `state.best` those of the best one when the
    iterator ends. When SIGINT or SIGTERM ends it, or it is closed, the checkpoint holds the last
    step.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite, more often than `train.nan_restarts`
            forgives.
        OutOfMemoryError: a step does not fit into the device's memory.
        HungError: a step or its input does not come to an end.
        LostWorkerError: another worker is gone.
    """
    if problem := state.restore(training.checkpoint):
        training.say(
            f"{problem}; the training goes on from step {int(state.steps.numpy())}, the checkpoint"
            " before it"
        )
    size = state.network.input_shape[1]
    patience = Patience(
        training.config.watchdog_seconds,
        lambda: trouble.what_hangs(training.train, training.config, size, training.devices),
    )
    try:
        with _own_words(state, training):
            patience(_agree, state, training)
            yield from state.history
            epochs = _Epochs(state, training, patience)
            with contextlib.closing(epochs):
                yield from _with_ways_back(epochs, state, training)
    except (
        KeyboardInterrupt,
        GeneratorExit,
    ):  # in a step, between two, or where the epoch's numbers are made use of
        if patience.settle(_LAST_STEP_SECONDS):
            with contextlib.suppress(
                TrainingDivergedError
            ):  # what is not finite is not worth keeping
                state.save(training.checkpoint)
        raise
    finally:
        patience.close()


def _agree(state: State, training: Training) -> None:
    """Make sure that all workers begin with the same step, and choose the parts of a step."""
    config, devices = training.config, training.devices
    steps = float(state.steps.numpy())
    if devices.chiefs(steps) != steps:
        raise CheckpointError(
            f"Worker {devices.cluster.index} begins with step {steps:.0f}, the chief with another"
            f" one. Expected all workers to read {training.checkpoint} from storage that they"
            " share. Give them all the same --workdir there."
        )
    share = config.global_batch_size // devices.replicas
    if config.gradient_accumulation_steps == "auto" and (not state.parts or share % state.parts):
        state.parts = int(
            devices.chiefs(trouble.fitting_parts(state, training.train, config, devices))
        )
        if state.parts > 1:
            training.say(
                f"a step is taken in {state.parts} parts, because {share} images do not fit"
            )


@contextlib.contextmanager
def _own_words(state: State, training: Training) -> Iterator[None]:
    """Say what TensorFlow's errors mean here."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise trouble.out_of_memory(
            state, training.train, training.config, training.devices
        ) from error
    except _GONE as error:
        message = " ".join(str(error.message).split())
        if training.devices.cluster.workers == 1 or (
            isinstance(error, tf.errors.InternalError) and "ollective" not in message
        ):
            raise
        raise LostWorkerError(
            f"Another worker of this training is gone ({type(error).__name__}: {message:.120})."
            " Nothing but the steps since the last checkpoint is lost. Start all workers with the"
            " same command again, and the training goes on from there."
        ) from error


def _with_ways_back(
    epochs: _Epochs, state: State, training: Training
) -> Iterator[dict[str, float]]:
    """Yield the epochs; begin again from the last one's end when the loss is lost."""
    while True:
        try:
            yield from epochs.run()
        except TrainingDivergedError as error:
            if len(state.nan_restarts) >= training.config.nan_restarts:
                raise
            _go_back(state, between_epochs(training.checkpoint))
            state.save(training.checkpoint)
            place = (
                f"the training goes back to the end of epoch {len(state.history)}, at half the rate"
            )
            training.say(
                f"{error.what}: {place} ({len(state.nan_restarts)} of"
                f" {training.config.nan_restarts} times)"
            )
        else:
            return


def between_epochs(checkpoint: Path) -> Path:
    """Return where the state at the end of the last epoch is, for going back."""
    return checkpoint.with_name(f"epoch-{checkpoint.name}")


def _go_back(state: State, whole: Path) -> None:
    """Return to the end of the last epoch, and remember that."""
    nan_restarts, writes = [*state.nan_restarts, len(state.history) + 1], state.writes
    state.writes = False  # who is interrupted here does not save a mixture of two states
    state.restore(whole)
    state.nan_restarts, state.writes = nan_restarts, writes


class _Epochs:
    """The epochs that are left, each a number of compiled calls and a scoring."""

    def __init__(self, state: State, training: Training, patience: Patience):
        self._state, self._training, self._patience = state, training, patience
        self._size, self._per_epoch = state.network.input_shape[1], training.per_epoch
        self._train_steps = compiled_training(
            state, training.train, training.config, training.devices
        )
        self._score = compiled_scoring(state.judged, training.devices)
        self._signal = _compiled_signal(state.judged, training.validation)
        self._keeper = _Keeper(state, training)
        self._tracer = _Tracer(training)

    def run(self) -> Iterator[dict[str, float]]:
        """Yield each epoch's numbers."""
        state, config, devices = self._state, self._training.config, self._training.devices
        done, start = (
            len(state.history),
            int(state.steps.numpy()) - len(state.history) * self._per_epoch,
        )
        worker = (devices.cluster.index, devices.cluster.workers)
        spread = {
            "image_size": self._size,
            "first": done,
            "start": start,
            "worker": worker,
            "opened": devices.spread,
        }
        epochs = iterate_training_epochs(self._training.train, config, **spread)
        self._patience.keep(epochs)
        while (batches := self._patience(next, epochs, None)) is not None:
            if is_finished(config, state.history):
                return
            if (
                config.nan_restarts
                and int(state.steps.numpy()) == len(state.history) * self._per_epoch
            ):
                state.save(between_epochs(self._training.checkpoint))
            yield self._epoch(batches)

    def close(self) -> None:
        """End what is still being traced."""
        self._tracer.end()

    def _epoch(self, batches: Iterator[Any]) -> dict[str, float]:
        """Train for the rest of an epoch, score, and return its numbers, which are in the history then."""
        state, config = self._state, self._training.config
        begun, processor, entered = (
            time.monotonic() - state.seconds,
            time.process_time(),
            time.monotonic(),
        )
        epoch, rate = (
            len(state.history) + 1,
            learning_rate(config, state.history, len(state.nan_restarts)),
        )
        state.optimizer.learning_rate.assign(rate)
        images_per_second = self._steps(batches, begun)
        finish_average(state)
        scored = self.scored()
        _require_finite(scored[0], f"on the validation split after epoch {epoch}", state, config)
        entry = {
            "epoch": epoch,
            "learning_rate": rate,
            **_means("train", state.sums.numpy()),
            **_means("validation", scored),
        }
        entry |= self._patience(self._signal, rate) | (
            {"nan_restarts": len(state.nan_restarts)} if config.nan_restarts else {}
        )
        seconds = self._patience(
            self._training.devices.chiefs, time.monotonic() - begun
        )  # they decide when `minutes` are over
        entry |= {"images_per_second": images_per_second, "seconds": seconds, "time": time.time()}
        entry |= _usage((time.process_time() - processor) / (time.monotonic() - entered))
        weights = [np.asarray(value) for value in state.judged.get_weights()]
        if not all(
            np.isfinite(value).all() for value in weights
        ):  # ReLU can turn them into zeros, and the loss stays finite
            cause = trouble.likely_cause(state, config, rate)
            raise TrainingDivergedError(
                f"A weight was not finite after epoch {epoch}",
                expected="finite numbers",
                hint=cause,
            )
        if best_epoch([*state.history, entry]) is entry:
            state.best = weights
        state.history.append(
            entry
        )  # this alone ends the epoch: what was set before is found again if we are stopped before it
        state.seconds = 0.0
        self._keeper.save_if_due()
        return entry

    def _steps(self, batches: Iterator[Any], begun: float) -> float:
        """Do what is left of an epoch's steps, as many in one call as take about half a second.

        Return images a second.
        """
        state, training, per_epoch = self._state, self._training, self._per_epoch
        epoch, before, started, per_call = (
            len(state.history),
            int(state.steps.numpy()),
            time.monotonic(),
            1,
        )
        end, epochs = (epoch + 1) * per_epoch, planned_epochs(training.config, state.history)
        while (done := int(state.steps.numpy())) < end:
            called, processor = time.monotonic(), time.process_time()
            # The chief's number for all: TensorFlow matches what workers exchange by the place of a
            # step in its call.
            count = int(
                self._patience(
                    training.devices.chiefs, min(per_call, end - done, self._keeper.steps_until_due)
                )
            )
            sums = self._patience(
                _called, self._train_steps, batches, count, done == epoch * per_epoch
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
            self._keeper.save_if_due()
            self._tracer.passed(done)
            busy = (time.process_time() - processor) / elapsed
            detail = (
                f"epoch {epoch + 1}/{epochs}  loss {sums[0] / sums[3]:.3f}  error"
                f" {sums[1] / sums[3]:.1%}  {_device_use(busy)}"
            )
            training.progress(done, epochs * per_epoch, detail)
        return float(
            (end - before) * training.config.global_batch_size / (time.monotonic() - started)
        )

    def scored(self) -> Any:
        """Return the summed numbers over the validation split, each image once, float64 [4].

        Each worker scores its share.
        """
        images, devices = self._training.validation, self._training.devices
        worker = (devices.cluster.index, devices.cluster.workers)
        batch = (
            self._training.config.global_batch_size // worker[1] // max(1, self._state.parts)
        )  # no more than training has at a time
        full = devices.strategy is not None
        batches = devices.spread(
            make_scoring_batches(
                images, image_size=self._size, batch_size=batch, worker=worker, full=full
            )
        )
        own = range(worker[0], -(-len(images) // batch), worker[1])
        sums = sum(
            (self._patience(lambda: self._score(batches).numpy()) for _ in own), start=np.zeros(4)
        )
        return self._patience(devices.total, sums)


def _called(
    train_steps: Callable[[Any, Any, Any], Any], batches: Iterator[Any], count: int, fresh: bool
) -> Any:
    return train_steps(batches, tf.constant(count, tf.int64), tf.constant(fresh)).numpy()


class _Keeper:
    """Saves checkpoints so often that little is lost and so seldom that little time is."""

    def __init__(self, state: State, training: Training):
        self._state, self._path = state, training.checkpoint
        self._least, self._steps = (
            training.config.checkpoint_seconds,
            training.config.checkpoint_steps,
        )
        self._wait, self._saved, self._saved_step = (
            self._least,
            time.monotonic(),
            int(state.steps.numpy()),
        )

    @property
    def steps_until_due(self) -> int:
        """How many steps may be done before the next checkpoint that is asked for by their number."""
        if not self._steps:
            return _MAX_STEPS_PER_CALL
        step = int(self._state.steps.numpy())
        self._saved_step = min(self._saved_step, step)  # training may have gone back
        return self._saved_step + self._steps - step

    def save_if_due(self) -> None:
        """Save if the last time is long enough ago, or as many steps as are asked for."""
        begun, step = time.monotonic(), int(self._state.steps.numpy())
        if begun - self._saved < self._wait and not (
            self._steps and step >= self._saved_step + self._steps
        ):
            return
        with contextlib.suppress(
            TrainingDivergedError
        ):  # the next loss, or the end of the epoch, tells it to all workers alike
            self._state.save(self._path)
        self._saved, self._saved_step = time.monotonic(), step
        self._wait = (
            max(self._least, (self._saved - begun) / _CHECKPOINT_SHARE) if self._least else 0.0
        )


class _Tracer:
    """Writes a trace of some steps for TensorBoard's profiler.

    It begins after the first call, which compiles.
    """

    def __init__(self, training: Training):
        self._folder, self._steps, self._first = training.traces, training.config.profile_steps, -1

    def passed(self, step: int) -> None:
        """Begin or end the trace, where its turn has come, after so many steps since the beginning of the training."""
        if not self._steps or self._folder is None:
            return
        if self._first < 0:
            self._first = step
            tf.profiler.experimental.start(str(self._folder))
        elif step >= self._first + self._steps:
            self.end()

    def end(self) -> None:
        """Write what there is, at the latest when training ends."""
        if self._steps and self._first >= 0:
            tf.profiler.experimental.stop()
            self._steps = 0


def best_epoch(history: list[dict[str, float]]) -> dict[str, float]:
    """Return the epoch with the lowest validation error.

    Of equals the one with the lowest validation loss, then the first.
    """
    return min(
        history, key=lambda entry: (entry["validation_top1_error"], entry["validation_loss"])
    )


def _compiled_signal(network: Any, validation: LoadedSplit) -> Callable[[float], dict[str, float]]:
    """Return a function of the learning rate that says what passes through each layer, for some of the validation images."""
    images, labels = next(
        iter(
            make_evaluation_batches(
                validation, image_size=network.input_shape[1], batch_size=IMAGES
            )
        )
    )
    numbers = tf.function(signal_numbers(network, training=False))
    return lambda rate: named_signal(network, numbers(images, labels), rate).metrics()


def _usage(processors: float) -> dict[str, float]:
    """Return how much of the machine an epoch took.

    Processors busy on average, GB of memory, and GB of each GPU's at most.
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


def _device_use(processors: float) -> str:
    """Say in short what training takes of the machine."""
    memory = [
        f"{name.split('/')[1].partition('_')[0]} {gb:.1f} GB"
        for name, gb in _usage(0).items()
        if "/gpu" in name
    ]
    return "  ".join([f"{processors:.1f} of {len(os.sched_getaffinity(0))} cores", *memory])


def without_clock(entry: dict[str, float]) -> dict[str, float]:
    """Return the numbers of an epoch that the same training has each time.

    All but readings of the clock and of the machine.
    """
    return {
        name: value
        for name, value in entry.items()
        if name not in _CLOCK and not name.startswith("system/")
    }


def _require_finite(loss: float, where: str, state: State, config: TrainConfig) -> None:
    """Refuse to go on with a network whose numbers are lost."""
    if not math.isfinite(loss):
        cause = trouble.likely_cause(state, config, float(state.optimizer.learning_rate))
        raise TrainingDivergedError(
            f"The loss became {loss} {where}", expected="a finite number", hint=cause
        )


def _means(prefix: str, sums: Any) -> dict[str, float]:
    """Return mean loss and errors, as fractions, from summed numbers."""
    names = ("loss", "top1_error", "top5_error")
    return {
        f"{prefix}_{name}": float(value / sums[3]) for name, value in zip(names, sums, strict=False)
    }
