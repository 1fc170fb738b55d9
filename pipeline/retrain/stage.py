"""The stage `review`: compare the data with the champion's, and decide whether to train again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import DatasetArtifact, Review
from pipeline.config.retrain import RetrainConfig
from pipeline.engine.stage import Context, stage
from pipeline.tracking.registry import SETTINGS_TAG, Registry, Version

if TYPE_CHECKING:
    from pipeline.retrain.triggers import RetrainVerdict


def _draw_pages(record: Review, folder: Path) -> None:
    from pipeline.reports.retraining import draw_review_pages

    draw_review_pages(record, folder)


@stage(draw=_draw_pages, always=True)  # the champion may be another one each time, and it ages
def review(config: RetrainConfig, dataset: DatasetArtifact, context: Context) -> Review:
    """Decide from the new images and the champion whether to train again, and why."""
    from pipeline.release.package import digest_settings
    from pipeline.retrain.measurement import measure_signals
    from pipeline.retrain.triggers import decide_retraining

    registry = Registry(context.config.release.name, context.tracking, context.workdir)
    champion = registry.read_champion()
    signals, notes = measure_signals(
        dataset, champion, config, context.tracking, context.workdir, context.progress
    )
    verdict = decide_retraining(signals, config)
    if verdict.retrain and champion is not None and "always" not in config.triggers:
        settings = digest_settings(context.config)
        verdict = _keep_if_tried(verdict, registry, champion, dataset.digest, settings)
    found = Review(
        directory=context.directory,
        retrain=verdict.retrain,
        text=verdict.text,
        brief=verdict.brief,
        triggers=tuple(result.name for result in verdict.results if result.fired),
        reasons={result.name: result.text for result in verdict.results},
        numbers=verdict.numbers,
        notes=notes,
        champion=champion.number if champion else "",
        champion_dataset_digest=champion.tags.get("dataset_digest", "") if champion else "",
        dataset_digest=dataset.digest,
    )
    context.run.log_metrics(found.numbers)
    context.run.set_tags(
        {
            "retrain": "yes" if found.retrain else "no",
            "trigger": ", ".join(found.triggers) or "none",
        },
        summary=True,
    )
    return found


def _keep_if_tried(
    verdict: RetrainVerdict,
    registry: Registry,
    champion: Version,
    dataset_digest: str,
    settings: str,
) -> RetrainVerdict:
    """Keep the champion where the same images and settings gave a rejected candidate before.

    The same bits would come out again.

    Args:
        verdict: of the triggers.
        registry: with the versions.
        champion: the version that serves.
        dataset_digest: of the data as they are now.
        settings: digest of the settings.
    """
    from pipeline.retrain.triggers import RetrainVerdict, TriggerResult

    for version in registry.list_versions():
        same = (
            version.tags.get("dataset_digest") == dataset_digest
            and version.tags.get(SETTINGS_TAG) == settings
        )
        rejected = version.gate in ("refused", "waiting") or version.withdrawn
        if same and rejected and version.number != champion.number:
            outcome = "was refused" if version.gate == "refused" else "waits for approval"
            if version.withdrawn:
                outcome = "was withdrawn"
            text = (
                f"The same images and settings were tried: version {version.number} {outcome};"
                " other images or settings are another try."
            )
            others = tuple(dataclasses.replace(result, fired=False) for result in verdict.results)
            brief = f"the same was tried, and version {version.number} {outcome}"
            tried = TriggerResult("tried", fired=False, numbers={}, text=text, brief=brief)
            return RetrainVerdict((tried, *others))
    return verdict
