"""The promotion of a candidate, from the trained file to the alias.

    examine_candidate   the files are packed, with golden images; the model is scored now, from its
                        saved file, on the frozen test images; a clean process serves the package
                        and must answer the golden images as the evaluation did
    judge_against       the champion is scored now as well, on the same images: is there evidence
                        that the candidate may replace it?
    commit_promotion    a version in the registry, with the gate's verdict on it; then the alias
                        moves, if the champion is still the one that the candidate was judged
                        against; else it is judged again

Whatever kills the process, the alias names a version that passed: the alias is written last.
"""

from __future__ import annotations

import json

from pipeline.artifacts import (
    DatasetArtifact,
    Decision,
    EvaluationReport,
    GateCheck,
    TrainingResult,
)
from pipeline.config.release import ReleaseConfig
from pipeline.engine.stage import Context
from pipeline.release.candidate import Candidate, examine_candidate
from pipeline.release.champion import judge_against
from pipeline.release.commit import (
    CommittedPromotion,
    GateVerdict,
    Offer,
    commit_promotion,
    open_if_intact,
)
from pipeline.release.package import digest_settings
from pipeline.tracking.known_runs import read_known_runs
from pipeline.tracking.registry import (
    MODEL_TAG,
    RELEASE_TAG,
    SCHEDULED_RUN_TAG,
    SETTINGS_TAG,
    Registry,
    Version,
)


def decide_promotion(
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
    opened = open_if_intact(champion, registry) if champion else None
    if champion is not None and opened is not None and opened.model_sha256 == trained.model_sha256:
        committed = CommittedPromotion(
            "unchanged",
            f"version {champion.number} of {registry.name} is this very model",
            champion.number,
            champion.number,
        )
        return _record_decision(config, dataset, trained, committed)
    if reason := _find_unfit_evaluation(dataset, trained, report):
        check = GateCheck(
            name="evaluation",
            passed=False,
            measured="",
            required="test split, center crop, this model",
            text=reason,
        )
        number = champion.number if champion else ""
        committed = CommittedPromotion("refused", reason, "", number, GateVerdict((check,)))
        return _record_decision(config, dataset, trained, committed)
    candidate = examine_candidate(dataset, trained, report, context)
    offer = Offer(
        candidate.release, _make_tags(candidate, report, context), _find_run(trained, context)
    )

    def judge(other: Version | None) -> GateVerdict:
        return judge_against(other, candidate, config, dataset, context)

    committed = commit_promotion(registry, offer, judge, config)
    return _record_decision(config, dataset, trained, committed, candidate)


def _find_unfit_evaluation(
    dataset: DatasetArtifact, trained: TrainingResult, report: EvaluationReport
) -> str:
    """Return why an evaluation is not evidence for a release, or an empty text."""
    if report.split != "test" or report.view != "center crop":
        return (
            f"it was evaluated on the {report.split} split by {report.view}, and is released by the"
            " test split and the center crop"
        )
    if report.model_sha256 != trained.model_sha256 or report.dataset_digest != dataset.digest:
        return "its evaluation is that of another model or of other images"
    return ""


def _record_decision(
    config: ReleaseConfig,
    dataset: DatasetArtifact,
    trained: TrainingResult,
    committed: CommittedPromotion,
    candidate: Candidate | None = None,
) -> Decision:
    verdict, top1_error = committed.verdict, committed.verdict.top1_error
    if top1_error is None and candidate is not None:
        top1_error = candidate.top1_error
    return Decision(
        outcome=committed.outcome,
        reason=committed.reason,
        name=config.name,
        version=committed.version,
        champion=committed.champion,
        policy=config.policy,
        checks=verdict.checks,
        images=verdict.images,
        top1_error=top1_error,
        champion_top1_error=verdict.champion_top1_error,
        advice=verdict.advice,
        test_images_note=verdict.test_images_note,
        model_sha256=trained.model_sha256,
        release_sha256=candidate.release.sha256() if candidate else "",
        dataset_digest=dataset.digest,
    )


def _make_tags(candidate: Candidate, report: EvaluationReport, context: Context) -> dict[str, str]:
    """Return the tags that a version has from the start."""
    tags = {
        RELEASE_TAG: candidate.release.sha256(),
        MODEL_TAG: candidate.release.model_sha256,
        "dataset_digest": report.dataset_digest,
        "top1_error": f"{candidate.top1_error:.6f}",
        "images": str(len(candidate.labels)),
        "temperature": f"{report.temperature:.6g}",
        "run_key": context.run.key,
        SETTINGS_TAG: digest_settings(context.config),
    }
    if SCHEDULED_RUN_TAG in context.tags:
        tags[SCHEDULED_RUN_TAG] = context.tags[SCHEDULED_RUN_TAG]
    return tags


def _find_run(trained: TrainingResult, context: Context) -> str | None:
    """Return the MLflow run that trained the model, if it was recorded."""
    try:
        account = json.loads((trained.directory / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read_known_runs(context.workdir).get(account.get("run_key", ""), {}).get("run_id")
