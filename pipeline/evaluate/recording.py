"""Recording of an evaluation's numbers in its tracking run."""

from __future__ import annotations

import re

from pipeline.engine.stage import Context
from pipeline.evaluate.findings import EvaluationFindings

_HEADLINES = ("loss", "top1_error", "top5_error")
# Thousands of single points make a tracking page useless; metrics.json has every class.
_MAX_RECORDED_CLASSES = 100


def record_findings(
    context: Context, findings: EvaluationFindings, view: str, model_sha256: str
) -> None:
    """Record the numbers; those of ten crops under names of their own.

    So no table of runs compares unlike views.
    """
    prefix = findings.split if view == "center" else f"{findings.split}_ten_crops"
    summary = findings.summary
    headline = {name: summary.values[name] for name in _HEADLINES}
    tags = {
        "view": findings.view,
        "temperature": f"{summary.temperature:.6g}",
        "model_sha256": model_sha256,
    }
    context.run.set_tags(tags, summary=True)
    context.run.log_metrics(
        {f"{prefix}_{name}": value for name, value in headline.items()}, summary=True
    )
    context.run.log_metrics(
        {f"{prefix}_{name}": value for name, value in list_details(findings).items()}
    )
    context.run.log_metrics(
        {f"{findings.split}_{name}": value for name, value in list_center_metrics(findings).items()}
    )


def list_details(findings: EvaluationFindings) -> dict[str, float]:
    """Return the other numbers that are recorded, under names that a tracking store takes.

    With not too many classes that is also precision, recall and F1 of each. A class is
    `f1/003_sneaker`: numbered, since names may be long, strange or alike once strange letters are
    left out.
    """
    summary = findings.summary
    found = {name: value for name, value in summary.values.items() if name not in _HEADLINES}
    found |= {"majority_error": summary.majority_error}
    found |= {
        "top1_error_low": summary.top1_error_interval[0],
        "top1_error_high": summary.top1_error_interval[1],
    }
    if len(findings.class_names) <= _MAX_RECORDED_CLASSES:
        for measure in ("precision", "recall", "f1"):
            scores = getattr(summary.by_class, measure)
            found |= {
                f"{measure}/{index:03}_{_simplify_name(name)}": float(scores[index])
                for index, name in enumerate(findings.class_names)
            }
    return found


def list_center_metrics(findings: EvaluationFindings) -> dict[str, float]:
    """Return the numbers of the center crop, whatever the view: corrupted images, and speed."""
    found = (
        {}
        if findings.robustness is None
        else {"mean_corruption_error": findings.robustness.mean.error}
    )
    for batch in findings.speed.batches if findings.speed else ():
        found[f"latency_p95_seconds_batch_{batch.batch}"] = batch.p95_seconds
        found[f"images_per_second_batch_{batch.batch}"] = batch.images_per_second
    return found


def _simplify_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name)[:40].strip("_")
