"""Claim: the filters of one tower are blind to color, those of the other are not, in every run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import DatasetArtifact
from pipeline.config.settings import Config
from pipeline.engine.stage import Context
from pipeline.reproduce.arms import Arm, baseline, digest_of_files
from pipeline.reproduce.lab import Experiment, Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion, Figure, Row
from pipeline.reproduce.verdict import Question, find, not_measured

_SPLITS = 10_000
_SEED = 2012  # of the random halves
_LEVEL = 0.05
_COLORS_FILE = "colorfulness.npy"
_KERNELS = {"filters": "first filters", "changes": "what training changed in them"}
_MEASURES = ("tower 1", "tower 2", "difference", "by chance", "p")
_APART = Question(
    what=(
        "difference of the two towers' mean colorfulness of first filters, less what random halves"
        " of the same filters differ by"
    ),
    unit="share",
    published=None,
    source="qualitative: paper, section 6.1 and figure 3, 'occurs during every run'",
    least=0.05,  # less than a twentieth of the energy is no specialization that figure 3 would show
)
_CHANGED = _APART.model_copy(update={"what": "the same of what training changed in these filters"})
_FIGURES = (
    Figure(
        file="towers.png",
        caption=(
            "The colorfulness of each first filter, by tower and seed, with the towers' means: the"
            " share of its energy that no gray image could excite. 0 is blind to color, 1 is"
            " blind to brightness, and 2/3 is what random weights have."
        ),
    ),
    Figure(
        file="filters.png",
        caption=(
            "The first filters of seed 0 by tower, as the paper's figure 3, in each the grayest"
            " first; gray is zero."
        ),
    ),
    Figure(
        file="changes.png",
        caption=(
            "What training changed in the first filters of seed 0, each in the same place as the"
            " filter."
        ),
    ),
)


def arms(config: Config) -> tuple[Arm, ...]:
    """Return the network as it is."""
    return (baseline(config),)


def conclude(lab: Lab, measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare the towers of each seed with random halves of the same filters."""
    from pipeline.reports.claim_figures import draw_towers

    if is_gray(lab.dataset):
        return Conclusion(
            (
                not_measured(
                    _APART,
                    "These images are gray. Type `alexnet reproduce towers --data cifar10`, or"
                    " other colors.",
                ),
            )
        )
    spec = {"splits": _SPLITS, "split_seed": _SEED}
    looks = [
        lab.look(f"towers-seed{seed}", {**spec, "images": seed == 0}, look_at_colors, trained)
        for seed, trained in enumerate(measured["baseline"])
    ]
    if looks[0].numbers["towers"] < 2:
        why = (
            f"The network {lab.config.model.network} has one tower. Type `alexnet reproduce towers"
            " --set model.network=small`, or `paper`."
        )
        return Conclusion((not_measured(_APART, why),))
    draw_towers([by_tower(look) for look in looks], lab.folder / "towers.png")
    for file in (f"{kernel}.png" for kernel in _KERNELS):
        shutil.copyfile(looks[0].directory / file, lab.folder / file)
    findings = tuple(
        find(question, [look.numbers[f"{kernel}/effect"] for look in looks])
        for question, kernel in zip((_APART, _CHANGED), _KERNELS, strict=True)
    )
    rows = tuple(
        Row(
            arm=label,
            values={
                name: tuple(look.numbers[f"{kernel}/{name}"] for look in looks)
                for name in _MEASURES
            },
        )
        for kernel, label in _KERNELS.items()
    )
    return Conclusion(findings, rows, _FIGURES, _notes(looks))


def _notes(looks: Sequence[Measurement]) -> tuple[str, ...]:
    """Say in how many runs it occurs, how far the filters came, and how the network differs from that of 2012."""
    chances, window = (
        [look.numbers["filters/p"] for look in looks],
        round(looks[0].numbers["window"]),
    )
    moved = sum(look.numbers["moved"] for look in looks) / len(looks)
    return (
        (
            f"{sum(p < _LEVEL for p in chances)} of {len(chances)} seeds by themselves differ more"
            " than random halves do at the 5 % level (p:"
            f" {', '.join(f'{p:.2g}' for p in chances)}). The paper says every run."
        ),
        (
            f"Training changed the first filters by {moved:.2g} times the length of their initial"
            " weights. Where that is little, their colors are mostly those of chance, and only"
            " what training changed can tell the towers apart."
        ),
        (
            f"The first layer's windows are {window} x {window} pixels here, 11 x 11 in 2012, when"
            " the towers were two GPUs. What a tower does not see of the other until conv3 is the"
            " same."
        ),
    )


def is_gray(dataset: DatasetArtifact) -> bool:
    """Return whether red, green and blue are the same in all images.

    Then nothing in them is a color.
    """
    first, *others = (spread for row in dataset.channel_covariance for spread in row)
    return all(abs(spread - first) <= 1e-6 * abs(first) for spread in others)


