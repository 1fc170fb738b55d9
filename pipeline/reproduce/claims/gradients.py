"""Claim: the gradient vanishes through sigmoids and tanhs, but not through ReLUs."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.settings import Config
from pipeline.reports.claim_records import ArmRow, ClaimFigure, ClaimFinding, ClaimQuestion
from pipeline.reproduce.arms import ACTIVATIONS, MAX_SMALL_IMAGE, Arm, list_small_settings
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.comparison import describe_rates
from pipeline.reproduce.experiment import ArmMeasurements, Conclusion, Experiment
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.verdict import judge_effects, make_unmeasured_finding

DEPTHS = (4, 8, 12, 16)
_ACTIVATION_LABELS = {"relu": "ReLU", "tanh": "tanh", "sigmoid": "sigmoid"}
_IMAGE_SIZE = 28
_GRADIENT_SOURCE = (
    "no number was published; Hochreiter, 1991, and Glorot and Bengio, 2010, describe the effect,"
    " the paper's section 3.1 uses it"
)
_SIGMOID_GRADIENT = ClaimQuestion(
    quantity=(
        "fraction of the gradient that arrives at the first of 16 layers, with ReLU over with"
        " sigmoid"
    ),
    unit="times",
    published=None,
    source=_GRADIENT_SOURCE,
    null_effect=2.0,
)
_TANH_GRADIENT = _SIGMOID_GRADIENT.model_copy(
    update={"quantity": "the same with ReLU over with tanh", "null_effect": 1.0}
)
_TRAINED = ClaimQuestion(
    quantity="training error of 16 layers with sigmoid less that with ReLU",
    unit="points",
    published=None,
    source=_GRADIENT_SOURCE,
    null_effect=0.0,
)
_TRAINED_TANH = _TRAINED.model_copy(
    update={"quantity": "training error of 16 layers with tanh less that with ReLU"}
)


def list_plain_arms(config: Config) -> tuple[Arm, ...]:
    """Return plain networks of each activation and depth."""
    if config.data.short_side > MAX_SMALL_IMAGE:
        return ()
    size = min(_IMAGE_SIZE, config.data.short_side)
    return tuple(
        Arm(
            f"plain-{activation}-{depth}",
            f"{_ACTIVATION_LABELS[activation]}, {depth} layers",
            settings=list_small_settings(
                activation, size, epochs=config.reproduce.plain_epochs, learning_rate=0.01
            ),
            images=config.reproduce.plain_images,
            depth=depth,
            criterion="train_loss",
            tuning_epochs=min(config.reproduce.tuning_epochs, config.reproduce.plain_epochs),
        )
        for activation in ACTIVATIONS
        for depth in DEPTHS
    )


def conclude_gradients(run: ClaimRun, measured: ArmMeasurements) -> Conclusion:
    """Compare the gradient at the first layer, and the training errors."""
    from pipeline.reports.claim_figures import draw_depths

    if not measured:
        why = (
            "Plain networks are for small images. Type `alexnet reproduce gradients --dataset"
            " cifar10`."
        )
        return Conclusion(
            tuple(
                make_unmeasured_finding(question, why)
                for question in (_SIGMOID_GRADIENT, _TANH_GRADIENT, _TRAINED, _TRAINED_TANH)
            )
        )

    def find_measurements(activation: str, depth: int) -> Sequence[Measurement]:
        return measured[f"plain-{activation}-{depth}"]

    gradients = {
        _ACTIVATION_LABELS[name]: {
            depth: average_gradients(find_measurements(name, depth)) for depth in DEPTHS
        }
        for name in ACTIVATIONS
    }
    errors = {
        _ACTIVATION_LABELS[name]: {
            depth: [get_last_error(one) for one in find_measurements(name, depth)]
            for depth in DEPTHS
        }
        for name in ACTIVATIONS
    }
    counts = run.dataset.class_counts["train"]
    draw_depths(gradients, errors, 1 - max(counts) / sum(counts), run.folder / "depths.png")
    findings = _judge_deepest(measured)
    rows = tuple(
        ArmRow(
            arm=arm.label,
            setting=describe_rates(measured[arm.name]),
            values={
                "train_top1_error": tuple(get_last_error(one) for one in measured[arm.name]),
                "fraction of the gradient at layer 1": tuple(
                    compute_arriving_fraction(one) for one in measured[arm.name]
                ),
            },
        )
        for arm in list_plain_arms(run.config)
    )
    caption = (
        f"Left: the gradient that arrives at each of {DEPTHS[-1]} layers in the fresh network, over"
        " that at the last. Right: training error of networks of 4 to 16 layers after training,"
        " each seed a dot; the dashed line is the error of always answering the commonest class."
    )
    notes = (
        (
            "Each activation starts with its usual initial weights: Glorot's for sigmoid and tanh,"
            " He's for ReLU, which came three years after the paper. With others the fractions"
            " would be others; the sigmoid's slope of at most 1/4 per layer stays."
        ),
        "Training errors are those of the last epoch, as its steps measured it.",
    )
    return Conclusion(findings, rows, (ClaimFigure(file="depths.png", caption=caption),), notes)


def _judge_deepest(measured: ArmMeasurements) -> tuple[ClaimFinding, ...]:
    """Return the findings on the deepest networks: arriving gradients, then training errors."""
    deepest = {name: measured[f"plain-{name}-{DEPTHS[-1]}"] for name in ACTIVATIONS}
    arriving = {
        name: [compute_arriving_fraction(one) for one in made] for name, made in deepest.items()
    }
    learned = {name: [100 * get_last_error(one) for one in made] for name, made in deepest.items()}
    return (
        *(
            judge_effects(
                question,
                [one / other for one, other in zip(arriving["relu"], arriving[name], strict=True)],
            )
            for question, name in ((_SIGMOID_GRADIENT, "sigmoid"), (_TANH_GRADIENT, "tanh"))
        ),
        *(
            judge_effects(
                question,
                [one - other for one, other in zip(learned[name], learned["relu"], strict=True)],
            )
            for question, name in ((_TRAINED, "sigmoid"), (_TRAINED_TANH, "tanh"))
        ),
    )


def list_gradients(made: Measurement) -> list[float]:
    """Return the gradient norm by each layer's output in the fresh network, first layer first."""
    names = sorted(
        (name for name in made.numbers if name.startswith("gradient/layer")),
        key=lambda name: int(name.rpartition("layer")[2]),
    )
    return [made.numbers[name] for name in names]


