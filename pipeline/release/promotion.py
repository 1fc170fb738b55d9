"""The promotion of a candidate, from the trained file to the alias.

    examine     the files are packed, with golden images; the model is scored now, from its saved
    file, on the frozen test split; a clean
                process serves the package and must answer the golden images as evaluation did
    judge       the champion is scored now as well, on the same images: is there evidence that the
    candidate may take its place?
    settle      a version in the registry, with the gate's word on it; then the alias moves, if the
    champion is still the one that the
                candidate was judged against; else it is judged again

Whatever kills the process, the alias names a version that passed: the alias is what is written
last.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import (
    DatasetArtifact,
    Decision,
    EvaluationReport,
    GateCheck,
    TrainingResult,
)
from pipeline.config.release import ReleaseConfig
from pipeline.data.headers import read_orientation
from pipeline.data.loader import LoadedSplit, load_split, read_encoded_images
from pipeline.engine.stage import Context
from pipeline.evaluate.calibration import compute_chance_calibration_error
from pipeline.evaluate.logits import compute_losses_and_confidences
from pipeline.evaluate.metrics import Tally, find_majority_class, summarize_tally
from pipeline.evaluate.predictions import read_logits, read_logits_at
from pipeline.evaluate.selection import spread_indices
from pipeline.evaluate.speed import measure_speed
from pipeline.release.classify import TOLERANCE, Classifier, load_classifier
from pipeline.release.commit import Offer, Settled, Verdict, settle, whole
from pipeline.release.frozen_test import Exam, dataset_of, frozen_exam, own_exam, places_of
from pipeline.release.gate import Answers, Measured, judge, needed_text
from pipeline.release.package import (
    GoldenImage,
    Release,
    open_version,
    read_package,
    settings_digest,
    write_package,
)
from pipeline.release.smoke_test import rehearse
from pipeline.tracking.known_runs import read_known_runs
from pipeline.tracking.registry import (
    MODEL_TAG,
    RELEASE_TAG,
    SCHEDULED_RUN_TAG,
    SETTINGS_TAG,
    Registry,
    Version,
)

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Integers

GOLDEN_IMAGES = 16
_STRANGE = (
    "The champion was released on other images than these. Where splits are dealt by content it"
    " has seen none of them all the same; where they were given by hand, nothing here knows."
)
_WINDOW = 256  # images that are decoded and answered together


def decide(
    config: ReleaseConfig,
    dataset: DatasetArtifact,
    trained: TrainingResult,
    report: EvaluationReport,
    registry: Registry,
    context: Context,
) -> Decision:
    """Judge the trained model, register it, and make it the champion if it passes.

    Raises:
        CheckpointError: a model's file is not the one that was saved.
        TrackingError: the registry does not answer.
        BusyError: the champion changes faster than a candidate can be judged.
    """
    champion = registry.read_champion()
    opened = whole(champion, registry) if champion else None
    if champion is not None and opened is not None and opened.model_sha256 == trained.model_sha256:
        found = Settled(
            "unchanged",
            f"version {champion.number} of {registry.name} is this very model",
            champion.number,
            champion.number,
        )
        return _decision(config, dataset, trained, found)
    if reason := _unlike(dataset, trained, report):
        check = GateCheck(
            name="evaluation",
            passed=False,
            measured="",
            required="test split, center crop, this model",
            text=reason,
        )
        found = Settled(
            "refused", reason, "", champion.number if champion else "", Verdict((check,))
        )
        return _decision(config, dataset, trained, found)
    candidate = examine(dataset, trained, report, context)
    offer = Offer(candidate.release, _tags(candidate, report, context), _run_of(trained, context))

    def judged(other: Version | None) -> Verdict:
        return judge_against(other, candidate, config, dataset, context)

    return _decision(config, dataset, trained, settle(registry, offer, judged, config), candidate)


def _unlike(dataset: DatasetArtifact, trained: TrainingResult, report: EvaluationReport) -> str:
    """Say why an evaluation is no evidence for a release, or nothing."""
    if report.split != "test" or report.view != "center crop":
        return (
            f"it was evaluated on the {report.split} split by {report.view}, and is released by the"
            " test split and the center crop"
        )
    if report.model_sha256 != trained.model_sha256 or report.dataset_digest != dataset.digest:
        return "its evaluation is that of another model or of other images"
    return ""


def _decision(
    config: ReleaseConfig,
    dataset: DatasetArtifact,
    trained: TrainingResult,
    found: Settled,
    candidate: Candidate | None = None,
) -> Decision:
    return Decision(
        outcome=found.outcome,
        reason=found.reason,
        name=config.name,
        version=found.version,
        champion=found.champion,
        policy=config.policy,
        checks=found.verdict.checks,
        images=found.verdict.images,
        top1_error=(
            found.verdict.top1_error
            if found.verdict.top1_error is not None
            else candidate.top1_error
            if candidate
            else None
        ),
        champion_top1_error=found.verdict.champion_top1_error,
        advice=found.verdict.advice,
        test_images_note=found.verdict.test_images_note,
        model_sha256=trained.model_sha256,
        release_sha256=candidate.release.sha256() if candidate else "",
        dataset_digest=dataset.digest,
    )


# -- the candidate ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A trained model, packed and scored: labels and first guesses are int64 [images].

    `checks` are those that need no champion.
    """

    release: Release
    labels: Any
    answers: Any
    measured: Measured
    checks: tuple[GateCheck, ...]

    @property
    def top1_error(self) -> float:
        """Share of the test images whose first guess is wrong, in [0, 1]."""
        return float(np.mean(self.labels != self.answers))


