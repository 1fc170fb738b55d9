"""Claim: ReLUs reach 25 % training error several times faster than tanh (figure 1)."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.settings import Config
from pipeline.reports.claim_records import ClaimFigure, ClaimFinding, ClaimQuestion
from pipeline.reproduce.arms import ACTIVATIONS, MAX_SMALL_IMAGE, Arm, list_small_settings
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.comparison import find_crossing_epoch, make_arm_row
from pipeline.reproduce.experiment import ArmMeasurements, Conclusion, Experiment
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.verdict import judge_effects, make_unmeasured_finding

GOAL = 0.25
_TUNING_EPOCHS = 5
_IMAGE_SIZE = 32
_TANH_EPOCHS = ClaimQuestion(
    quantity="epochs until 25 % training error with tanh, over those with ReLU",
    unit="times",
    published=6.0,
    source="paper, section 3.1 and figure 1",
    null_effect=2.0,  # "several times faster"
)
_SIGMOID_EPOCHS = ClaimQuestion(
    quantity="epochs until 25 % training error with sigmoid, over those with ReLU",
    unit="times",
    published=None,
    source="no number was published; the paper names the sigmoid with tanh as one that saturates",
    null_effect=2.0,
)


def list_activation_arms(config: Config) -> tuple[Arm, ...]:
    """Return the four-layer network with each activation, without any regularization."""
    if config.data.short_side > MAX_SMALL_IMAGE:
        return ()
    size = min(_IMAGE_SIZE, config.data.short_side)
    return tuple(
        Arm(
            f"four-layers-{activation}",
            {"relu": "ReLU"}.get(activation, activation),
            settings=list_small_settings(
                activation, size, epochs=config.reproduce.activation_epochs, learning_rate=0.003
            ),
            images=config.reproduce.activation_images,
            goal=GOAL,
            criterion="train_loss",
            tuning_epochs=min(_TUNING_EPOCHS, config.reproduce.activation_epochs),
        )
        for activation in ACTIVATIONS
    )


def conclude_activations(run: ClaimRun, measured: ArmMeasurements) -> Conclusion:
    """Compare the epochs that each activation takes to the goal."""
    from pipeline.reports.claim_figures import draw_epochs_to_goal

    if not measured:
        why = (
            "Figure 1 is of CIFAR-10, and these images are larger. Type `alexnet reproduce relu"
            " --dataset cifar10`."
        )
        return Conclusion(
            (
                make_unmeasured_finding(_TANH_EPOCHS, why),
                make_unmeasured_finding(_SIGMOID_EPOCHS, why),
            )
        )
    arms = list_activation_arms(run.config)
    rows = tuple(
        make_arm_row(
            arm, measured[arm.name], "epochs", "last_train_top1_error", "images_per_second"
        )
        for arm in arms
    )
    curves = {
        arm.label: [
            [epoch["train_top1_error"] for epoch in made.read_curve()]
            for made in measured[arm.name]
        ]
        for arm in arms
    }
    draw_epochs_to_goal(curves, GOAL, run.folder / "activations.png")
    caption = (
        "The paper's figure 1, repeated: training error of a four-layer network with ReLU (solid),"
        " tanh (dashed) and sigmoid (dotted), each seed a thin line. The learning rate was chosen"
        " for each by itself; nothing regularizes. A line ends where it reaches 25 %, or at the"
        " budget."
    )
    times = [
        list_epochs_to_goal(measured[arm.name], run.config.reproduce.activation_epochs)
        for arm in arms
    ]
    findings = (
        judge_time_ratio(_TANH_EPOCHS, times[1], times[0]),
        judge_time_ratio(_SIGMOID_EPOCHS, times[2], times[0]),
    )
    notes = (
        (
            "The error of an epoch is the mean over its steps, so each arm's time is half an epoch"
            " late; the paper does not state how its time was taken."
        ),
        (
            "Fewer training images than the paper's 50,000 make an epoch shorter and 25 % easier"
            " to reach, for every arm alike."
        ),
        (
            f"A rate is chosen by the loss after {arms[0].tuning_epochs} epochs, which favors a"
            " fast start."
        ),
    )
    return Conclusion(
        findings, rows, (ClaimFigure(file="activations.png", caption=caption),), notes
    )


def list_epochs_to_goal(made: Sequence[Measurement], budget: int) -> list[tuple[float, bool]]:
    """Return for each seed the epochs until the goal, and whether it was reached.

    The epochs are `budget` where it was not reached.
    """
    reached = [find_crossing_epoch(one.read_curve(), "train_top1_error", GOAL) for one in made]
    return [(float(budget), False) if epochs is None else (epochs, True) for epochs in reached]


def judge_time_ratio(
    question: ClaimQuestion, slow: Sequence[tuple[float, bool]], fast: Sequence[tuple[float, bool]]
) -> ClaimFinding:
    """Return the finding on the ratio of two arms' epochs, seed by seed.

    It is a bound where one of the two did not reach the goal with every seed.

    Args:
        question: a ratio.
        slow: epochs of each seed and whether the goal was reached, as `list_epochs_to_goal`.
        fast: the same of the arm in the denominator.
    """
    is_lower_bound, is_upper_bound = (
        not all(reached for _, reached in arm) for arm in (slow, fast)
    )
    if is_lower_bound and is_upper_bound:
        why = (
            "Neither arm reached 25 % with every seed; --set reproduce.activation_epochs=N gives"
            " them more epochs."
        )
        return make_unmeasured_finding(question, why)
    ratios = [one / other for (one, _), (other, _) in zip(slow, fast, strict=True)]
    return judge_effects(
        question, ratios, is_lower_bound=is_lower_bound, is_upper_bound=is_upper_bound
    )


EXPERIMENTS = (
    Experiment(
        name="relu",
        position=10,
        title="ReLU networks train several times faster",
        text=(
            "Section 3.1 and figure 1: a four-layer convolutional network with ReLUs reaches 25 %"
            " training error on CIFAR-10 six times faster than the same network with tanh; the"
            " learning rate was chosen for each by itself, and nothing regularizes. Here: the"
            " four-layer network of cuda-convnet, the same images in the same order for each arm, a"
            " constant rate chosen for each by short trainings with another seed."
        ),
        summary="ReLUs reach 25 % training error 6 times faster than tanh",
        section="section 3.1, figure 1",
        criterion="ratio of epochs, more than 2",
        list_arms=list_activation_arms,
        conclude=conclude_activations,
    ),
)