def average_gradients(made: Sequence[Measurement]) -> list[float]:
    """Return by layer the gradient norm over that at the last layer, mean over the seeds."""
    import numpy as np

    fractions = [np.array(list_gradients(one)) / list_gradients(one)[-1] for one in made]
    return [float(value) for value in np.mean(fractions, axis=0)]


def compute_arriving_fraction(made: Measurement) -> float:
    """Return the fraction of the last layer's gradient that arrives at the first layer."""
    norms = list_gradients(made)
    return max(norms[0], 1e-30) / max(norms[-1], 1e-30)  # near the least float32


def get_last_error(made: Measurement) -> float:
    """Return the training error of the last epoch, in [0, 1]."""
    return made.numbers["last_train_top1_error"]


EXPERIMENTS = (
    Experiment(
        name="gradients",
        position=20,
        title="The gradient vanishes through sigmoids, but not through ReLUs",
        text=(
            "Section 3.1 calls tanh and the sigmoid saturating and slower to train by gradient"
            " descent. Why: each layer multiplies the gradient by the activation's slope, at most"
            " 1/4 for a sigmoid, so that little of it arrives at the first of many layers. Here:"
            " plain networks of 4, 8, 12 and 16 fully connected layers; the norm of the gradient at"
            " each layer of the fresh network, and the training error after equal training, the"
            " learning rate chosen for each."
        ),
        summary="the gradient vanishes with depth through sigmoids, but not through ReLUs",
        section="section 3.1",
        criterion="fraction of the gradient at the first of 16 layers, ReLU over sigmoid",
        list_arms=list_plain_arms,
        conclude=conclude_gradients,
    ),
)
