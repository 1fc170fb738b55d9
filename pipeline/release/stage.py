"""The promotion stage."""

from __future__ import annotations

from pipeline.artifacts import DatasetArtifact, Decision, EvaluationReport, TrainingResult
from pipeline.config.release import ReleaseConfig
from pipeline.engine.stage import Context, stage
from pipeline.tracking.registry import Registry


@stage(always=True)  # the champion, its files and the registry may be others each time
def promote(
    config: ReleaseConfig,
    dataset: DatasetArtifact,
    trained: TrainingResult,
    report: EvaluationReport,
    context: Context,
) -> Decision:
    """Judge the trained model against the champion, and let it take the champion's place if it passes."""
    from pipeline.release.promotion import decide
    from pipeline.reports.decision import write_decision

    registry = Registry(config.name, context.tracking, context.workdir)
    decision = decide(config, dataset, trained, report, registry, context)
    write_decision(decision, context.report_directory)
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