def examine(
    dataset: DatasetArtifact, trained: TrainingResult, report: EvaluationReport, context: Context
) -> Candidate:
    """Pack the trained model, score it from the package, time it and rehearse its service."""
    images = load_split(dataset, "test", in_memory=False)
    release = _packed(images, trained, report, context)
    classifier = load_classifier(release, batch=_WINDOW)
    logits, labels = _scored(classifier, images, "candidate", context)
    seen = _as_evaluated(logits, report)
    context.progress(0, 1, "model", "how fast it answers")
    speed = measure_speed(classifier.model, release.model_path, batches=(1,))
    tally = Tally(
        len(dataset.class_names),
        find_majority_class(dataset.class_counts["train"]),
        temperature=report.temperature,
    )
    tally.add_images(logits, labels)
    summary, (_, confidence) = (
        summarize_tally(tally),
        compute_losses_and_confidences(logits, labels, report.temperature),
    )
    context.progress(0, 1, "service", "a clean process answers the golden images")
    rehearsed = rehearse(release, context.scratch_directory)
    return Candidate(
        release,
        labels,
        logits.argmax(axis=1),
        Measured(
            calibration_error=max(
                0.0,
                summary.values["calibrated_calibration_error"]
                - compute_chance_calibration_error(confidence),
            ),
            majority_error=summary.majority_error,
            latency_p95_seconds=speed.batches[0].p95_seconds,
            model_bytes=speed.model_bytes,
        ),
        (seen, rehearsed),
    )


def _packed(
    images: LoadedSplit, trained: TrainingResult, report: EvaluationReport, context: Context
) -> Release:
    """Write the release's folder, with golden images spread over the test split, and read it back."""
    folder = context.directory / Decision.PACKAGE
    shutil.rmtree(folder, ignore_errors=True)
    places = spread_indices(len(images), GOLDEN_IMAGES)
    expected = dict(zip(places, read_logits_at(report.predictions_path, places), strict=True))
    golden = [
        GoldenImage(encoded, label, expected[place])
        for place, (encoded, orientation, label) in enumerate(read_encoded_images(images))
        # Where a published set was read without its EXIF orientation, a service that heeds it
        # answers another image.
        if place in expected and orientation == read_orientation(encoded)
    ]
    release = Release(
        model_sha256=trained.model_sha256,
        class_names=trained.class_names,
        image_size=trained.image_size,
        short_side=trained.short_side,
        temperature=report.temperature,
        dataset_digest=report.dataset_digest,
    )
    written = write_package(release, trained.verified_model_path(), golden, folder)
    return read_package(folder, written.sha256(), name="candidate")


