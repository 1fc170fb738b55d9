"""Fine-tuning of a network with pretrained weights, in two phases.

    phase one   features of every image, once; the classifier by logistic regression on them
    phase two   the upper blocks are trained, too, each at a lower rate than the block above it,
                with warm-up, a moving average of the weights and early stopping

Phase two is kept where its answers on the validation split are better than those of phase one
beyond chance; else phase one is. It is left out where that could not be. Batch normalization keeps
the pretrained statistics in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
import tensorflow as tf

from pipeline.artifacts import ModelArtifact
from pipeline.config.train import TrainConfig
from pipeline.data.augment import compute_class_weights
from pipeline.data.evaluation_batches import make_evaluation_batches
from pipeline.data.loader import LoadedSplit
from pipeline.errors import ConfigError
from pipeline.model.batch_limit import limit_batch
from pipeline.model.graph import find_classifier, list_blocks
from pipeline.train.features import compute_features
from pipeline.train.head import Head, fit_head
from pipeline.train.loop import compute_means
from pipeline.train.step import compute_sums

if TYPE_CHECKING:
    from pipeline.arrays import Booleans, Floats, Network

Mode = Literal["head", "full", "off"]
# One-sided, of the one test: the epoch is chosen by the loss.
_SIGNIFICANCE_LEVEL = 0.05
# A block below this fraction of the classifier's rate stays frozen: it would hardly move, and the
# gradient need not pass through it.
_MIN_RATE_FRACTION = 0.05
_WARMUP_EPOCHS, _PATIENCE = 1, 3
_EMA_DECAY = 0.99
_SCORED_IMAGES = 64


def choose_mode(config: TrainConfig, model: ModelArtifact, *, on_gpu: bool) -> Mode:
    """Return what `train.finetune` means for a network.

    Raises:
        ConfigError: there are no pretrained weights to tune.
    """
    if config.finetune == "auto":
        if model.pretrained != "imagenet":
            return "off"
        return "full" if on_gpu else "head"
    if config.finetune != "off" and not (model.pretrained or _makes_own_weights(model.network)):
        raise ConfigError(
            f"train.finetune={config.finetune} needs pretrained weights, and network"
            f" {model.network} starts with fresh ones",
            hint=(
                "Type --weights FILE, or --weights imagenet for a network that has such weights"
                " (see `alexnet networks`), or leave train.finetune out"
            ),
        )
    return config.finetune


def _makes_own_weights(network: str) -> bool:
    """Return whether a network's weights are those of a function, `module:name`, or of a file."""
    return ":" in network or network.endswith(".keras")


@dataclass(frozen=True)
class PhaseOne:
    """The classifier on frozen features.

    Attributes:
        head: its weights and how the penalty was chosen.
        wrong: bool [images], which validation images it gets wrong.
        numbers: of both splits, by the names of an epoch's numbers: `train_loss` in nats,
            `train_top1_error` in [0, 1] and so on.
    """

    head: Head
    wrong: Booleans
    numbers: dict[str, float]

    def describe(self) -> dict[str, Any]:
        """Return what the page of the training shows."""
        head = self.head
        return {
            "penalty": head.penalty,
            "held_out": head.held_out,
            "scores": [[penalty, *scores] for penalty, scores in head.scores.items()],
            "note": self.explain_edge(),
            **self.numbers,
        }

    def explain_edge(self) -> str:
        """Return what it may mean that the best penalty is at an edge; empty where it is not."""
        found = (
            f"the {self.head.edge} of the tried penalties (C = {self.head.penalty:g}) is the best"
        )
        if self.head.edge == "strongest":
            return f"{found}: the features say little of these classes"
        if self.head.edge == "weakest":
            return (
                f"{found}: the classes are very easy, or images of one object are in several folds;"
                " a manifest's column `group` keeps them together"
            )
        return ""


def fit_classifier(
    network: Network,
    splits: tuple[LoadedSplit, LoadedSplit],
    config: TrainConfig,
    folder: Path,
    report: Callable[[int, int, str, str], None],
) -> PhaseOne:
    """Fit the classifier on the features of the training split.

    Args:
        network: with pretrained weights; it is read only.
        splits: training and validation split.
        config: the settings.
        folder: where features are kept until the stage is finished.
        report: called with done, total, unit and what is done.
    """
    train, validation = splits
    features = {
        images.split: compute_features(
            network,
            images,
            folder / images.split,
            mirror=config.flip and images is train,
            report=lambda done, images=images: report(  # type: ignore[misc]
                done, len(images), "images", f"features of the {images.split} split"
            ),
        )
        for images in splits
    }
    weights = compute_class_weights(train.dataset) if config.class_weights else None
    head = fit_head(
        features[train.split],
        train.labels,
        len(train.dataset.class_names),
        seed=config.seed,
        groups=train.groups,
        class_weights=weights,
        report=lambda done, total: report(done, total, "fits", "classifier on the features"),
    )
    numbers: dict[str, float] = {}
    for images in splits:
        logits = head.compute_logits(features[images.split][:, 0])
        _, sums = compute_sums(tf.constant(images.labels), tf.constant(logits))
        numbers |= compute_means(images.split, sums.numpy())
    logits = head.compute_logits(features[validation.split][:, 0])
    return PhaseOne(head, logits.argmax(axis=1) != validation.labels, numbers)


