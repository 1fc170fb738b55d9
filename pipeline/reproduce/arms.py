"""What is trained: the arms of the experiments, and the training of one of them with one seed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.artifacts import DatasetArtifact
from pipeline.config.model import ModelConfig
from pipeline.config.settings import Config
from pipeline.config.train import TrainConfig
from pipeline.engine.stage import Context
from pipeline.errors import ConfigError, TrainingDivergedError
from pipeline.files import write_text
from pipeline.model.networks import require_network_settings
from pipeline.reproduce.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.data.loader import LoadedSplit

# The rate of a seed is chosen by trainings with a seed that is not measured, so that no measured
# training was picked for its luck.
_TUNING_SEEDS = 1000
# Neighboring rates that are tried; the first one is the recipe's.
_RATE_STEP = 10**0.5
_MAX_RATES = 7
# Training images that the training error is measured on, cut as the test images are.
_SCORED_TRAINING_IMAGES = 5000
_SCORING_BATCH = 256


@dataclass(frozen=True)
class Arm:
    """One way to train, which differs from another in what the claim is about and in nothing else.

    `model` and `train` are settings that differ from the recipe's. `images` are training images, 0
    for all; `depth`, where it is not 0, asks for a plain network of so many layers instead; `goal`,
    where it is not 0, ends the training once the training error is as low. The learning rate is,
    for each seed anew, the one of those tried around the settings' with the lowest `criterion`
    after `tuning_epochs`. What luck there is in that choice differs from seed to seed, and so is in
    the interval of what is measured.
    """

    name: str
    label: str
    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    images: int = 0
    depth: int = 0
    goal: float = 0.0
    criterion: str = "validation_loss"
    tuning_epochs: int = 2

    def spec(self, config: Config, seed: int, rate: float | None = None) -> dict[str, Any]:
        """Return everything that decides the training, as JSON can hold it.

        Raises:
            ConfigError: the recipe's network has no place for what the arm changes.
        """
        sections = config.model_dump()
        alexnet = {**sections["model"]["alexnet"], **self.model.get("alexnet", {})}
        sections["model"] |= {**self.model, "alexnet": alexnet, "seed": seed}
        sections["train"] |= {**self.train, "seed": seed} | (
            {} if rate is None else {"learning_rate": rate}
        )
        try:
            own = Config.model_validate(sections)
            require_network_settings(own)
        except ConfigError as error:
            raise ConfigError(
                f"The arm {self.name} cannot be made of these settings: {error}"
            ) from error
        except ValidationError as error:
            why = "; ".join(
                str(item["msg"]).removeprefix("Value error, ") for item in error.errors()
            )
            raise ConfigError(
                f"The arm {self.name} cannot be made of these settings: {why}."
            ) from error
        kept = {"images": self.images, "depth": self.depth, "goal": self.goal}
        return {
            "model": own.model.model_dump(mode="json"),
            "train": own.train.model_dump(mode="json"),
            **kept,
        }

    def tuning_spec(self, config: Config, seed: int) -> dict[str, Any]:
        """Return everything that decides the choice of a seed's rate.

        A training of the same kind, its schedule among it, but short.
        """
        spec = self.spec(config, _TUNING_SEEDS + seed)
        spec["train"] |= {"epochs": self.tuning_epochs}
        return spec | {"criterion": self.criterion, "goal": 0.0}


def baseline(config: Config) -> Arm:
    """Return the network of the recipe as it is: what every ablation is compared with."""
    return Arm(
        "baseline",
        "as in 2012",
        images=config.reproduce.images,
        tuning_epochs=config.reproduce.tuning_epochs,
    )


def without(
    config: Config,
    name: str,
    label: str,
    *,
    model: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
) -> Arm:
    """Return the baseline with some settings changed."""
    return dataclasses.replace(
        baseline(config), name=name, label=label, model=model or {}, train=train or {}
    )


def choose_rate(spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context) -> Measurement:
    """Try learning rates around the one of the settings until a better one lies on neither side, and return the best.

    A training that diverges counts as the worst.
    """
    tried = context.scratch_directory / "rates.json"
    scores: dict[int, float] = {}
    if tried.exists():
        scores = {
            int(step): score
            for step, score in json.loads(tried.read_text(encoding="utf-8")).items()
        }
    while (step := next_step(scores)) is not None and len(scores) < _MAX_RATES:
        rate = rate_at(spec, step)
        scores[step] = _short_training(spec, rate, dataset, context, f"tries rate {rate:.2g}")
        write_text(tried, json.dumps(scores))
    best = min(scores, key=lambda step: (scores[step], abs(step)))
    numbers = {"learning_rate": rate_at(spec, best)}
    numbers |= {
        f"{spec['criterion']}/{rate_at(spec, step):.2g}": score
        for step, score in sorted(scores.items())
        if math.isfinite(score)
    }
    return Measurement(directory=context.directory, name="rate", numbers=numbers)


def next_step(scores: Mapping[int, float]) -> int | None:
    """Return which rate to try next, in steps from the first.

    None where the best has neighbors on both sides.
    """
    for step in (0, 1, -1):
        if step not in scores:
            return step
    best = min(scores, key=lambda step: (scores[step], abs(step)))
    if not math.isfinite(scores[best]):
        return min(scores) - 1  # all diverged: lower
    return next((step for step in (best + 1, best - 1) if step not in scores), None)


def rate_at(spec: Mapping[str, Any], step: int) -> float:
    """Return a rate so many steps above the settings' one, to two digits."""
    return float(f"{spec['train']['learning_rate'] * _RATE_STEP**step:.2g}")


