"""Where experiments are done.

Each one once, tracked, taken up again where it was interrupted, within a budget of time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, DatasetArtifact, digest_of
from pipeline.config.model import ModelConfig
from pipeline.config.resolution import Resolved
from pipeline.config.settings import Config
from pipeline.config.train import TrainConfig
from pipeline.engine.fingerprint import code_parts
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Context, Outcome, Stage, Tracker
from pipeline.files import write_text
from pipeline.model.networks import network_code
from pipeline.reproduce.arms import Arm, choose_rate, every_seed, train_arm
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Claim, Conclusion

# Holds the `measured` of the claim that was recorded last: one that was killed before is recorded
# by the next command.
_RECORDED_FILE = "recorded.txt"

Work = Callable[[Mapping[str, Any], DatasetArtifact, Context], Measurement]
Look = Callable[[Mapping[str, Any], DatasetArtifact, Context, Path], Measurement]


class BudgetSpentError(Exception):
    """The time is over: no further experiment is begun. What is done is kept."""


@dataclass(frozen=True)
class Experiment:
    """A claim of the paper, and how it is measured again.

    `text` says what the paper claims, and what is done here. `arms` are what must be trained;
    `conclude` is given the measurements of each arm, one a seed, and says what they mean.
    """

    name: str
    title: str
    text: str
    arms: Callable[[Config], tuple[Arm, ...]]
    conclude: Callable[[Lab, Mapping[str, Sequence[Measurement]]], Conclusion]

    def size(self, config: Config) -> str:
        """Say how large the experiment is: networks, training images and epochs of its arms.

        Empty where none is trained.
        """
        specs = [arm.spec(config, 0) for arm in self.arms(config)]
        if not specs:
            return ""
        sizes = sorted({spec["images"] for spec in specs})
        epochs = sorted({spec["train"]["epochs"] for spec in specs})
        model = specs[0]["model"]
        depths = sorted({spec["depth"] for spec in specs})
        network = (
            f"plain networks of {_listed(depths)} layers" if depths[0] else str(model["network"])
        )
        multiplier = model["alexnet"]["width_multiplier"]
        width = f" at width {multiplier:g}" if multiplier != 1 else ""
        images = _listed(sizes) if sizes[0] else "all"
        side = model["image_size"]
        return (
            f"{network}{width}, {side} x {side} pixels, {images} training images,"
            f" {_listed(epochs)} epochs"
        )


def _listed(numbers: Sequence[int]) -> str:
    """Return `1, 2 and 3`."""
    words = [f"{number:,}" for number in numbers]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


@dataclass
class Pace:
    """How far a command is, and how much time it may take: `minutes` from its start, 0 for any.

    Counted in training images seen.
    """

    minutes: float
    planned: float = 0.0
    done: float = 0.0
    worked: float = 0.0
    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def require_time(self) -> None:
        """Raise a BudgetSpentError when the time is over."""
        if self.minutes and time.monotonic() - self.started > 60 * self.minutes:
            raise BudgetSpentError(f"the budget of {self.minutes:g} minutes is spent")

    def passed(self, images: float, seconds: float, *, worked: bool) -> None:
        """Count an experiment that is done, now or before."""
        self.done += images
        if worked:
            self.worked, self.seconds = self.worked + images, self.seconds + seconds

    @property
    def left_seconds(self) -> float | None:
        """About how long the rest takes, at the speed so far; None while nothing is known."""
        return (
            max(0.0, self.planned - self.done) * self.seconds / self.worked if self.worked else None
        )


class Lab:
    """The work on one claim.

    Args:
        runner: of a work directory; `ingest` is in its chain.
        resolved: the settings.
        records: of the chain, the prepared dataset among them.
        tracker: of the claim's own run.
        folder: where the claim's images are written.
        pace: of the whole command.
    """

    def __init__(
        self,
        runner: Runner,
        resolved: Resolved,
        records: Mapping[str, Artifact],
        tracker: Tracker,
        folder: Path,
        pace: Pace,
    ):
        self.config, self.folder, self.pace = resolved.config, folder, pace
        self._runner, self._resolved, self._records, self._tracker = (
            runner,
            resolved,
            records,
            tracker,
        )
        self._done: list[tuple[Outcome, Mapping[str, Any]]] = []
        self.recorded = False

    @property
    def dataset(self) -> DatasetArtifact:
        """The prepared dataset."""
        found = self._records["ingest"]
        if not isinstance(found, DatasetArtifact):
            raise TypeError(f"ingest left a {type(found).__name__}")
        return found

    def say(self, text: str) -> None:
        """Tell a person, and about how long everything that is left takes."""
        left = self.pace.left_seconds
        self._runner.observer.said(
            text if left is None else f"{text} (about {left / 60:.0f} minutes left)"
        )

    @property
    def seconds(self) -> float:
        """How long the experiments took, whenever they were done."""
        return sum(made.numbers.get("work_seconds", 0.0) for made in self.measured)

    @property
    def measured(self) -> list[Measurement]:
        """Everything that was measured for the claim, in order."""
        return [
            outcome.artifact
            for outcome, _ in self._done
            if isinstance(outcome.artifact, Measurement)
        ]

    @property
    def worked(self) -> bool:
        """Whether anything was measured now."""
        return any(outcome.state == "ran" for outcome, _ in self._done)

    def perform(self, name: str, spec: Mapping[str, Any], work: Work) -> Measurement:
        """Do an experiment, or take its result if it was done before.

        Args:
            name: of its folder and of its run.
            spec: everything that decides the result, besides the dataset and the code of `work`'s
                module; JSON can hold it.
            work: does it.

        Raises:
            BudgetSpentError: it is not done and the time is over.
        """

        def function(dataset: DatasetArtifact, context: Context, **_: Any) -> Measurement:
            context.run.log_params(flattened(spec, "arm."))
            started = time.monotonic()
            made = work(spec, dataset, context)
            numbers = made.numbers | {"work_seconds": round(time.monotonic() - started, 3)}
            return made.model_copy(update={"name": name, "numbers": numbers})

        function.__module__ = work.__module__
        stage = Stage(
            name=name,
            function=function,
            section="reproduce",
            config_argument="config",
            inputs={"dataset": DatasetArtifact},
            output=Measurement,
            source=lambda _: {"experiment": identity_of(spec)},
            chosen_code=lambda _: code_of_networks(spec),
            registries=frozenset({"pipeline.model.networks"}),
            resumable=True,
        )
        if not self._runner.is_performed(stage, self.config, self._records):
            self.pace.require_time()
        outcome = self._runner.perform(stage, self._resolved, self._records, self._tracker)
        self._done.append((outcome, spec))
        self.pace.passed(
            images_of(spec, self.dataset), outcome.seconds, worked=outcome.state == "ran"
        )
        return Measurement.read(outcome.directory)

    def look(
        self, name: str, spec: Mapping[str, Any], work: Look, trained: Measurement
    ) -> Measurement:
        """Look at a trained network, or take what was seen before.

        `work` is given the folder that holds it.
        """

        def looking(
            spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context
        ) -> Measurement:
            return work(spec, dataset, context, trained.directory)

        looking.__module__ = work.__module__
        return self.perform(name, {**spec, "trained": trained.sha256}, looking)

    def trained(self, arms: tuple[Arm, ...]) -> dict[str, list[Measurement]]:
        """Train all arms with one seed after the other, each time at a learning rate that is chosen for the arm first."""
        found: dict[str, list[Measurement]] = {arm.name: [] for arm in arms}
        for arm, seed in every_seed(arms, self.config.reproduce.seeds):
            chosen = self.perform(
                f"{arm.name}-rate{seed}", arm.tuning_spec(self.config, seed), choose_rate
            )
            spec = arm.spec(self.config, seed, chosen.numbers["learning_rate"])
            found[arm.name].append(self.perform(f"{arm.name}-seed{seed}", spec, train_arm))
        return found

    def conclude(
        self, experiment: Experiment, conclusion: Conclusion, about: Mapping[str, Any]
    ) -> Claim:
        """Keep the claim and record it on its run; nothing is recorded where nothing is new.

        Args:
            experiment: the claim.
            conclusion: what was found.
            about: the fields of the record that are the same for every claim of the command.
        """
        claim = Claim(
            name=experiment.name,
            title=experiment.title,
            text=experiment.text,
            findings=conclusion.findings,
            rows=conclusion.rows,
            figures=conclusion.figures,
            notes=conclusion.notes,
            seeds=self.config.reproduce.seeds,
            size=experiment.size(self.config),
            seconds=self.seconds,
            measured=digest_of(
                [
                    *(made.identity() for made in self.measured),
                    code_parts(experiment.conclude.__module__),
                    dict(about),
                ]
            ),
            **about,
        )
        known = self.folder / _RECORDED_FILE
        is_recorded = known.exists() and known.read_text(encoding="utf-8") == claim.measured
        if (
            not self.worked
            and is_recorded
            and (earlier := read_claim(self.folder)) is not None
            and earlier.measured == claim.measured
        ):
            return earlier
        write_text(self.folder / Claim.FILE, claim.model_dump_json(indent=1))
        self._record(claim)
        if self._tracker.pipeline_key:  # else nothing is recorded, and a later command does it
            write_text(known, claim.measured)
        return claim

    def _record(self, claim: Claim) -> None:
        """Record the claim, with a run for each experiment that an earlier claim or command did."""
        self.recorded = True
        # MLflow's Keras flavor imports TensorFlow, which must have been told how to run
        self._runner.prepare()
        self._tracker.start_pipeline_run(self._resolved)
        for outcome, spec in self._done:
            if outcome.state == "skipped" and isinstance(outcome.artifact, Measurement):
                run = self._tracker.start_stage_run(outcome.stage, "reproduce", self._resolved)
                run.log_params(flattened(spec, "arm."))
                run.set_tags({"measured_by": outcome.run_key})
                run.log_metrics(outcome.artifact.numbers)
                run.close("FINISHED")
        main = claim.main
        numbers = {"ours": main.ours, "published": main.published}
        numbers |= (
            dict(zip(("interval_low", "interval_high"), main.interval, strict=True))
            if main.interval
            else {}
        )
        tags = {
            "claim": claim.name,
            "verdict": main.verdict,
            "why": main.why,
            "what": main.what,
            "unit": main.unit,
        }
        self._tracker.conclude_run(
            f"{claim.name}: {main.verdict}",
            tags,
            {name: value for name, value in numbers.items() if value is not None},
        )
        self._tracker.log_files(self.folder)


def read_claim(folder: Path) -> Claim | None:
    """Return the claim that was concluded in a folder, if its images are there too."""
    try:
        claim = Claim.model_validate_json((folder / Claim.FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return claim if all((folder / figure.file).exists() for figure in claim.figures) else None


def identity_of(spec: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what decides an experiment's result.

    Its spec without settings that change nothing.
    """
    train = {
        name: value
        for name, value in spec.get("train", {}).items()
        if name not in TrainConfig.WITHOUT_EFFECT
    }
    return digest_of({**spec, "train": train})


