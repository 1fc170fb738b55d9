"""The evaluation stage, and its twin for a model that this pipeline did not train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.artifacts import DatasetArtifact, EvaluationReport, TrainingResult
from pipeline.config.evaluate import EvaluateConfig
from pipeline.engine.stage import Context, stage
from pipeline.errors import DatasetError
from pipeline.evaluate.external_model import ExternalModel, find_external_model


def _draw_evaluation(record: EvaluationReport, folder: Path) -> None:
    from pipeline.reports.evaluation.page import draw_evaluation_pages

    draw_evaluation_pages(record, folder)


# It sends numbers to the run and changes none.
_WITHOUT_EFFECT = ["pipeline.evaluate.recording"]


@stage(draw=_draw_evaluation, without_effect=_WITHOUT_EFFECT)
def evaluate(
    config: EvaluateConfig, dataset: DatasetArtifact, trained: TrainingResult, context: Context
) -> EvaluationReport:
    """Score a saved model on images that it has never seen."""
    require_same_classes(dataset.class_names, trained.class_names)
    from pipeline.evaluate.assessment import assess_model

    model = ExternalModel(
        trained.verified_model_path(),
        trained.model_sha256,
        trained.class_names,
        trained.short_side,
        trained.fit,
    )
    return assess_model(config, dataset, model, context)


def _hash_external_model(config: EvaluateConfig) -> Mapping[str, str]:
    return {"model": find_external_model(Path(config.model)).sha256}


@stage(source=_hash_external_model, draw=_draw_evaluation, without_effect=_WITHOUT_EFFECT)
def evaluate_model(
    config: EvaluateConfig, dataset: DatasetArtifact, context: Context
) -> EvaluationReport:
    """Score an external model on images."""
    model = find_external_model(Path(config.model))
    if model.class_names is None:
        context.notify(
            f"{model.path.name} has no class names: its logits are assumed to be in the order of"
            " the dataset's classes"
        )
    else:
        require_same_classes(dataset.class_names, model.class_names)
    if model.short_side not in (0, dataset.short_side):
        raise DatasetError(
            "The dataset is prepared at another scale than the model was trained at",
            expected=f"images with a shorter side of {model.short_side} pixels",
            received=str(dataset.short_side),
            hint=f"Type --set data.short_side={model.short_side}, and ingest before evaluate",
        )
    if model.fit not in ("", dataset.fit):
        raise DatasetError(
            "The dataset's images become squares in another way than the model's did",
            expected=f"fit {model.fit}",
            received=dataset.fit,
            hint=f"Type --set data.fit={model.fit}, and ingest before evaluate",
        )
    from pipeline.evaluate.assessment import assess_model

    return assess_model(config, dataset, model, context)


def require_same_classes(dataset: Sequence[str], trained: Sequence[str]) -> None:
    """Raise a DatasetError unless the model has the dataset's classes, in the same order."""
    if tuple(dataset) == tuple(trained):
        return
    if len(dataset) != len(trained):
        difference = f"Expected {len(trained)} classes. Received {len(dataset)}"
    else:
        index = next(
            i for i, (one, other) in enumerate(zip(dataset, trained, strict=True)) if one != other
        )
        difference = f"Expected class {index} to be {trained[index]!r}. Received {dataset[index]!r}"
    raise DatasetError(
        f"The model was trained for other classes than the dataset has. {difference}",
        hint="Train for this dataset: `alexnet train`",
    )
