"""What made a training fail, measured: numbers that are not finite, and a step that hangs."""

from __future__ import annotations

import math

import numpy as np

from pipeline.config.train import TrainConfig
from pipeline.data.input_stages import list_input_stages
from pipeline.data.loader import LoadedSplit
from pipeline.errors import HungError
from pipeline.image_size import ImageSize
from pipeline.reports.training_advice import advise_on_divergence, make_hung_error
from pipeline.train.state import TrainingState
from pipeline.train.strategy import Devices
from pipeline.train.watchdog import returns_within

# A stage of the input that gives nothing for so long, when training waits for it already, is the
# one that hangs.
_STAGE_SECONDS = 15.0


def diagnose_divergence(state: TrainingState, config: TrainConfig, learning_rate: float) -> str:
    """Return the likely cause of a loss that is not finite, and what to type.

    Args:
        state: as it was found.
        config: the settings.
        learning_rate: of the step.
    """
    ratios = (
        entry[name]
        for entry in state.history[-1:]
        for name in entry
        if name.startswith("signal/update_ratio/")
    )
    return advise_on_divergence(
        steps=int(state.steps.numpy()),
        epochs=len(state.history),
        learning_rate=learning_rate,
        precision=config.precision,
        weights_finite=all(
            np.isfinite(variable.numpy()).all() for variable in state.network.trainable_variables
        ),
        largest_update=max(ratios, default=math.nan),
    )


def diagnose_hang(
    images: LoadedSplit, config: TrainConfig, size: ImageSize, devices: Devices
) -> HungError:
    """Return the error that names what hangs, by trying each stage of the input from the disk on.

    Args:
        images: the training split.
        config: the settings.
        size: height and width of the network's input, in pixels.
        devices: what the training runs on.
    """
    hanging = (
        name
        for name, attempt in list_input_stages(images, config, size)
        if not returns_within(_STAGE_SECONDS, attempt)
    )
    return make_hung_error(
        watchdog_seconds=config.watchdog_seconds,
        input_stage=next(hanging, ""),
        stage_seconds=_STAGE_SECONDS,
        workers=devices.cluster.workers,
    )