def code_of_networks(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the fingerprint parts of the networks that an experiment builds."""
    models = [*([spec["model"]] if "model" in spec else []), *spec.get("networks", {}).values()]
    parts: dict[str, str] = {}
    for model in models:
        parts |= network_code(ModelConfig.model_validate(model))
    return parts


def flattened(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as `section.field` -> value."""
    found: dict[str, Any] = {}
    for name, value in spec.items():
        found |= (
            flattened(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{name}": value}
        )
    return found


def images_of(spec: Mapping[str, Any], dataset: DatasetArtifact) -> float:
    """Return about how many training images an experiment sees, of which its time depends.

    0 for a look.
    """
    if "train" not in spec:
        return 0.0
    images = min(spec["images"] or dataset.images("train"), dataset.images("train"))
    rates = 4 if "criterion" in spec else 1
    # A plain network sees an image in a tenth of the time.
    return float(images * spec["train"]["epochs"] * rates) * (0.1 if spec["depth"] else 1.0)


def planned(
    experiments: Sequence[Experiment], config: Config
) -> Iterator[tuple[Experiment, str, dict[str, Any]]]:
    """Yield what the claims train, each training once: for whom, under which name, and its spec.

    Rates that are not chosen yet are None.
    """
    seen: set[str] = set()
    for experiment in experiments:
        arms = experiment.arms(config)
        turns = list(every_seed(arms, config.reproduce.seeds))
        trainings = [
            (f"{arm.name}-rate{seed}", arm.tuning_spec(config, seed)) for arm, seed in turns
        ]
        trainings += [(f"{arm.name}-seed{seed}", arm.spec(config, seed)) for arm, seed in turns]
        for name, spec in trainings:
            if name not in seen:
                seen.add(name)
                yield experiment, name, spec
