"""Everything that training changes: made, saved into one file, and taken up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.train.checkpoint import read_checkpoint, save_checkpoint
from pipeline.train.dropout import Place, with_placed_dropout
from pipeline.train.optimizer import make_optimizer
from pipeline.train.strategy import Devices


@dataclass
class State:
    """What training changes.

    `network` and `optimizer`; `judged`, the network that is scored and kept, another one where
    weights are averaged; `place` of the next step; `steps` done since the beginning, int64; `sums`
    over the current epoch, float64 [4] as `step.sums_of` gives them; the finished epochs; the
    weights of the best of them; seconds spent on the current one; the epochs, from 1, from which
    training went back; and the parts that a device takes its images in, 0 as long as that is open.
    Of several workers only the chief `writes`.
    """

    network: Any
    optimizer: Any
    judged: Any
    place: Place
    steps: Any
    sums: Any
    best: list[np.ndarray[Any, Any]]
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    nan_restarts: list[int] = field(default_factory=list)
    parts: int = 0
    writes: bool = True

    def variables(self) -> dict[str, Any]:
        """Return every variable by a stable name.

        Weights, averaged weights, optimizer slots, counts.
        """
        groups = {
            "model": self.network.variables,
            "optimizer": self.optimizer.variables,
            "count": [self.steps, self.sums],
        }
        if self.judged is not self.network:
            groups["judged"] = self.judged.weights
        return {
            f"{group}/{i}": variable
            for group, variables in groups.items()
            for i, variable in enumerate(variables)
        }

    def save(self, path: Path) -> None:
        """Write everything into one file."""
        if self.writes:
            arrays = {
                name: np.asarray(variable.numpy()) for name, variable in self.variables().items()
            }
            arrays |= {f"best/{i}": weights for i, weights in enumerate(self.best)}
            kept = {
                "history": self.history,
                "seconds": self.seconds,
                "nan_restarts": self.nan_restarts,
                "parts": self.parts,
            }
            save_checkpoint(path, arrays, kept)

    def restore(self, path: Path) -> str:
        """Take up what a training left, if it left anything.

        Say what was wrong with its last file if the one before it was taken.
        """
        found = read_checkpoint(path)
        if found is None:
            return ""
        arrays, record, problem = found
        self._require_own(arrays, path)
        self.history, self.seconds, self.nan_restarts = (
            record["history"],
            record["seconds"],
            record["nan_restarts"],
        )
        self.parts = record["parts"]
        for name, variable in self.variables().items():
            variable.assign(arrays[name])
        self.best = [arrays[f"best/{i}"] for i in range(len(self.best))]
        return problem

    def _require_own(self, arrays: Mapping[str, Any], path: Path) -> None:
        """Refuse the state of another network or optimizer, before anything of this one is changed."""
        for name, variable in self.variables().items():
            found = arrays[name].shape if name in arrays else "nothing"
            if found != tuple(variable.shape):
                raise CheckpointError(
                    f"The checkpoint {path} belongs to another training: for {name} it holds"
                    f" {found}, expected {tuple(variable.shape)}. Delete {path.parent} to train"
                    " from the beginning."
                )


def prepare(load_network: Callable[[], Any], config: TrainConfig, devices: Devices) -> State:
    """Return the state at the first step, the trained variables made where the devices need them.

    Args:
        load_network: returns the uncompiled network.
        config: seed, precision, what is frozen, and the optimizer's settings.
        devices: what the training runs on.
    """
    loaded = load_network()
    place = Place(config.seed, config.global_batch_size)
    with devices.scope():
        network = with_placed_dropout(loaded, place)
        _freeze(network, config.freeze)
        _set_precision(network, config.precision)
        optimizer = make_optimizer(config, network.trainable_variables)
    _freeze(loaded, config.freeze)
    return State(
        network,
        optimizer,
        judged=loaded if config.ema_decay else network,
        place=place,
        steps=tf.Variable(0, dtype=tf.int64, trainable=False),
        sums=tf.Variable(tf.zeros(4, tf.float64), trainable=False),
        best=[np.asarray(value) for value in loaded.get_weights()],
        parts=0
        if config.gradient_accumulation_steps == "auto"
        else config.gradient_accumulation_steps,
        writes=devices.cluster.is_chief,
    )


def _freeze(network: Any, last: str) -> None:
    """Make the layers up to and including `last` and its normalization keep their weights and statistics."""
    names = [layer.name for layer in network.layers]
    if last not in ("none", *names):
        known = ", ".join(layer.name for layer in network.layers[:-1] if layer.weights)
        raise ConfigError(
            f"The network has no layer {last} to freeze. Expected train.freeze to be none or one of"
            f" {known}."
        )
    if last == "none":
        return
    place = names.index(last)
    end = next(
        (
            index
            for index, layer in enumerate(network.layers)
            if index > place and hasattr(layer, "kernel")
        ),
        len(names),
    )
    for layer in network.layers[:end]:
        layer.trainable = False


def _set_precision(network: Any, precision: str) -> None:
    """Make the layers compute in bfloat16 or float16 and keep their weights in float32."""
    if precision != "float32":
        for layer in network.layers:
            if not isinstance(layer, keras.layers.InputLayer):
                layer.dtype_policy = f"mixed_{precision}"