def by_tower(look: Measurement) -> tuple[list[float], list[float]]:
    """Return the colorfulness of the first tower's filters and of the second's."""
    import numpy as np

    one, two = np.split(np.load(look.directory / _COLORS_FILE)[0], 2)
    return one.tolist(), two.tolist()


def look_at_colors(
    spec: Mapping[str, Any], _dataset: DatasetArtifact, context: Context, trained: Path
) -> Measurement:
    """Measure how colorful a trained network's first filters are, and what training changed in them; draw both if asked to.

    `colorfulness.npy` is float64 [2, filters] in [0, 1]; with two towers the first half is the
    first tower's.
    """
    import keras
    import numpy as np

    from pipeline.evaluate.chain import read_first_filters
    from pipeline.model.weights import load_model
    from pipeline.reports.evaluation.inspection_figures import draw_filters

    network = load_model(trained / Measurement.MODEL_FILE)
    kernel, towers = read_first_filters(network)
    initial, _ = read_first_filters(
        keras.models.clone_model(network)
    )  # the file names each layer's initial weights and their seed
    kernels = dict(zip(_KERNELS, (kernel, kernel - initial), strict=True))
    values = {name: colorfulness(weights) for name, weights in kernels.items()}
    np.save(context.directory / _COLORS_FILE, np.stack(list(values.values())))
    moved = np.linalg.norm(kernel - initial) / np.linalg.norm(initial)
    numbers = {"towers": float(towers), "window": float(kernel.shape[0]), "moved": float(moved)}
    if towers == 2:
        for name, own in values.items():
            found = split_in_two(own, splits=spec["splits"], seed=spec["split_seed"])
            numbers |= {
                f"{name}/tower {tower}": float(half.mean())
                for tower, half in enumerate(np.split(own, 2), start=1)
            }
            numbers |= {
                f"{name}/difference": found.difference,
                f"{name}/by chance": found.by_chance,
            }
            numbers |= {f"{name}/effect": found.effect, f"{name}/p": found.p}
    files: tuple[str, ...] = (_COLORS_FILE,)
    if spec["images"]:
        halves = np.split(np.arange(kernel.shape[-1]), towers)
        order = np.concatenate(
            [half[np.argsort(values["filters"][half], kind="stable")] for half in halves]
        )
        for name, weights in kernels.items():
            draw_filters(weights[..., order], towers, context.directory / f"{name}.png")
        files += tuple(f"{name}.png" for name in kernels)
    context.run.log_metrics(numbers)
    digest = digest_of_files(context.directory, files)
    return Measurement(
        directory=context.directory, name="towers", numbers=numbers, files=files, sha256=digest
    )


def colorfulness(kernel: Any) -> Any:
    """Return the share of each filter's energy that lies off the axis of grays, float64 [filters] in [0, 1].

    A filter of equal red, green and blue has 0, one whose colors add up to nothing everywhere 1.
    Random weights have 2/3.

    Args:
        kernel: float [height, width, 3, filters], unbounded.
    """
    import numpy as np

    weights = np.asarray(kernel, np.float64)
    energy = np.square(weights).sum(axis=(0, 1, 2))
    gray = 3 * np.square(weights.mean(axis=2)).sum(axis=(0, 1))
    return np.where(energy > 0, 1 - gray / np.where(energy > 0, energy, 1), 0.0).clip(0, 1)


@dataclass(frozen=True)
class Split:
    """How far two halves differ in their means, how far random halves of the same values do on average, and how often as far or further."""

    difference: float
    by_chance: float
    p: float

    @property
    def effect(self) -> float:
        """The difference beyond chance; 0 on average where the halves are random."""
        return self.difference - self.by_chance


def split_in_two(values: Any, *, splits: int, seed: int) -> Split:
    """Return how the first half of some values differs from the second, and random halves from each other.

    Args:
        values: float [values], an even number of them.
        splits: random halves.
        seed: of these.
    """
    import numpy as np

    half = len(values) // 2

    def differences(ordered: Any) -> Any:
        return np.abs(ordered[..., :half].mean(axis=-1) - ordered[..., half:].mean(axis=-1))

    rows = np.tile(np.asarray(values, np.float64), (splits, 1))
    random = differences(np.random.default_rng(seed).permuted(rows, axis=1))
    own = float(differences(np.asarray(values, np.float64)))
    as_far = int((random >= own - 1e-12).sum())  # the same halves, added up in another order
    return Split(own, float(random.mean()), (1 + as_far) / (1 + splits))


EXPERIMENT = Experiment(
    "towers",
    "One tower specializes in color, the other in brightness",
    "Section 6.1 and figure 3: the filters on one GPU are largely color-agnostic, those on the"
    " other largely color-specific; this occurs in every run, whatever the initial weights. Here:"
    " the share of each first filter's energy that lies off the axis of grays, and the difference"
    " of the towers' means, less the mean difference of 10,000 random halves of the same filters,"
    " so that chance gives 0.",
    arms,
    conclude,
)