def _scored(
    classifier: Classifier, images: LoadedSplit, who: str, context: Context, places: Any = None
) -> tuple[Floats, Any]:
    """Return float32 [images, classes] logits and int64 [images] labels of a split, read from the files' bytes as a service reads them.

    With `places`, int64 [images] ascending, only of the images there.
    """
    logits, labels = list["Floats"](), list[int]()
    stored, total = read_encoded_images(images), len(images) if places is None else len(places)
    if places is not None:
        wanted = np.isin(np.arange(len(images)), places)
        stored = itertools.compress(stored, wanted)
    with ThreadPoolExecutor() as threads:
        for window in _windows(stored):
            pixels = threads.map(
                lambda image: classifier.pixels(image[0], orientation=image[1]), window
            )
            logits.append(classifier.logits(np.stack(list(pixels))))
            labels += [label for *_, label in window]
            context.progress(len(labels), total, "images", f"{who} on the test split")
    return np.concatenate(logits), np.asarray(labels, np.int64)


def _windows(images: Iterator[tuple[bytes, int, int]]) -> Iterator[list[tuple[bytes, int, int]]]:
    while window := list(itertools.islice(images, _WINDOW)):
        yield window


def _as_evaluated(logits: Floats, report: EvaluationReport) -> GateCheck:
    """Return whether the file gives today what the evaluation wrote down."""
    written = np.concatenate([part for part, _ in read_logits(report.predictions_path)])
    alike = written.shape == logits.shape
    difference = float(np.abs(written - logits).max()) if alike else float("inf")
    return GateCheck(
        name="as evaluated",
        passed=alike and difference <= TOLERANCE * max(1.0, float(np.abs(written).max())),
        measured=f"{difference:.1e}",
        required=f"at most {TOLERANCE:.0e} of the largest logit",
        text=(
            "Scored again from the saved file, the largest difference of a logit from the"
            f" evaluation's is {difference:.1e}."
        ),
    )


# -- the champion ----------------------------------------------------------------------------------


def judge_against(
    champion: Version | None,
    candidate: Candidate,
    config: ReleaseConfig,
    dataset: DatasetArtifact,
    context: Context,
) -> Verdict:
    """Score the champion, if there is one, on the candidate's test images, and let the gate judge.

    Raises:
        CheckpointError: the champion's files are not those that were released; `alexnet model rollback`
            helps.
    """
    names = candidate.release.class_names
    if champion is None:
        given = Answers(candidate.labels, candidate.answers)
        return Verdict(
            candidate.checks + _checks(given, candidate.measured, names, config),
            images=len(candidate.labels),
        )
    classifier = load_classifier(
        open_version(champion, context.tracking, context.workdir), batch=_WINDOW
    )
    renamed = context.config.data.renamed_classes
    exam = exam_for(
        dataset,
        candidate.labels,
        classifier.release.dataset_digest,
        config,
        context.workdir,
        renamed,
    )
    who = f"champion, version {champion.number},"
    logits, _ = _scored(classifier, load_split(dataset, "test", in_memory=False), who, context)
    known = places_of(classifier.release.class_names, names, renamed)
    own = known[logits.argmax(axis=1)]
    theirs, candidates = own[exam.own], candidate.answers[exam.own]
    if len(exam.gone) and exam.earlier is not None:
        gone = load_split(exam.earlier, "test", in_memory=False)
        theirs = np.concatenate(
            [theirs, known[_scored(classifier, gone, who, context, exam.gone)[0].argmax(axis=1)]]
        )
        answers = _scored(
            load_classifier(candidate.release, batch=_WINDOW), gone, "candidate", context, exam.gone
        )[0].argmax(axis=1)
        candidates = np.concatenate([candidates, answers])
    shared = np.isin(exam.labels, known)
    given = Answers(exam.labels, candidates, theirs, shared)
    measured = replace(
        candidate.measured,
        majority_error=float(
            np.mean(exam.labels != find_majority_class(dataset.class_counts["train"]))
        ),
    )
    checks = _checks(given, measured, names, config)
    dropped = {name for name, now in renamed.items() if not now}  # by the person who named them
    if missing := [
        name
        for name, place in zip(classifier.release.class_names, known, strict=True)
        if place < 0 and name not in dropped
    ]:
        checks += (_lost_classes(missing),)
    return Verdict(
        candidate.checks + checks,
        float(np.mean(theirs[shared] != exam.labels[shared])) if shared.any() else None,
        needed_text(given, config),
        " ".join(filter(None, [exam.text, _news(candidate, own, exam)])),
        len(exam.labels),
        float(np.mean(candidates != exam.labels)) if len(exam.labels) else None,
    )


