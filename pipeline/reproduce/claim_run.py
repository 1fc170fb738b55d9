"""The work on one claim: each experiment is done once, tracked, resumable and within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, DatasetArtifact, digest_of
from pipeline.config.model import ModelConfig
from pipeline.config.reproduce import ReproduceConfig
from pipeline.config.resolution import Resolved
from pipeline.config.train import TrainConfig
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Context, Outcome, Stage, Tracker
from pipeline.model.networks import REGISTRIES, network_code
from pipeline.reproduce.arm_training import train_arm
from pipeline.reproduce.arms import Arm, order_trainings
from pipeline.reproduce.budget import WorkBudget, count_images_seen
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.rate_search import choose_learning_rate

# From a spec, the dataset and the context to what was measured.
Work = Callable[[Mapping[str, Any], DatasetArtifact, Context], Measurement]
# The same with the folder of a trained network.
Examination = Callable[[Mapping[str, Any], DatasetArtifact, Context, Path], Measurement]


class ClaimRun:
    """The work on one claim.

    Args:
        runner: of a work directory; `ingest` is in its chain.
        resolved: the settings.
        records: of the chain, the prepared dataset among them.
        tracker: of the claim's own run.
        folder: where the claim's figures are written.
        budget: of the whole command.
    """

    def __init__(
        self,
        runner: Runner,
        resolved: Resolved,
        records: Mapping[str, Artifact],
        tracker: Tracker,
        folder: Path,
        budget: WorkBudget,
    ):
        self.config, self.folder, self.budget = resolved.config, folder, budget
        self.runner, self.resolved, self.tracker = runner, resolved, tracker
        self._records = records
        # The outcome of each experiment, with its spec.
        self.done: list[tuple[Outcome, Mapping[str, Any]]] = []

    @property
    def dataset(self) -> DatasetArtifact:
        """The prepared dataset."""
        found = self._records["ingest"]
        if not isinstance(found, DatasetArtifact):
            raise TypeError(f"ingest left a {type(found).__name__}")
        return found

    def log(self, text: str) -> None:
        """Log a text with the estimated time left."""
        left = self.budget.seconds_left
        self.runner.observer.notified(
            text if left is None else f"{text} (about {left / 60:.0f} minutes left)"
        )

    @property
    def seconds(self) -> float:
        """Duration of all experiments, whenever they were done."""
        return sum(made.numbers.get("work_seconds", 0.0) for made in self.measurements)

    @property
    def measurements(self) -> list[Measurement]:
        """Everything that was measured for the claim, in order."""
        return [
            outcome.artifact
            for outcome, _ in self.done
            if isinstance(outcome.artifact, Measurement)
        ]

    @property
    def has_worked(self) -> bool:
        """Whether an experiment was done now."""
        return any(outcome.state == "ran" for outcome, _ in self.done)

    def perform_experiment(self, name: str, spec: Mapping[str, Any], work: Work) -> Measurement:
        """Do an experiment, or return its result if it was done before.

        Args:
            name: of its folder and of its run.
            spec: everything that decides the result, besides the dataset and the code of `work`'s
                module; JSON can hold it.
            work: measures.

        Raises:
            BudgetSpentError: it is not done and the time is over.
        """

        def function(
            dataset: DatasetArtifact, context: Context, _config: ReproduceConfig
        ) -> Measurement:
            context.run.log_params(flatten_spec(spec, "arm."))
            started = time.monotonic()
            made = work(spec, dataset, context)
            numbers = made.numbers | {"work_seconds": round(time.monotonic() - started, 3)}
            return made.model_copy(update={"name": name, "numbers": numbers})

        # The fingerprint covers the code that measures, not this module.
        function.__module__ = work.__module__
        stage = Stage(
            name=name,
            function=function,
            section="reproduce",
            config_argument="_config",
            inputs={"dataset": DatasetArtifact},
            output=Measurement,
            source=lambda _: {"experiment": hash_spec(spec)},
            chosen_code=lambda _: list_network_code(spec),
            registries=frozenset(REGISTRIES),
            resumable=True,
        )
        if not self.runner.is_performed(stage, self.config, self._records):
            self.budget.require_time()
        outcome = self.runner.perform(stage, self.resolved, self._records, self.tracker)
        self.done.append((outcome, spec))
        self.budget.count_experiment(
            count_images_seen(spec, self.dataset), outcome.seconds, worked=outcome.state == "ran"
        )
        return Measurement.read(outcome.directory)

    def examine_network(
        self, name: str, spec: Mapping[str, Any], work: Examination, trained: Measurement
    ) -> Measurement:
        """Examine a trained network, or return the result if it was done before.

        Args:
            name: of the experiment's folder and of its run.
            spec: as for `perform_experiment`; the digest of the trained network is added.
            work: measures; its last argument is the folder of the trained network.
            trained: the measurement of the training.
        """

        def examine(
            spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context
        ) -> Measurement:
            return work(spec, dataset, context, trained.directory)

        examine.__module__ = work.__module__
        return self.perform_experiment(name, {**spec, "trained": trained.sha256}, examine)

    def train_arms(self, arms: tuple[Arm, ...]) -> dict[str, list[Measurement]]:
        """Train all arms, seed by seed, each at the learning rate that is chosen for it first.

        Returns:
            By the name of an arm its measurements, one per seed.
        """
        measured: dict[str, list[Measurement]] = {arm.name: [] for arm in arms}
        for arm, seed in order_trainings(arms, self.config.reproduce.seeds):
            chosen = self.perform_experiment(
                f"{arm.name}-rate{seed}",
                arm.make_tuning_spec(self.config, seed),
                choose_learning_rate,
            )
            spec = arm.make_spec(self.config, seed, chosen.numbers["learning_rate"])
            measured[arm.name].append(
                self.perform_experiment(f"{arm.name}-seed{seed}", spec, train_arm)
            )
        return measured


def hash_spec(spec: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a spec without the settings that change no result."""
    train = {
        name: value
        for name, value in spec.get("train", {}).items()
        if name not in TrainConfig.WITHOUT_EFFECT
    }
    return digest_of({**spec, "train": train})


def list_network_code(spec: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the fingerprint parts of the networks that an experiment builds."""
    models = [*([spec["model"]] if "model" in spec else []), *spec.get("networks", {}).values()]
    parts: dict[str, str | None] = {}
    for model in models:
        parts |= network_code(ModelConfig.model_validate(model))
    return parts


def flatten_spec(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as `section.field` -> value."""
    flat: dict[str, Any] = {}
    for name, value in spec.items():
        flat |= (
            flatten_spec(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{name}": value}
        )
    return flat
