"""Claim: the mean of ten crops is better than the central one (section 4.1)."""

from __future__ import annotations

from pipeline.reports.claim_records import ArmRow, ClaimFigure, ClaimQuestion
from pipeline.reproduce.arms import list_baseline_arm
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.comparison import estimate_image_std
from pipeline.reproduce.experiment import ArmMeasurements, Conclusion, Experiment
from pipeline.reproduce.scoring import score_ten_crops
from pipeline.reproduce.verdict import judge_effects

_CROP_ERROR = ClaimQuestion(
    quantity="test error by the central crop less that by ten",
    unit="points",
    published=1.55,
    source=(
        "2012's diaries, the network of 2010: 39.02 and 37.47 % (paper, section 4.1: 39.0 and 37.5)"
    ),
    null_effect=0.0,
)


def conclude_tencrop(run: ClaimRun, measured: ArmMeasurements) -> Conclusion:
    """Compare both views of the same networks."""
    from pipeline.reports.claim_figures import draw_arms

    center = measured["baseline"]
    ten = [
        run.examine_network(f"ten-crops-seed{seed}", {"view": "ten"}, score_ten_crops, made)
        for seed, made in enumerate(center)
    ]
    gains = [
        100 * (one.numbers["test_top1_error"] - other.numbers["test_top1_error"])
        for one, other in zip(center, ten, strict=True)
    ]
    image_std = estimate_image_std(
        [one.load_wrong() for one in center], [other.load_wrong() for other in ten]
    )
    rows = tuple(
        ArmRow(
            arm=label,
            values={"test_top1_error": tuple(one.numbers["test_top1_error"] for one in made)},
        )
        for label, made in (("central crop", center), ("mean of ten crops", ten))
    )
    draw_arms(rows, "test_top1_error", run.folder / "views.png", xlabel="test error, %")
    figure = ClaimFigure(
        file="views.png",
        caption=(
            "Test error of the same networks by the central crop and by the mean of ten, one dot"
            " per seed."
        ),
    )
    return Conclusion((judge_effects(_CROP_ERROR, gains, image_std=image_std),), rows, (figure,))


EXPERIMENTS = (
    Experiment(
        name="tencrop",
        position=80,
        title="Ten crops are better than one",
        text=(
            "Section 4.1: the mean of the network's answers to five crops and their mirror images"
            " lowers the error of the central crop alone, from 39.0 to 37.5 %. Here: the same"
            " trained networks, scored both ways on the same test images."
        ),
        summary="the mean of ten crops: 1.5 points",
        section="section 4.1",
        criterion="test error of the same networks",
        list_arms=list_baseline_arm,
        conclude=conclude_tencrop,
    ),
)
