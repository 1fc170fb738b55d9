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
    from pipeline.retrain.triggers import Verdict


def _draw_pages(record: Review, folder: Path) -> None:
    from pipeline.reports.retraining import draw_review_pages

    draw_review_pages(record, folder)


@stage(draw=_draw_pages, always=True)  # the champion may be another one each time, and it ages
def review(config: RetrainConfig, dataset: DatasetArtifact, context: Context) -> Review:
    """Decide from the new images and the champion whether to train again, and why."""
    from pipeline.release.package import digest_settings
    from pipeline.retrain.signals import measure
    from pipeline.retrain.triggers import decide

    registry = Registry(context.config.release.name, context.tracking, context.workdir)
    champion = registry.read_champion()
    facts, notes = measure(
        dataset, champion, config, context.tracking, context.workdir, context.progress
    )
    verdict = decide(facts, config)
    if verdict.retrain and champion is not None and "always" not in config.triggers:
        verdict = _unless_tried(
            verdict, registry, champion, dataset.digest, digest_settings(context.config)
        )
    found = Review(
        directory=context.directory,
        retrain=verdict.retrain,
        text=verdict.text,
        brief=verdict.brief,
        triggers=tuple(reason.name for reason in verdict.reasons if reason.fired),
        reasons={reason.name: reason.text for reason in verdict.reasons},
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


def _unless_tried(
    verdict: Verdict, registry: Registry, champion: Version, dataset_digest: str, settings: str
) -> Verdict:
    """Keep the champion where the same images and settings gave a candidate before.

    The same bits would come out again.
    """
    from pipeline.retrain.triggers import Reason, Verdict

    for version in registry.list_versions():
        same = (
            version.tags.get("dataset_digest") == dataset_digest
            and version.tags.get(SETTINGS_TAG) == settings
        )
        if (
            same
            and version.number != champion.number
            and (version.gate in ("refused", "waiting") or version.withdrawn)
        ):
            became = (
                "was withdrawn"
                if version.withdrawn
                else "was refused"
                if version.gate == "refused"
                else "waits for approval"
            )
            text = (
                f"The same images and settings were tried: version {version.number} {became};"
                " other images or settings are another try."
            )
            others = tuple(dataclasses.replace(reason, fired=False) for reason in verdict.reasons)
            brief = f"the same was tried, and version {version.number} {became}"
            return Verdict(
                (Reason("tried", fired=False, numbers={}, text=text, brief=brief), *others)
            )
    return verdict