def exam_for(
    dataset: DatasetArtifact,
    labels: Integers,
    champion_digest: str,
    config: ReleaseConfig,
    workdir: Path,
    renamed: Mapping[str, str],
) -> Exam:
    """Return the images that both are judged by.

    Args:
        dataset: the candidate's.
        labels: int64 [images], of its test split.
        champion_digest: of the dataset that the champion was released by.
        config: whether these are the champion's test images or the candidate's.
        workdir: where the champion's dataset may be.
        renamed: old name -> new name of classes.
    """
    if champion_digest == dataset.digest:
        return own_exam(labels)
    if config.test_images == "current":
        return own_exam(
            labels,
            f"release.test_images=current: the test split as it is now is what counts. {_STRANGE}",
        )
    earlier = dataset_of(champion_digest, workdir)
    if earlier is None:
        return own_exam(
            labels,
            f"The champion's dataset is not in {workdir}, so the test split as it is now is what"
            f" counts. {_STRANGE}",
        )
    return frozen_exam(dataset, earlier, renamed)


def _checks(
    given: Answers, measured: Measured, names: Sequence[str], config: ReleaseConfig
) -> tuple[GateCheck, ...]:
    return tuple(GateCheck(**asdict(check)) for check in judge(given, measured, names, config))


def _news(candidate: Candidate, champion: Any, exam: Exam) -> str:
    """Say how both do on the candidate's own test images that do not count.

    Nothing where all do.
    """
    new = np.setdiff1d(np.arange(len(candidate.labels)), exam.own)
    if not len(new):
        return ""
    errors = [
        f"{np.mean(answers[new] != candidate.labels[new]):.2%}"
        for answers in (candidate.answers, champion)
    ]
    return (
        f"On these {len(new):,}, as they are labeled now, the candidate errs on {errors[0]} and"
        f" the champion on {errors[1]}."
    )


def _lost_classes(missing: list[str]) -> GateCheck:
    some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    return GateCheck(
        name="classes",
        passed=False,
        measured=f"{len(missing)} missing",
        required="those of the champion",
        text=(
            f"The champion knows {len(missing)} classes that the candidate does not: {some}."
            " Another task has a name of its own: --set release.name=NAME."
        ),
    )


def _tags(candidate: Candidate, report: EvaluationReport, context: Context) -> dict[str, str]:
    """Return what a version says of itself from the start."""
    return {
        RELEASE_TAG: candidate.release.sha256(),
        MODEL_TAG: candidate.release.model_sha256,
        "dataset_digest": report.dataset_digest,
        "top1_error": f"{candidate.top1_error:.6f}",
        "images": str(len(candidate.labels)),
        "temperature": f"{report.temperature:.6g}",
        "run_key": context.run.key,
        SETTINGS_TAG: settings_digest(context.config),
        **(
            {SCHEDULED_RUN_TAG: context.tags[SCHEDULED_RUN_TAG]}
            if SCHEDULED_RUN_TAG in context.tags
            else {}
        ),
    }


def _run_of(trained: TrainingResult, context: Context) -> str | None:
    """Return the MLflow run that trained the model, if it was recorded."""
    try:
        key = json.loads((trained.directory / "run.json").read_text(encoding="utf-8")).get(
            "run_key", ""
        )
    except (OSError, ValueError):
        return None
    return read_known_runs(context.workdir).get(key, {}).get("run_id")
