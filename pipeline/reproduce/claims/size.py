"""Claim: a large network needs many images (sections 1 and 2)."""

from __future__ import annotations

from pipeline.config.settings import Config
from pipeline.reports.claim_records import ClaimFigure, ClaimQuestion
from pipeline.reproduce.arms import Arm, make_baseline_arm
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.comparison import compare_errors, make_arm_row
from pipeline.reproduce.experiment import ArmMeasurements, Conclusion, Experiment

_DIVISORS = (2, 8)
_EIGHTH_ERROR = ClaimQuestion(
    quantity="test error with an eighth of the images less that with all",
    unit="points",
    published=None,
    source=(
        'paper, section 1: "to learn about thousands of objects from millions of images"; no number'
    ),
    null_effect=0.0,
)
_HALF_ERROR = _EIGHTH_ERROR.model_copy(
    update={"quantity": "test error with half of the images less that with all"}
)


def list_size_arms(config: Config) -> tuple[Arm, ...]:
    """Return the network trained on all images and on fractions of them, with equal steps.

    The number of all images is `reproduce.images`, or known once the dataset is prepared; until
    then there is only the arm with all.
    """
    whole = config.reproduce.images
    if not whole:
        return (make_baseline_arm(config),)
    return (
        make_baseline_arm(config),
        *(_make_smaller_arm(config, whole // divisor, divisor) for divisor in _DIVISORS),
    )


def _make_smaller_arm(config: Config, images: int, divisor: int) -> Arm:
    """Return the arm with fewer images and so many more epochs."""
    return Arm(
        f"images-{images}",
        f"{images:,} images",
        settings={"train.epochs": config.train.epochs * divisor},
        images=images,
        tuning_epochs=config.reproduce.tuning_epochs * divisor,
    )


def conclude_sizes(run: ClaimRun, measured: ArmMeasurements) -> Conclusion:
    """Compare the test errors of all sizes."""
    from pipeline.reports.claim_figures import draw_sizes

    arms = list_size_arms(run.config)
    whole, smaller = measured["baseline"], [measured[arm.name] for arm in arms[1:]]
    errors = {
        int(made[0].numbers["images"]): [one.numbers["test_top1_error"] for one in made]
        for made in (*reversed(smaller), whole)
    }
    draw_sizes(errors, run.folder / "sizes.png")
    findings = (
        compare_errors(_EIGHTH_ERROR, smaller[-1], whole),
        compare_errors(_HALF_ERROR, smaller[0], whole),
    )
    rows = tuple(
        make_arm_row(arm, measured[arm.name]).model_copy(
            update={"arm": f"{int(measured[arm.name][0].numbers['images']):,} images"}
        )
        for arm in arms
    )
    caption = (
        "Test error against the number of training images, one dot per seed; smaller sets are"
        " subsets of larger ones."
    )
    notes = (
        (
            "Each arm does the same number of steps, so a smaller set takes more epochs; the best"
            " epoch by validation counts."
        ),
    )
    return Conclusion(findings, rows, (ClaimFigure(file="sizes.png", caption=caption),), notes)


EXPERIMENTS = (
    Experiment(
        name="size",
        position=120,
        title="More images, fewer errors",
        text=(
            "Sections 1 and 2: what a network of 60 million parameters can learn is bounded by the"
            " number of labeled images; ImageNet's 1.2 million made it possible. Here: the same"
            " network and number of steps with an eighth, a half and all of the images."
        ),
        summary="more images, fewer errors",
        section="sections 1, 2",
        criterion="test error with an eighth of the images",
        list_arms=list_size_arms,
        conclude=conclude_sizes,
    ),
)
