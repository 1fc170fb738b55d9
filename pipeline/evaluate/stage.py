"""The evaluation stage."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pipeline.artifacts import DatasetArtifact, EvaluationReport, TrainingResult
from pipeline.config import EvaluateConfig
from pipeline.engine import Context, stage
from pipeline.errors import DatasetError

if TYPE_CHECKING:
    from pipeline.evaluate.metrics import Summary

_VIEWS = {"center": "center crop", "ten": "mean of ten crops"}
_RECORDED_CLASSES = 100  # thousands of single points make a tracking page useless; metrics.json has every class


@stage()
def evaluate(config: EvaluateConfig, dataset: DatasetArtifact, trained: TrainingResult, context: Context) -> EvaluationReport:
    """Score the saved model on pictures it has never seen."""
    _require_same_classes(dataset.class_names, trained.class_names)
    from pipeline.data.loader import evaluation_batches, load_split
    from pipeline.evaluate.metrics import summarise
    from pipeline.evaluate.report import write_metrics, write_report
    from pipeline.evaluate.scoring import first_kernel, pictures_at, require_counts, save_predictions, score
    from pipeline.model.weights import load_model

    total = dataset.images(config.split)
    crops = 10 if config.view == "ten" else 1
    batch_size = max(1, min(config.global_batch_size // crops, total))
    images = load_split(dataset, config.split)
    model = load_model(trained.verified_model_path())

    def batches(view: Literal["center", "ten"]) -> Any:
        return evaluation_batches(images, image_size=trained.image_size, batch_size=batch_size, view=view)

    view = _VIEWS[config.view]
    predictions = score(model, batches(config.view), images.keys, batch_size=batch_size, progress=_progress(context, total))
    require_counts(predictions, dataset.class_counts[config.split], config.split)
    save_predictions(predictions, context.directory / "predictions.npz")
    summary = summarise(predictions.logits, predictions.labels, dataset.class_counts["train"])
    write_metrics(context.report_directory, summary, dataset.class_names, config.split)
    write_report(
        context.report_directory,
        summary=summary,
        predictions=predictions,
        names=dataset.class_names,
        split=config.split,
        look=lambda positions: pictures_at(batches("center"), positions),
        kernel=first_kernel(model),
        footer=f"Model {trained.model_sha256[:12]}, dataset {dataset.name} {dataset.digest[:12]}, {view}, every picture once.",
    )
    headline = {name: getattr(summary, name) for name in ("loss", "top1_error", "top5_error")}
    context.run.metrics(_named(config.split, headline), summary=True)
    context.run.metrics(_named(config.split, details(summary, dataset.class_names)))
    return EvaluationReport(
        directory=context.directory,
        split=config.split,
        view=view,
        images=summary.images,
        **headline,
        top1_error_interval=summary.top1_error_interval,
        majority_error=summary.majority_error,
        predictions_sha256=predictions.sha256(),
    )


def details(summary: Summary, names: Sequence[str]) -> dict[str, float]:
    """Return the averages, and precision, recall and F1 of each class of not too many, under names that a tracking store takes.

    A class is `f1/003_sneaker`: numbered, since names may be long, strange or alike once strange letters are left out.
    """
    values = {"balanced_accuracy": summary.balanced_accuracy, "majority_error": summary.majority_error}
    values |= {"top1_error_low": summary.top1_error_interval[0], "top1_error_high": summary.top1_error_interval[1]}
    for measure in ("precision", "recall", "f1"):
        values |= {f"macro_{measure}": getattr(summary.macro, measure), f"weighted_{measure}": getattr(summary.weighted, measure)}
        if len(names) <= _RECORDED_CLASSES:
            scores = getattr(summary.by_class, measure)
            values |= {f"{measure}/{index:03}_{_plain(name)}": float(scores[index]) for index, name in enumerate(names)}
    return values


def _progress(context: Context, total: int) -> Callable[[int, int], None]:
    """Return what tells a person how many pictures are done and how many of them went wrong."""
    return lambda done, wrong: context.progress(done, total, "images", f"top-1 error {wrong / done:.1%}")


def _named(split: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{split}_{name}": value for name, value in values.items()}


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name)[:40].strip("_")


def _require_same_classes(dataset: Sequence[str], trained: Sequence[str]) -> None:
    """Raise a DatasetError unless the model's answers are the dataset's classes, in the same order."""
    if tuple(dataset) == tuple(trained):
        return
    if len(dataset) != len(trained):
        difference = f"Expected {len(trained)} classes. Received {len(dataset)}"
    else:
        index = next(i for i, (one, other) in enumerate(zip(dataset, trained, strict=True)) if one != other)
        difference = f"Expected class {index} to be {trained[index]!r}. Received {dataset[index]!r}"
    raise DatasetError(
        f"The model was trained for other classes than the dataset has. {difference}. Train for this dataset: `alexnet train`."
    )
