"""Measure the signals: the data as they are now, compared with the champion and its data.

Images are opened where a trigger needs it: some thousand at most, in one pass over the shards. A
champion that was released with the same data is compared without opening it.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import DatasetArtifact
from pipeline.config.retrain import RetrainConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.release.frozen_test import find_dataset
from pipeline.retrain.drift import measure_drift
from pipeline.retrain.image_measurements import (
    Progress,
    count_champion_errors,
    drop_constant_scalars,
    measure_images,
    select_measurements,
)
from pipeline.retrain.image_selection import (
    DatasetImages,
    ImageSelection,
    read_images,
    select_images,
)
from pipeline.retrain.signals import ErrorCount, ImageIndex, Signals, compare_datasets
from pipeline.tracking.registry import Version

if TYPE_CHECKING:
    from pipeline.release.classify import Classifier

_DAY_SECONDS = 86_400


def measure_signals(
    dataset: DatasetArtifact,
    champion: Version | None,
    config: RetrainConfig,
    tracking: TrackingConfig,
    workdir: Path,
    progress: Progress,
) -> tuple[Signals, tuple[str, ...]]:
    """Return the signals, and notes on what could not be measured and why.

    Args:
        dataset: the data as they are now.
        champion: the version that serves; None for none.
        config: which triggers are used.
        tracking: the store that holds the champion's files.
        workdir: the work directory, where the champion's dataset is searched.
        progress: called with the images done, all images, their unit and a description.

    Raises:
        CheckpointError: the champion's files are not those that were released.
        DatasetError: a dataset's shards cannot be read.
    """
    if champion is None:
        return Signals(has_champion=False), ("There is no champion yet: nothing was compared.",)
    known = Signals(
        has_champion=True, champion_age_days=(time.time() - champion.created) / _DAY_SECONDS
    )
    digest = champion.tags.get("dataset_digest", "")
    earlier = dataset if digest == dataset.digest else find_dataset(digest, workdir)
    if earlier is None:
        return replace(known, test_errors=read_test_errors(champion)), (
            _describe_missing_data(champion, digest, workdir),
        )
    names = tuple(dict.fromkeys((*earlier.class_names, *dataset.class_names)))
    old, new = (read_images(side, names) for side in (earlier, dataset))
    known = replace(
        known,
        changes=compare_datasets(
            ImageIndex(old.sha256, old.labels), ImageIndex(new.sha256, new.labels), len(names)
        ),
    )
    if digest == dataset.digest:
        return known, (
            "The data are those that the champion was released with: nothing else was measured.",
        )
    known, (selection, notes) = (
        replace(known, test_errors=read_test_errors(champion)),
        select_images(old, new, config),
    )
    if not len(selection.opened):
        return known, notes
    from pipeline.release.classify import load_classifier
    from pipeline.release.package import open_version

    classifier = load_classifier(open_version(champion, tracking, workdir))
    return _measure_opened(
        known, selection, old, new, classifier, config.significance_level, progress
    ), notes


def _measure_opened(
    known: Signals,
    selection: ImageSelection,
    old: DatasetImages,
    new: DatasetImages,
    classifier: Classifier,
    significance_level: float,
    progress: Progress,
) -> Signals:
    """Open the selected images, and add what is measured to the known signals."""
    seen = measure_images(classifier, new, selection.opened, "images of the new data", progress)
    if len(selection.scored):
        known = replace(
            known, new_errors=count_champion_errors(classifier, new, seen, selection.scored)
        )
    if not len(selection.new):
        return known
    reference = measure_images(
        classifier, old, selection.reference, "images of the champion's data", progress
    )
    both = (
        select_measurements(new, seen, selection.new),
        select_measurements(old, reference, selection.reference),
    )
    return replace(
        known,
        drift=measure_drift(
            *drop_constant_scalars(*both),
            significance_level=significance_level,
            seed=selection.seed,
        ),
    )


def read_test_errors(champion: Version) -> ErrorCount | None:
    """Return the test errors of a version as counted at its release; None without such tags."""
    with contextlib.suppress(KeyError, ValueError):
        images = int(champion.tags["images"])
        return ErrorCount(round(float(champion.tags["top1_error"]) * images), images)
    return None


def _describe_missing_data(champion: Version, digest: str, workdir: Path) -> str:
    return (
        f"The dataset of version {champion.number} of {champion.name}"
        f" ({digest[:12] or 'no digest'}) is not in {workdir}: changes, drift and the"
        " champion's error on new images are unknown."
    )
