"""The evaluation stage, and its twin for a model that this pipeline did not train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.artifacts import DatasetArtifact, EvaluationReport, TrainingResult
from pipeline.config.evaluate import EvaluateConfig
from pipeline.engine.stage import Context, stage
from pipeline.errors import DatasetError
from pipeline.evaluate.external_model import Given, given_model


@stage()
def evaluate(
    config: EvaluateConfig, dataset: DatasetArtifact, trained: TrainingResult, context: Context
) -> EvaluationReport:
    """Score the saved model, or the one that --model names, on images it has never seen."""
    require_same_classes(dataset.class_names, trained.class_names)
    from pipeline.evaluate.judge import judge

    given = Given(
        trained.verified_model_path(), trained.model_sha256, trained.class_names, trained.short_side
    )
    return judge(config, dataset, given, context)


def _stamp(config: EvaluateConfig) -> Mapping[str, str]:
    return {"model": given_model(Path(config.model)).sha256}


@stage(source=_stamp)
def evaluate_model(
    config: EvaluateConfig, dataset: DatasetArtifact, context: Context
) -> EvaluationReport:
    """Score a given model on images."""
    given = given_model(Path(config.model))
    if given.class_names is None:
        context.say(
            f"{given.path.name} names no classes: its logits are taken to be in the order of the"
            " dataset's"
        )
    else:
        require_same_classes(dataset.class_names, given.class_names)
    if given.short_side not in (0, dataset.short_side):
        raise DatasetError(
            "The dataset is prepared at another scale than the model was trained at. Expected"
            f" images with a shorter side of {given.short_side} pixels. Received"
            f" {dataset.short_side}. Type --set data.short_side={given.short_side}, and ingest"
            " before evaluate."
        )
    from pipeline.evaluate.judge import judge

    return judge(config, dataset, given, context)


def require_same_classes(dataset: Sequence[str], trained: Sequence[str]) -> None:
    """Raise a DatasetError unless the model's answers are the dataset's classes, in the same order."""
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
        f"The model was trained for other classes than the dataset has. {difference}. Train for"
        " this dataset: `alexnet train`."
    )