def _short_training(
    spec: Mapping[str, Any], rate: float, dataset: DatasetArtifact, context: Context, detail: str
) -> float:
    own = {**spec, "train": {**spec["train"], "learning_rate": rate}}
    try:
        *_, last = _epochs(own, dataset, context, f"rate-{rate:.2g}.npz", detail)[1]
    except TrainingDivergedError:
        return math.inf
    return float(last[spec["criterion"]])


def train_arm(spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context) -> Measurement:
    """Train one arm with one seed and score it.

    On the test split, and on training images without dropout and random cuts.

    The weights that are scored are those of the epoch with the lowest validation error.
    """
    import numpy as np

    from pipeline.model.weights import save_model
    from pipeline.train.loop import choose_best_epoch

    built, epochs = _epochs(spec, dataset, context, "checkpoint.npz", "")
    curve: list[dict[str, float]] = []
    with contextlib.closing(epochs):
        for epoch in epochs:
            curve.append(epoch)
            context.run.log_metrics(
                {name: value for name, value in epoch.items() if name not in ("epoch", "time")},
                step=int(epoch["epoch"]),
            )
            if spec["goal"] and epoch["train_top1_error"] <= spec["goal"]:
                break
    network, train = built.network(), some(split_of(dataset.directory, "train"), spec["images"])
    network.set_weights(built.state.best_weights)
    save_model(network, context.directory / Measurement.MODEL_FILE)
    wrong = wrong_answers(network, split_of(dataset.directory, "test"))
    np.save(context.directory / Measurement.WRONG_FILE, wrong)
    write_text(context.directory / Measurement.CURVE_FILE, json.dumps(curve))
    numbers = {
        "test_top1_error": float(wrong.mean()),
        "train_top1_error": float(
            wrong_answers(network, some(train, _SCORED_TRAINING_IMAGES)).mean()
        ),
        "validation_top1_error": choose_best_epoch(curve)["validation_top1_error"],
        "last_train_top1_error": curve[-1]["train_top1_error"],
        "learning_rate": spec["train"]["learning_rate"],
        "epochs": float(len(curve)),
        "best_epoch": choose_best_epoch(curve)["epoch"],
        "images": float(len(train)),
        "images_per_second": float(np.median([epoch["images_per_second"] for epoch in curve])),
        "seconds": sum(epoch["seconds"] for epoch in curve),
    }
    numbers |= _gradients(built, train) if spec["depth"] else {}
    context.run.log_metrics(numbers)
    known = (
        Measurement.MODEL_FILE,
        Measurement.WRONG_FILE,
    )  # the curve has readings of the clock in it
    return Measurement(
        directory=context.directory,
        name="training",
        numbers=numbers,
        files=(*known, Measurement.CURVE_FILE),
        sha256=digest_of_files(context.directory, known),
    )


def _gradients(built: _Built, images: LoadedSplit) -> dict[str, float]:
    """Return the norm of the loss's gradient by each layer's output in the network with fresh weights, mean over a batch of images."""
    from pipeline.data.evaluation_batches import make_evaluation_batches
    from pipeline.model.signal import SIGNAL_IMAGES, measure_signal

    network = built.network()
    size = network.input_shape[1]
    pixels, labels = next(
        iter(make_evaluation_batches(images, image_size=size, batch_size=SIGNAL_IMAGES))
    )
    return {
        f"gradient/{layer.layer}": layer.arriving
        for layer in measure_signal(network, pixels, labels).layers
    }


def digest_of_files(folder: Path, files: tuple[str, ...]) -> str:
    """Return the SHA-256 over some files' bytes, in order."""
    digest = hashlib.sha256()
    for name in files:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=3)
