"""How colorful the first filters of a network's towers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import DatasetArtifact
from pipeline.engine.stage import Context
from pipeline.reports.store import ARRAYS_FILE, VALUES_FILE, write_report_data
from pipeline.reproduce.measurement import Measurement, hash_files

if TYPE_CHECKING:
    from pipeline.arrays import Floats

# What is measured: the filters, and what training changed in them.
KERNELS = ("filters", "changes")
_COLORS_FILE = "colorfulness.npy"


@dataclass(frozen=True)
class HalvesDifference:
    """The difference of the means of two halves, compared with random halves of the same values.

    Attributes:
        difference: absolute difference of the means.
        by_chance: mean of the same over random halves.
        p: fraction of random halves that differ as much or more.
    """

    difference: float
    by_chance: float
    p: float

    @property
    def effect(self) -> float:
        """The difference beyond chance; 0 on average if the halves are random."""
        return self.difference - self.by_chance


def measure_tower_colors(
    spec: Mapping[str, Any], _dataset: DatasetArtifact, context: Context, trained: Path
) -> Measurement:
    """Measure the colorfulness of a trained network's first filters and of what training changed.

    `colorfulness.npy` is float64 [2, filters] in [0, 1]; with two towers the first half is the
    first tower's.

    Args:
        spec: `splits` into random halves, the `split_seed` of these, and whether to store the
            `filters` for their figures.
        context: of the experiment.
        trained: folder of the trained network.
    """
    import keras
    import numpy as np

    from pipeline.evaluate.map_layers import read_first_filters
    from pipeline.model.weights import load_model

    network = load_model(trained / Measurement.MODEL_FILE)
    kernel, towers = read_first_filters(network)
    # The file of the network holds each layer's initializer with its seed.
    initial, _ = read_first_filters(keras.models.clone_model(network))
    kernels = dict(zip(KERNELS, (kernel, kernel - initial), strict=True))
    values = {name: compute_colorfulness(weights) for name, weights in kernels.items()}
    np.save(context.directory / _COLORS_FILE, np.stack(list(values.values())))
    moved = np.linalg.norm(kernel - initial) / np.linalg.norm(initial)
    numbers = {"towers": float(towers), "window": float(kernel.shape[0]), "moved": float(moved)}
    if towers == 2:
        for name, own in values.items():
            halves = compare_halves(own, splits=spec["splits"], seed=spec["split_seed"])
            numbers |= {
                f"{name}/tower {tower}": float(half.mean())
                for tower, half in enumerate(np.split(own, 2), start=1)
            }
            numbers |= {
                f"{name}/difference": halves.difference,
                f"{name}/by chance": halves.by_chance,
                f"{name}/effect": halves.effect,
                f"{name}/p": halves.p,
            }
    files: tuple[str, ...] = (_COLORS_FILE,)
    if spec["filters"]:
        sides = np.split(np.arange(kernel.shape[-1]), towers)
        order = np.concatenate(
            [side[np.argsort(values["filters"][side], kind="stable")] for side in sides]
        )
        # In each tower the grayest first.
        arrays = {name: weights[..., order] for name, weights in kernels.items()}
        write_report_data(context.directory, {"towers": towers}, arrays)
        files += (VALUES_FILE, ARRAYS_FILE)
    context.run.log_metrics(numbers)
    digest = hash_files(context.directory, files)
    return Measurement(
        directory=context.directory, name="towers", numbers=numbers, files=files, sha256=digest
    )


def load_tower_colors(made: Measurement) -> tuple[list[float], list[float]]:
    """Return the colorfulness of the first tower's filters and of the second's."""
    import numpy as np

    one, two = np.split(np.load(made.directory / _COLORS_FILE)[0], 2)
    return one.tolist(), two.tolist()


def compute_colorfulness(kernel: Floats) -> Floats:
    """Return the fraction of each filter's energy off the gray axis, float64 [filters] in [0, 1].

    A filter of equal red, green and blue has 0, one whose colors add up to zero everywhere 1.
    Random weights have 2/3.

    Args:
        kernel: float [height, width, 3, filters], unbounded.
    """
    import numpy as np

    weights = np.asarray(kernel, np.float64)
    energy = np.square(weights).sum(axis=(0, 1, 2))
    gray = 3 * np.square(weights.mean(axis=2)).sum(axis=(0, 1))
    return np.where(energy > 0, 1 - gray / np.where(energy > 0, energy, 1), 0.0).clip(0, 1)


def compare_halves(values: Floats, *, splits: int, seed: int) -> HalvesDifference:
    """Return how the first half of some values differs from the second, and random halves do.

    Args:
        values: float [values], an even number of them.
        splits: number of random halves.
        seed: of these.
    """
    import numpy as np

    half = len(values) // 2

    def compute_differences(ordered: Floats) -> Floats:
        return np.abs(ordered[..., :half].mean(axis=-1) - ordered[..., half:].mean(axis=-1))

    rows = np.tile(np.asarray(values, np.float64), (splits, 1))
    random = compute_differences(np.random.default_rng(seed).permuted(rows, axis=1))
    own = float(compute_differences(np.asarray(values, np.float64)))
    as_far = int((random >= own - 1e-12).sum())  # the same halves, added up in another order
    return HalvesDifference(own, float(random.mean()), (1 + as_far) / (1 + splits))
