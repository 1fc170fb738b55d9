"""The promotion stage."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import DatasetArtifact, Decision, EvaluationReport, TrainingResult
from pipeline.config.release import ReleaseConfig
from pipeline.engine.stage import Context, stage
from pipeline.tracking.registry import Registry


def _draw_promotion(record: Decision, folder: Path) -> None:
    from pipeline.reports.decision import draw_decision_pages

    draw_decision_pages(record, folder)


# The champion, its files and the registry may be others each time.
@stage(draw=_draw_promotion, always=True)
def promote(
    config: ReleaseConfig,
    dataset: DatasetArtifact,
    trained: TrainingResult,
    report: EvaluationReport,
    context: Context,
) -> Decision:
    """Release the model if it is as good as the champion."""
    from pipeline.release.promotion import decide_promotion

    registry = Registry(config.name, context.tracking, context.workdir)
    decision = decide_promotion(config, dataset, trained, report, registry, context)
    numbers = {
        "top1_error": decision.top1_error,
        "champion_top1_error": decision.champion_top1_error,
    }
    context.run.log_metrics(
        {f"release_{name}": value for name, value in numbers.items() if value is not None}
    )
    context.run.set_tags(
        {
            "decision": decision.outcome,
            "decision_reason": decision.reason,
            "version": decision.version,
        },
        summary=True,
    )
    return decision
