"""Claim: the filters of one tower are blind to color, those of the other are not (section 6.1)."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.artifacts import DatasetArtifact
from pipeline.reports.claim_records import ArmRow, ClaimFigure, ClaimQuestion
from pipeline.reports.store import read_report_data
from pipeline.reproduce.arms import list_baseline_arm
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.experiment import ArmMeasurements, Conclusion, Experiment
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.tower_colors import KERNELS, load_tower_colors, measure_tower_colors
from pipeline.reproduce.verdict import judge_effects, make_unmeasured_finding

_SPLITS = 10_000
_SPLIT_SEED = 2012
_SIGNIFICANCE = 0.05
_TOWER_LABELS = ("first filters", "what training changed in them")
_TOWER_MEASURES = ("tower 1", "tower 2", "difference", "by chance", "p")
_DIFFERENCE = ClaimQuestion(
    quantity=(
        "difference of the two towers' mean colorfulness of first filters, less what random halves"
        " of the same filters differ by"
    ),
    unit="fraction",
    published=None,
    source="qualitative: paper, section 6.1 and figure 3, 'occurs during every run'",
    # Less than a twentieth of the energy would not be visible in figure 3.
    null_effect=0.05,
)
_CHANGED = _DIFFERENCE.model_copy(
    update={"quantity": "the same of what training changed in these filters"}
)
_TOWER_FIGURES = (
    ClaimFigure(
        file="towers.png",
        caption=(
            "The colorfulness of each first filter, by tower and seed, with the towers' means: the"
            " fraction of its energy that no gray image could excite. 0 is blind to color, 1 is"
            " blind to brightness, and 2/3 is what random weights have."
        ),
    ),
    ClaimFigure(
        file="filters.png",
        caption=(
            "The first filters of seed 0 by tower, as the paper's figure 3, in each the grayest"
            " first; gray is zero."
        ),
    ),
    ClaimFigure(
        file="changes.png",
        caption=(
            "What training changed in the first filters of seed 0, in the same order as the"
            " filters."
        ),
    ),
)


def conclude_towers(run: ClaimRun, measured: ArmMeasurements) -> Conclusion:
    """Compare the towers of each seed with random halves of the same filters."""
    from pipeline.reports.claim_feature_figures import draw_towers
    from pipeline.reports.evaluation.inspection_figures import draw_filters

    if has_gray_images(run.dataset):
        why = (
            "These images are gray. Type `alexnet reproduce towers --dataset cifar10`, or"
            " name other images in color."
        )
        return Conclusion((make_unmeasured_finding(_DIFFERENCE, why),))
    spec = {"splits": _SPLITS, "split_seed": _SPLIT_SEED}
    made = [
        run.examine_network(
            f"towers-seed{seed}", {**spec, "filters": seed == 0}, measure_tower_colors, trained
        )
        for seed, trained in enumerate(measured["baseline"])
    ]
    if made[0].numbers["towers"] < 2:
        why = (
            f"The network {run.config.model.network} has one tower. Type `alexnet reproduce towers"
            " --set model.network=small`, or `paper`."
        )
        return Conclusion((make_unmeasured_finding(_DIFFERENCE, why),))
    draw_towers([load_tower_colors(one) for one in made], run.folder / "towers.png")
    values, kernels = read_report_data(made[0].directory)
    for name in KERNELS:
        draw_filters(kernels[name], values["towers"], run.folder / f"{name}.png")
    findings = tuple(
        judge_effects(question, [one.numbers[f"{kernel}/effect"] for one in made])
        for question, kernel in zip((_DIFFERENCE, _CHANGED), KERNELS, strict=True)
    )
    rows = tuple(
        ArmRow(
            arm=label,
            values={
                name: tuple(one.numbers[f"{kernel}/{name}"] for one in made)
                for name in _TOWER_MEASURES
            },
        )
        for kernel, label in zip(KERNELS, _TOWER_LABELS, strict=True)
    )
    return Conclusion(findings, rows, _TOWER_FIGURES, _write_tower_notes(made))


def _write_tower_notes(made: Sequence[Measurement]) -> tuple[str, ...]:
    """Return the seeds with a difference, the change by training and the limits, as notes."""
    p_values = [one.numbers["filters/p"] for one in made]
    window = round(made[0].numbers["window"])
    moved = sum(one.numbers["moved"] for one in made) / len(made)
    return (
        (
            f"{sum(p < _SIGNIFICANCE for p in p_values)} of {len(p_values)} seeds by themselves"
            " differ more than random halves do at the 5 % level (p:"
            f" {', '.join(f'{p:.2g}' for p in p_values)}). The paper says every run."
        ),
        (
            f"Training changed the first filters by {moved:.2g} times the length of their initial"
            " weights. Where that is little, their colors are mostly those of chance, and only"
            " what training changed can tell the towers apart."
        ),
        (
            f"The first layer's windows are {window} x {window} pixels here, 11 x 11 in 2012, when"
            " the towers were two GPUs. The towers exchange nothing before conv3, as in 2012."
        ),
    )


def has_gray_images(dataset: DatasetArtifact) -> bool:
    """Return whether red, green and blue are equal in all images, so that there is no color."""
    first, *others = (value for row in dataset.channel_covariance for value in row)
    return all(abs(value - first) <= 1e-6 * abs(first) for value in others)


EXPERIMENTS = (
    Experiment(
        name="towers",
        position=90,
        title="One tower specializes in color, the other in brightness",
        text=(
            "Section 6.1 and figure 3: the filters on one GPU are largely color-agnostic, those on"
            " the other largely color-specific; this occurs in every run, whatever the initial"
            " weights. Here: the fraction of each first filter's energy that lies off the axis of"
            " grays, and the difference of the towers' means, less the mean difference of 10,000"
            " random halves of the same filters, so that chance gives 0."
        ),
        summary="one tower comes to see color, the other none, in every run",
        section="section 6.1, figure 3",
        criterion="difference of colorfulness, over random halves",
        list_arms=list_baseline_arm,
        conclude=conclude_towers,
    ),
)
