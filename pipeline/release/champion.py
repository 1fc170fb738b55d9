"""The champion, scored on the same test images as the candidate, and the gate's verdict on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.artifacts import DatasetArtifact, GateCheck
from pipeline.config.release import ReleaseConfig
from pipeline.data.loader import load_split
from pipeline.engine.stage import Context
from pipeline.evaluate.metrics import find_majority_class
from pipeline.release.candidate import WINDOW, Candidate, score_images
from pipeline.release.champion_checks import describe_images_needed
from pipeline.release.classify import Classifier, load_classifier
from pipeline.release.commit import GateVerdict
from pipeline.release.frozen_test import (
    FrozenTest,
    find_dataset,
    freeze_test,
    map_class_indices,
    use_current_test,
)
from pipeline.release.gate import judge_candidate
from pipeline.release.gate_records import FirstGuesses
from pipeline.release.package import open_version
from pipeline.tracking.registry import Version

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.arrays import Integers, Labels

_OTHER_IMAGES = (
    "The champion was released on other images than these. Where images are assigned to splits by"
    " content it was trained on none of them all the same; where the splits were given, that is"
    " unknown."
)


@dataclass(frozen=True)
class _Scored:
    """First guesses in the candidate's class numbers, int64, -1 for a class that it lacks.

    Attributes:
        own: [images], of the champion on the candidate's whole test split.
        champion: [own + gone], of the champion on the frozen test images.
        candidate: [own + gone], of the candidate on these.
    """

    own: Labels
    champion: Labels
    candidate: Labels


def judge_against(
    champion: Version | None,
    candidate: Candidate,
    config: ReleaseConfig,
    dataset: DatasetArtifact,
    context: Context,
) -> GateVerdict:
    """Score the champion, if there is one, on the frozen test images, and apply the gate.

    Raises:
        CheckpointError: the champion's files are not those that were released; `alexnet model
            rollback` helps.
    """
    names = candidate.release.class_names
    if champion is None:
        guesses = FirstGuesses(candidate.labels, candidate.guesses)
        checks = judge_candidate(guesses, candidate.measured, names, config)
        return GateVerdict(candidate.checks + checks, images=len(candidate.labels))
    classifier = load_classifier(
        open_version(champion, context.tracking, context.workdir), batch=WINDOW
    )
    renamed = context.config.data.renamed_classes
    test = choose_frozen_test(
        dataset,
        candidate.labels,
        classifier.release.dataset_digest,
        config,
        context.workdir,
        renamed,
    )
    known = map_class_indices(classifier.release.class_names, names, renamed)
    scored = _score_both(classifier, candidate, test, known, dataset, context, champion.number)
    compared = np.isin(test.labels, known)
    guesses = FirstGuesses(test.labels, scored.candidate, scored.champion, compared)
    measured = replace(
        candidate.measured,
        majority_error=float(
            np.mean(test.labels != find_majority_class(dataset.class_counts["train"]))
        ),
    )
    checks = judge_candidate(guesses, measured, names, config)
    checks += _check_lost_classes(classifier.release.class_names, known, renamed)
    return GateVerdict(
        candidate.checks + checks,
        (
            float(np.mean(scored.champion[compared] != test.labels[compared]))
            if compared.any()
            else None
        ),
        describe_images_needed(guesses, config),
        " ".join(filter(None, [test.text, _describe_new_images(candidate, scored.own, test)])),
        len(test.labels),
        float(np.mean(scored.candidate != test.labels)) if len(test.labels) else None,
    )


def _score_both(
    classifier: Classifier,
    candidate: Candidate,
    test: FrozenTest,
    known: Integers,
    dataset: DatasetArtifact,
    context: Context,
    champion_number: str,
) -> _Scored:
    """Return the first guesses of both models on the frozen test images.

    Args:
        classifier: the champion.
        candidate: scored on its own test split already.
        test: the frozen test images.
        known: the candidate's class number for each class of the champion, -1 for none.
        dataset: the candidate's.
        context: of the stage.
        champion_number: its version.
    """
    name = f"champion, version {champion_number},"
    logits, _ = score_images(
        classifier, load_split(dataset, "test", in_memory=False), name, context
    )
    own = known[logits.argmax(axis=1)]
    by_champion, by_candidate = own[test.own], candidate.guesses[test.own]
    if len(test.gone) and test.earlier is not None:
        gone = load_split(test.earlier, "test", in_memory=False)
        logits, _ = score_images(classifier, gone, name, context, test.gone)
        by_champion = np.concatenate([by_champion, known[logits.argmax(axis=1)]])
        opened = load_classifier(candidate.release, batch=WINDOW)
        logits, _ = score_images(opened, gone, "candidate", context, test.gone)
        by_candidate = np.concatenate([by_candidate, logits.argmax(axis=1)])
    return _Scored(own, by_champion, by_candidate)


def choose_frozen_test(
    dataset: DatasetArtifact,
    labels: Labels,
    champion_digest: str,
    config: ReleaseConfig,
    workdir: Path,
    renamed: Mapping[str, str],
) -> FrozenTest:
    """Return the images that both are judged on.

    Args:
        dataset: the candidate's.
        labels: int64 [images], of its test split.
        champion_digest: of the dataset that the champion was released with.
        config: whether these are the champion's test images or the candidate's.
        workdir: where the champion's dataset may be.
        renamed: old name -> new name of classes.
    """
    if champion_digest == dataset.digest:
        return use_current_test(labels)
    if config.test_images == "current":
        return use_current_test(
            labels,
            "release.test_images=current: the test split as it is now is what counts."
            f" {_OTHER_IMAGES}",
        )
    earlier = find_dataset(champion_digest, workdir)
    if earlier is None:
        return use_current_test(
            labels,
            f"The champion's dataset is not in {workdir}, so the test split as it is now is what"
            f" counts. {_OTHER_IMAGES}",
        )
    return freeze_test(dataset, earlier, renamed)


def _describe_new_images(candidate: Candidate, champion: Labels, test: FrozenTest) -> str:
    """Return the errors of both on the candidate's own test images that do not count.

    An empty text where all count.
    """
    new = np.setdiff1d(np.arange(len(candidate.labels)), test.own)
    if not len(new):
        return ""
    errors = [
        f"{np.mean(guesses[new] != candidate.labels[new]):.2%}"
        for guesses in (candidate.guesses, champion)
    ]
    return (
        f"On these {len(new):,}, as they are labeled now, the candidate's error is {errors[0]} and"
        f" the champion's {errors[1]}."
    )


def _check_lost_classes(
    champion_names: Sequence[str], known: Integers, renamed: Mapping[str, str]
) -> tuple[GateCheck, ...]:
    """Return the check that fails where the candidate lacks a class of the champion.

    A class that the settings remove by name is not missing.
    """
    removed = {name for name, now in renamed.items() if not now}
    missing = [
        name
        for name, index in zip(champion_names, known, strict=True)
        if index < 0 and name not in removed
    ]
    if not missing:
        return ()
    examples = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    check = GateCheck(
        name="classes",
        passed=False,
        measured=f"{len(missing)} missing",
        required="those of the champion",
        text=(
            f"The champion knows {len(missing)} classes that the candidate does not: {examples}."
            " Another task needs a name of its own: --set release.name=NAME."
        ),
    )
    return (check,)