def split_of(directory: Path, split: str) -> LoadedSplit:
    """Return a split of a prepared dataset, read once a process.

    TensorFlow keeps whatever batches were ever cut from.

    Args:
        directory: of the record of the ingest stage.
        split: `train`, `validation` or `test`.
    """
    from pipeline.data.loader import load_split

    return load_split(DatasetArtifact.read(directory), split)


def some(images: LoadedSplit, count: int) -> LoadedSplit:
    """Return the first images of the training split, in stored order, which is a random one.

    All for 0.

    Smaller sets are parts of larger ones. The split must begin where its shards do, as training
    splits do.
    """
    if not 0 < count < len(images):
        return images
    pixels = images.pixels if images.pixels is None else images.pixels[:count]
    reads = dict(images.dataset.reads)
    reads[images.split] = f"{reads[images.split].partition('[')[0]}[:{count}]"
    dataset = images.dataset.model_copy(update={"reads": reads})
    return dataclasses.replace(
        images,
        dataset=dataset,
        labels=images.labels[:count],
        keys=images.keys[:count],
        pixels=pixels,
    )


def wrong_answers(network: Any, images: LoadedSplit, view: Any = "center") -> Any:
    """Return which images of a split a network answers wrongly, bool [images] in stored order.

    Args:
        network: takes uint8 [batch, size, size, 3] in [0, 255], gives logits.
        images: the split.
        view: `center`, the central crop, or `ten`, the mean of the paper's ten.
    """
    import numpy as np

    from pipeline.data.evaluation_batches import make_evaluation_batches
    from pipeline.evaluate.scoring import ScoringModel, score_batches

    size = network.input_shape[1]
    batches = make_evaluation_batches(images, image_size=size, batch_size=_SCORING_BATCH, view=view)
    chunks = score_batches(
        ScoringModel(network),
        batches,
        images.keys,
        batch_size=_SCORING_BATCH,
        progress=lambda _done, _wrong: None,
    )
    return np.concatenate([chunk.logits.argmax(axis=1) != chunk.labels for chunk in chunks])


@dataclass(frozen=True)
class _Built:
    """The settings of a network, and its training's state."""

    spec: Mapping[str, Any]
    dataset: DatasetArtifact
    state: Any = None

    def network(self) -> Any:
        """Return the network with its fresh weights."""
        from pipeline.model.networks import build_network
        from pipeline.reproduce.claims.plain import plain_network

        model, classes = (
            ModelConfig.model_validate(self.spec["model"]),
            len(self.dataset.class_names),
        )
        mean, std = self.dataset.channel_mean, self.dataset.channel_std
        if depth := self.spec["depth"]:
            return plain_network(
                depth, model, num_classes=classes, channel_mean=mean, channel_std=std
            )
        return build_network(model, num_classes=classes, channel_mean=mean, channel_std=std)


def _epochs(
    spec: Mapping[str, Any],
    dataset: DatasetArtifact,
    context: Context,
    checkpoint: str,
    detail: str,
) -> tuple[_Built, Any]:
    """Return the network and its training's epochs, which go on from a checkpoint in the scratch folder if there is one."""
    from pipeline.train.loop import Training, train_epochs
    from pipeline.train.stage import apply_fidelity
    from pipeline.train.state import prepare_state
    from pipeline.train.strategy import make_devices

    fidelity = spec["model"]["alexnet"]["fidelity"]
    config = apply_fidelity(TrainConfig.model_validate(spec["train"]), fidelity)
    train, devices = some(split_of(dataset.directory, "train"), spec["images"]), make_devices()
    config = config.model_copy(
        update={"global_batch_size": min(config.global_batch_size, len(train))}
    )
    built = _Built(spec, dataset)
    built = dataclasses.replace(built, state=prepare_state(built.network, config, devices))

    def progress(done: int, total: int, text: str) -> None:
        batch = config.global_batch_size
        context.progress(
            done * batch, total * batch, "images", f"{detail}  {text}" if detail else text
        )

    path = context.scratch_directory / checkpoint
    training = Training(
        train,
        split_of(dataset.directory, "validation"),
        config,
        devices,
        path,
        None,
        progress,
        context.say,
    )
    return built, train_epochs(built.state, training)


def every_seed(arms: tuple[Arm, ...], seeds: int) -> Iterator[tuple[Arm, int]]:
    """Yield the trainings in the order in which they are done.

    All arms with one seed, then with the next.
    """
    return ((arm, seed) for seed, arm in itertools.product(range(seeds), arms))
