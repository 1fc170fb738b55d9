"""Claim: a large network needs a large set of images (sections 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.settings import Config
from pipeline.reproduce.arms import Arm, baseline
from pipeline.reproduce.claims.ablation import costs, row
from pipeline.reproduce.lab import Experiment, Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion, Figure
from pipeline.reproduce.verdict import Question

_PARTS = (2, 8)
_ERROR = Question(
    what="test error with an eighth of the images less that with all",
    unit="points",
    published=None,
    source=(
        'paper, section 1: "to learn about thousands of objects from millions of images"; no number'
    ),
    least=0.0,
)
_HALF = _ERROR.model_copy(update={"what": "test error with half of the images less that with all"})


def arms(config: Config) -> tuple[Arm, ...]:
    """Return the network trained on all images and on parts of them, each for the same number of steps.

    How many all are is known once the dataset is prepared, or said by `reproduce.images`; until
    then parts are of the latter.
    """
    whole = config.reproduce.images
    return (
        (baseline(config), *(_part(config, whole // part, part) for part in _PARTS))
        if whole
        else (baseline(config),)
    )


def _part(config: Config, images: int, part: int) -> Arm:
    """Return the arm with fewer images, which passes over them so much oftener."""
    epochs, tuning = config.train.epochs * part, config.reproduce.tuning_epochs * part
    return Arm(
        f"images-{images}",
        f"{images:,} images",
        train={"epochs": epochs},
        images=images,
        tuning_epochs=tuning,
    )


def conclude(lab: Lab, measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare the test errors of all sizes."""
    from pipeline.reports.claim_figures import draw_sizes

    whole, halves = measured["baseline"], [measured[arm.name] for arm in arms(lab.config)[1:]]
    errors = {
        int(made[0].numbers["images"]): [one.numbers["test_top1_error"] for one in made]
        for made in (*reversed(halves), whole)
    }
    draw_sizes(errors, lab.folder / "sizes.png")
    findings = (costs(_ERROR, halves[-1], whole), costs(_HALF, halves[0], whole))
    rows = tuple(
        row(arm, measured[arm.name]).model_copy(
            update={"arm": f"{int(measured[arm.name][0].numbers['images']):,} images"}
        )
        for arm in arms(lab.config)
    )
    caption = (
        "Test error against the number of training images, a dot a seed; smaller sets are parts"
        " of larger ones."
    )
    notes = (
        (
            "Each arm does the same number of steps, so that a smaller set is passed over oftener;"
            " the best epoch by validation counts."
        ),
    )
    return Conclusion(findings, rows, (Figure(file="sizes.png", caption=caption),), notes)


EXPERIMENT = Experiment(
    "size",
    "More images, fewer errors",
    "Sections 1 and 2: what a network of 60 million parameters can learn is bounded by the labeled"
    " images there are; ImageNet's 1.2 million made it possible. Here: the same network and"
    " number of steps with an eighth, a half and all of the images.",
    arms,
    conclude,
)