def install_classifier(network: Network, weights: tuple[Floats, Floats]) -> None:
    """Give a network's classifier a kernel [features, classes] and a bias [classes]."""
    find_classifier(network).set_weights(weights)


def plan_phase_two(config: TrainConfig, images: int, replicas: int = 1) -> TrainConfig:
    """Return the settings of the second phase, for the training loop.

    Args:
        config: the settings of a training as from scratch.
        images: of the training split; a step takes no more, or 0 if it cannot take as few.
        replicas: devices that share a step.
    """
    multiple = replicas * config.batch_multiple
    changes = {
        "global_batch_size": min(config.global_batch_size, images // multiple * multiple),
        "epochs": config.finetune_epochs,
        "learning_rate": config.finetune_learning_rate,
        "base_batch_size": 0,
        "schedule": "cosine",
        "warmup_epochs": min(_WARMUP_EPOCHS, config.finetune_epochs - 1),
        "early_stopping": _PATIENCE,
        "ema_decay": config.ema_decay or _EMA_DECAY,
    }
    return config.model_copy(update=changes)


def freeze_lower_blocks(network: Network, layer_decay: float) -> dict[str, float]:
    """Freeze what the second phase does not train, and return the rates of the rest.

    Batch normalization is frozen everywhere: statistics of a few images would replace those of a
    million.

    Args:
        network: of which layers are frozen.
        layer_decay: rate of a block as a fraction of that of the block above it.

    Returns:
        For each layer with weights that is trained, its rate as a fraction of the classifier's.
    """
    rates: dict[str, float] = {find_classifier(network).name: 1.0}
    names = [layer.name for layer in network.layers]
    ends = [names.index(block) for block in list_blocks(network)]
    for index, layer in enumerate(network.layers):
        depth = sum(index <= end for end in ends)  # 0 for the classifier, 1 for the block below
        rate = layer_decay**depth
        frozen = rate < _MIN_RATE_FRACTION or isinstance(layer, keras.layers.BatchNormalization)
        if frozen:
            layer.trainable = False
        elif layer.trainable_weights:
            rates[layer.name] = rate
    return rates


def find_wrong_answers(network: Network, images: LoadedSplit) -> Booleans:
    """Return which images of a split a network gets wrong, bool [images]."""
    batch_size = limit_batch(network, _SCORED_IMAGES)
    batches = make_evaluation_batches(
        images, image_size=network.input_shape[1:3], batch_size=batch_size
    )
    program = tf.function(lambda pixels: network(pixels, training=False), reduce_retracing=True)
    answers = [program(pixels).numpy().argmax(axis=1) for pixels, _ in batches]
    return np.concatenate(answers) != images.labels


def explain_left_out(before: Booleans, batch_size: int) -> str:
    """Return why phase two would be in vain; empty where it may help.

    Args:
        before: bool [images], which validation images phase one gets wrong.
        batch_size: images of a step of phase two; 0 where the training split is too small for one.
    """
    if not batch_size:
        return "the training split is smaller than a step of all devices"
    better, p_value = is_better(before, np.zeros_like(before))
    if better:
        return ""
    if not before.any():
        return f"none of {len(before)} validation images is wrong without it"
    return (
        f"{int(before.sum())} of {len(before)} validation images are wrong without it, too few to"
        f" tell whether it helps: none wrong with it would have p = {p_value:.2g}"
    )


def is_better(before: Booleans, after: Booleans) -> tuple[bool, float]:
    """Return whether fewer answers are wrong than before, beyond chance, and the p-value.

    McNemar's exact test, one-sided: among images that only one of the two gets wrong, those are
    half of them by chance.

    Args:
        before: bool [images], wrong before.
        after: bool [images], wrong after.
    """
    from scipy.stats import binom

    mended, broken = int((before & ~after).sum()), int((after & ~before).sum())
    chance = float(binom.sf(mended - 1, mended + broken, 0.5)) if mended + broken else 1.0
    return chance < _SIGNIFICANCE_LEVEL, chance
