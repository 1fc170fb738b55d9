"""Claim: the gradient vanishes on its way down through sigmoids and tanhs, and ReLUs let it pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.model import ModelConfig
from pipeline.config.settings import Config
from pipeline.config.train import TrainConfig
from pipeline.reproduce.arms import Arm
from pipeline.reproduce.claims.ablation import rates
from pipeline.reproduce.claims.relu import LARGEST
from pipeline.reproduce.lab import Experiment, Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion, Figure, Row
from pipeline.reproduce.verdict import Question, find, not_measured

DEPTHS = (4, 8, 12, 16)
_ACTIVATIONS = ("relu", "tanh", "sigmoid")
_LABELS = {"relu": "ReLU", "tanh": "tanh", "sigmoid": "sigmoid"}
_SIZE = 28
_SOURCE = (
    "no number was published; Hochreiter, 1991, and Glorot and Bengio, 2010, describe the effect,"
    " the paper's section 3.1 uses it"
)
_SIGMOID = Question(
    what=(
        "share of the gradient that arrives at the first of 16 layers, with ReLU over with sigmoid"
    ),
    unit="times",
    published=None,
    source=_SOURCE,
    least=2.0,
)
_TANH = _SIGMOID.model_copy(update={"what": "the same with ReLU over with tanh", "least": 1.0})
_TRAINED = Question(
    what="training error of 16 layers with sigmoid less that with ReLU",
    unit="points",
    published=None,
    source=_SOURCE,
    least=0.0,
)
_TRAINED_TANH = _TRAINED.model_copy(
    update={"what": "training error of 16 layers with tanh less that with ReLU"}
)


def arms(config: Config) -> tuple[Arm, ...]:
    """Return plain networks of each activation and depth."""
    if config.data.short_side > LARGEST:
        return ()
    size = min(_SIZE, config.data.short_side)
    train = TrainConfig(
        epochs=config.reproduce.plain_epochs,
        schedule="constant",
        learning_rate=0.01,
        weight_decay=0,
        crop="center",
        flip=False,
    )
    return tuple(
        Arm(
            f"plain-{activation}-{depth}",
            f"{_LABELS[activation]}, {depth} layers",
            model=ModelConfig.model_validate(
                {
                    "network": "cifar",
                    "image_size": size,
                    "alexnet": {"activation": activation},
                }
            ).model_dump(),
            train=train.model_dump(),
            images=config.reproduce.plain_images,
            depth=depth,
            criterion="train_loss",
            tuning_epochs=min(config.reproduce.tuning_epochs, config.reproduce.plain_epochs),
        )
        for activation in _ACTIVATIONS
        for depth in DEPTHS
    )


def conclude(lab: Lab, measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare what arrives at the first layer, and what is learned."""
    from pipeline.reports.claim_figures import draw_depths

    if not measured:
        why = (
            "Plain networks are for small images. Type `alexnet reproduce gradients --data"
            " cifar10`."
        )
        return Conclusion(
            tuple(
                not_measured(question, why)
                for question in (_SIGMOID, _TANH, _TRAINED, _TRAINED_TANH)
            )
        )

    def of(activation: str, depth: int) -> Sequence[Measurement]:
        return measured[f"plain-{activation}-{depth}"]

    gradients = {
        _LABELS[name]: {depth: mean_gradients(of(name, depth)) for depth in DEPTHS}
        for name in _ACTIVATIONS
    }
    errors = {
        _LABELS[name]: {depth: [last_error(one) for one in of(name, depth)] for depth in DEPTHS}
        for name in _ACTIVATIONS
    }
    counts = lab.dataset.class_counts["train"]
    draw_depths(gradients, errors, 1 - max(counts) / sum(counts), lab.folder / "depths.png")
    deepest = DEPTHS[-1]
    arriving = {name: [passing(one) for one in of(name, deepest)] for name in _ACTIVATIONS}
    learned = {name: [100 * last_error(one) for one in of(name, deepest)] for name in _ACTIVATIONS}
    findings = (
        find(
            _SIGMOID,
            [one / other for one, other in zip(arriving["relu"], arriving["sigmoid"], strict=True)],
        ),
        find(
            _TANH,
            [one / other for one, other in zip(arriving["relu"], arriving["tanh"], strict=True)],
        ),
        find(
            _TRAINED,
            [one - other for one, other in zip(learned["sigmoid"], learned["relu"], strict=True)],
        ),
        find(
            _TRAINED_TANH,
            [one - other for one, other in zip(learned["tanh"], learned["relu"], strict=True)],
        ),
    )
    rows = tuple(
        Row(
            arm=arm.label,
            setting=rates(measured[arm.name]),
            values={
                "train_top1_error": tuple(last_error(one) for one in measured[arm.name]),
                "share of the gradient at layer 1": tuple(
                    passing(one) for one in measured[arm.name]
                ),
            },
        )
        for arm in arms(lab.config)
    )
    caption = (
        f"Left: the gradient that arrives at each of {deepest} layers in the fresh network, over"
        " that at the last. Right: training error of networks of 4 to 16 layers after training,"
        " each seed a dot; the dashed line is the commonest class's."
    )
    notes = (
        (
            "Each activation starts with the weights that are usual for it: Glorot's for sigmoid"
            " and tanh, He's for ReLU, which came three years after the paper. With others the"
            " shares would be others; the sigmoid's slope of at most 1/4 a layer stays."
        ),
        "Training errors are those of the last epoch, as its steps saw it.",
    )
    return Conclusion(findings, rows, (Figure(file="depths.png", caption=caption),), notes)


def gradients_of(made: Measurement) -> list[float]:
    """Return the norm of the gradient by each layer's output, from the first layer to the last, in the fresh network."""
    names = sorted(
        (name for name in made.numbers if name.startswith("gradient/layer")),
        key=lambda name: int(name.rpartition("layer")[2]),
    )
    return [made.numbers[name] for name in names]


def mean_gradients(made: Sequence[Measurement]) -> list[float]:
    """Return, layer by layer, the gradient's norm over that at the last layer, mean over the seeds."""
    import numpy as np

    shares = [np.array(gradients_of(one)) / gradients_of(one)[-1] for one in made]
    return [float(value) for value in np.mean(shares, axis=0)]


def passing(made: Measurement) -> float:
    """Return the share of the last layer's gradient that arrives at the first."""
    norms = gradients_of(made)
    return max(norms[0], 1e-30) / max(norms[-1], 1e-30)  # float32 holds no less


def last_error(made: Measurement) -> float:
    """Return the training error of the last epoch, in [0, 1]."""
    return made.numbers["last_train_top1_error"]


EXPERIMENT = Experiment(
    "gradients",
    "Sigmoids let the gradient vanish, ReLUs let it pass",
    "Section 3.1 calls tanh and the sigmoid saturating and slower to train by gradient descent."
    " Why: each layer multiplies the gradient by the activation's slope, at most 1/4 for a sigmoid,"
    " so that little of it arrives at the first of many layers. Here: plain networks of 4, 8, 12"
    " and 16 fully connected layers; the norm of the gradient at each layer of the fresh network,"
    " and the training error after equal training, the learning rate chosen for each.",
    arms,
    conclude,
)
