"""Claim: ReLUs come to 25 % training error several times faster than tanh (figure 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.model import ModelConfig
from pipeline.config.settings import Config
from pipeline.config.train import TrainConfig
from pipeline.reproduce.arms import Arm
from pipeline.reproduce.claims.ablation import crossing, row
from pipeline.reproduce.lab import Experiment, Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion, Figure
from pipeline.reproduce.verdict import Finding, Question, find, not_measured

GOAL = 0.25
_ACTIVATIONS = ("relu", "tanh", "sigmoid")
_TUNING_EPOCHS = 5
_SIZE = 32
# Larger images are no CIFAR-10, whose network this is.
LARGEST = 64
_TANH = Question(
    what="epochs until 25 % training error with tanh, over those with ReLU",
    unit="times",
    published=6.0,
    source="paper, section 3.1 and figure 1",
    least=2.0,  # "several times faster"
)
_SIGMOID = Question(
    what="epochs until 25 % training error with sigmoid, over those with ReLU",
    unit="times",
    published=None,
    source="no number was published; the paper names the sigmoid with tanh as one that saturates",
    least=2.0,
)


def arms(config: Config) -> tuple[Arm, ...]:
    """Return the four-layer network with each activation, without anything that regularizes."""
    if config.data.short_side > LARGEST:
        return ()
    plain = TrainConfig(
        epochs=config.reproduce.race_epochs,
        schedule="constant",
        learning_rate=0.003,
        weight_decay=0,
        crop="center",
        flip=False,
    )
    size = min(_SIZE, config.data.short_side)
    return tuple(
        Arm(
            f"race-{activation}",
            {"relu": "ReLU"}.get(activation, activation),
            model=ModelConfig.model_validate(
                {
                    "network": "cifar",
                    "image_size": size,
                    "alexnet": {"activation": activation},
                }
            ).model_dump(),
            train=plain.model_dump(),
            images=config.reproduce.race_images,
            goal=GOAL,
            criterion="train_loss",
            tuning_epochs=min(_TUNING_EPOCHS, config.reproduce.race_epochs),
        )
        for activation in _ACTIVATIONS
    )


def conclude(lab: Lab, measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare the epochs that each activation took."""
    from pipeline.reports.claim_figures import draw_race

    if not measured:
        why = (
            "Figure 1 is of CIFAR-10, and these images are larger. Type `alexnet reproduce relu"
            " --data cifar10`."
        )
        return Conclusion((not_measured(_TANH, why), not_measured(_SIGMOID, why)))
    found = {arm.name: measured[arm.name] for arm in arms(lab.config)}
    rows = tuple(
        row(arm, found[arm.name], "epochs", "last_train_top1_error", "images_per_second")
        for arm in arms(lab.config)
    )
    curves = {
        arm.label: [
            [epoch["train_top1_error"] for epoch in made.curve()] for made in found[arm.name]
        ]
        for arm in arms(lab.config)
    }
    draw_race(curves, GOAL, lab.folder / "race.png")
    caption = (
        "The paper's figure 1, again: training error of a four-layer network with ReLU (solid),"
        " tanh (dashed) and sigmoid (dotted), each seed a thin line. The learning rate was chosen"
        " for each by itself; nothing regularizes. A line ends where it comes to 25 %, or at the"
        " budget."
    )
    times = [
        time_to_goal(found[f"race-{activation}"], lab.config.reproduce.race_epochs)
        for activation in _ACTIVATIONS
    ]
    findings = (ratio(_TANH, times[1], times[0]), ratio(_SIGMOID, times[2], times[0]))
    notes = (
        (
            "The error of an epoch is the mean over its steps, so that each arm's time is half an"
            " epoch late; the paper does not say how its was taken."
        ),
        (
            "Fewer training images than the paper's 50,000 make an epoch shorter and 25 % easier"
            " to come to, for every arm alike."
        ),
        (
            f"A rate is chosen by the loss after {arms(lab.config)[0].tuning_epochs} epochs, which"
            " suits an arm that is fast at the start."
        ),
    )
    return Conclusion(findings, rows, (Figure(file="race.png", caption=caption),), notes)


def time_to_goal(made: Sequence[Measurement], budget: int) -> list[tuple[float, bool]]:
    """Return for each seed the epochs until the goal, and whether it was reached.

    The budget where it was not.
    """
    reached = [crossing(one.curve(), "train_top1_error", GOAL) for one in made]
    return [(float(budget), False) if epochs is None else (epochs, True) for epochs in reached]


def ratio(
    question: Question, slow: Sequence[tuple[float, bool]], fast: Sequence[tuple[float, bool]]
) -> Finding:
    """Return how many times longer an arm took, seed by seed.

    A bound where one of the two did not arrive.
    """
    at_least, at_most = (not all(reached for _, reached in arm) for arm in (slow, fast))
    if at_least and at_most:
        why = (
            "Neither arm came to 25 % with every seed; --set reproduce.race_epochs=N gives them"
            " more epochs."
        )
        return not_measured(question, why)
    ratios = [one / other for (one, _), (other, _) in zip(slow, fast, strict=True)]
    return find(question, ratios, at_least=at_least, at_most=at_most)


EXPERIMENT = Experiment(
    "relu",
    "ReLU networks train several times faster",
    "Section 3.1 and figure 1: a four-layer convolutional network with ReLUs comes to 25 % training"
    " error on CIFAR-10 six times faster than the same network with tanh; the learning rate was"
    " chosen for each by itself, and nothing regularizes. Here: the four-layer network of"
    " cuda-convnet, the same images in the same order for each arm, a constant rate chosen for"
    " each by short trainings with another seed.",
    arms,
    conclude,
)
