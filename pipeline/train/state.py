"""Everything that training changes: made, saved into one file, and restored from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.errors import CheckpointError
from pipeline.train.checkpoint import read_checkpoint, save_checkpoint
from pipeline.train.dropout import BatchPosition
from pipeline.train.freezing import freeze_layers
from pipeline.train.network_copy import copy_network
from pipeline.train.optimizer import make_optimizer
from pipeline.train.strategy import Devices

if TYPE_CHECKING:
    from pipeline.arrays import Array, Layer, Network, Optimizer, Variable

_FLOAT32_LAYERS = (keras.layers.InputLayer, keras.layers.Rescaling, keras.layers.Normalization)
_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
)


@dataclass
class TrainingState:
    """What training changes.

    Attributes:
        network: the network that is trained.
        optimizer: of its trainable variables.
        ema_network: the network that is scored and kept: the exponential moving average of the
            weights, or `network` itself where weights are not averaged.
        batch_position: of the next step, for dropout.
        steps: optimizer steps since the beginning, int64.
        sums: over the current epoch, float64 [4] as `step.compute_sums` gives them.
        best_weights: those of the best epoch so far.
        history: the numbers of each finished epoch.
        seconds: spent on the current epoch.
        nan_restarts: the epochs, from 1, that were started again after a loss that was not finite.
        gradient_accumulation_steps: micro-batches that a device takes its images in; 0 until
            `auto` has been decided.
        writes: whether this process writes checkpoints; of several workers only the chief does.
        rate_fractions: the learning rate of a layer, as a fraction of that of all; 1 if not named.
    """

    network: Network
    optimizer: Optimizer
    ema_network: Network
    batch_position: BatchPosition
    steps: Variable
    sums: Variable
    best_weights: list[Array]
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    nan_restarts: list[int] = field(default_factory=list)
    gradient_accumulation_steps: int = 0
    writes: bool = True
    rate_fractions: Mapping[str, float] = field(default_factory=dict)

    def named_variables(self) -> dict[str, Variable]:
        """Return every variable by a stable name.

        Weights, averaged weights, optimizer slots, counts.
        """
        groups = {
            "model": self.network.variables,
            "optimizer": self.optimizer.variables,
            "count": [self.steps, self.sums],
        }
        if self.ema_network is not self.network:
            groups["ema"] = self.ema_network.weights
        return {
            f"{group}/{i}": variable
            for group, variables in groups.items()
            for i, variable in enumerate(variables)
        }

    def list_rate_multipliers(self) -> list[float] | None:
        """Return each trained variable's learning rate as a fraction of that of all.

        None where all have the same.
        """
        if not self.rate_fractions:
            return None
        fractions = {
            id(weight): self.rate_fractions.get(layer.name, 1.0)
            for layer in self.network.layers
            for weight in layer.trainable_weights
        }
        return [fractions[id(variable)] for variable in self.network.trainable_variables]

    def save_to(self, path: Path) -> None:
        """Write everything into one file, where this process writes."""
        if self.writes:
            arrays = {
                name: np.asarray(variable.numpy())
                for name, variable in self.named_variables().items()
            }
            arrays |= {f"best/{i}": weights for i, weights in enumerate(self.best_weights)}
            record = {
                "history": self.history,
                "seconds": self.seconds,
                "nan_restarts": self.nan_restarts,
                "gradient_accumulation_steps": self.gradient_accumulation_steps,
            }
            save_checkpoint(path, arrays, record)

    def restore_from(self, path: Path) -> str:
        """Restore what an earlier training saved, if it saved anything.

        Return what was wrong with its last file if the one before it was taken, else "".
        """
        found = read_checkpoint(path)
        if found is None:
            return ""
        arrays, record, problem = found
        self._require_matching(arrays, path)
        self.history, self.seconds, self.nan_restarts = (
            record["history"],
            record["seconds"],
            record["nan_restarts"],
        )
        self.gradient_accumulation_steps = record["gradient_accumulation_steps"]
        for name, variable in self.named_variables().items():
            variable.assign(arrays[name])
        self.best_weights = [arrays[f"best/{i}"] for i in range(len(self.best_weights))]
        return problem

    def _require_matching(self, arrays: Mapping[str, Array], path: Path) -> None:
        """Refuse the state of another network or optimizer before anything is changed."""
        for name, variable in self.named_variables().items():
            found = arrays[name].shape if name in arrays else "nothing"
            if found != tuple(variable.shape):
                raise CheckpointError(
                    f"The checkpoint {path} belongs to another training",
                    expected=f"{tuple(variable.shape)} for {name}",
                    received=str(found),
                    hint=f"Delete {path.parent} to train from the beginning",
                )


def prepare_state(
    load_network: Callable[[], Network], config: TrainConfig, devices: Devices
) -> TrainingState:
    """Return the state at the first step, its variables made where the devices need them.

    Args:
        load_network: returns the uncompiled network.
        config: seed, precision, what is frozen, and the optimizer's settings.
        devices: what the training runs on.
    """
    loaded = load_network()
    position = BatchPosition(config.seed, config.global_batch_size)
    with devices.scope():
        network = copy_network(loaded, position)
        freeze_layers(network, config.freeze)
        _set_precision(network, config.precision)
        optimizer = make_optimizer(config, network.trainable_variables)
    freeze_layers(loaded, config.freeze)
    return TrainingState(
        network,
        optimizer,
        ema_network=loaded if config.ema_decay else network,
        batch_position=position,
        steps=tf.Variable(0, dtype=tf.int64, trainable=False),
        sums=tf.Variable(tf.zeros(4, tf.float64), trainable=False),
        best_weights=[np.asarray(value) for value in loaded.get_weights()],
        gradient_accumulation_steps=0
        if config.gradient_accumulation_steps == "auto"
        else config.gradient_accumulation_steps,
        writes=devices.cluster.is_chief,
    )


def _set_precision(network: Network, precision: str) -> None:
    """Make the layers compute in bfloat16 or float16 and keep their weights in float32.

    Normalization computes its statistics in float32 by itself; what scales pixels stays in float32,
    as 8 bits do not hold the difference of neighboring levels of 0-255 after it.
    """
    if precision != "float32":
        for layer in network.layers:
            if not isinstance(layer, _FLOAT32_LAYERS) and not (
                precision == "float16" and _is_scale(layer)
            ):
                layer.dtype_policy = f"mixed_{precision}"


def _is_scale(layer: Layer) -> bool:
    """Return whether a layer has vectors alone and is no normalization, as ConvNeXt's LayerScale.

    Its numbers begin at 1e-6, of which float16 has four bits.
    """
    vectors = all(len(weight.shape) <= 1 for weight in layer.weights)
    return bool(layer.weights) and vectors and not isinstance(layer, _NORMALIZATIONS)
