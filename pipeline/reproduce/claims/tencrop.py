"""Claim: the mean of ten crops is better than the central one (section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import DatasetArtifact
from pipeline.config.settings import Config
from pipeline.engine.stage import Context
from pipeline.reproduce.arms import Arm, baseline, digest_of_files, split_of, wrong_answers
from pipeline.reproduce.claims.ablation import image_deviation
from pipeline.reproduce.lab import Experiment, Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion, Figure, Row
from pipeline.reproduce.verdict import Question, find

_ERROR = Question(
    what="test error by the central crop less that by ten",
    unit="points",
    published=1.55,
    source=(
        "2012's diaries, the network of 2010: 39.02 and 37.47 % (paper, section 4.1: 39.0 and 37.5)"
    ),
    least=0.0,
)


def arms(config: Config) -> tuple[Arm, ...]:
    """Return the network as it is."""
    return (baseline(config),)


def by_ten(
    _spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context, trained: Path
) -> Measurement:
    """Score a trained network by the mean of ten crops."""
    import numpy as np

    from pipeline.model.weights import load_model

    wrong = wrong_answers(
        load_model(trained / Measurement.MODEL_FILE),
        split_of(dataset.directory, "test"),
        view="ten",
    )
    np.save(context.directory / Measurement.WRONG_FILE, wrong)
    numbers, files = {"test_top1_error": float(wrong.mean())}, (Measurement.WRONG_FILE,)
    context.run.log_metrics(numbers)
    digest = digest_of_files(context.directory, files)
    return Measurement(
        directory=context.directory, name="ten crops", numbers=numbers, files=files, sha256=digest
    )


def conclude(lab: Lab, measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare both views of the same networks."""
    from pipeline.reports.claim_figures import draw_arms

    center = measured["baseline"]
    ten = [
        lab.look(f"ten-crops-seed{seed}", {"view": "ten"}, by_ten, made)
        for seed, made in enumerate(center)
    ]
    gains = [
        100 * (one.numbers["test_top1_error"] - other.numbers["test_top1_error"])
        for one, other in zip(center, ten, strict=True)
    ]
    images = image_deviation([one.wrong() for one in center], [other.wrong() for other in ten])
    rows = tuple(
        Row(
            arm=label,
            values={"test_top1_error": tuple(one.numbers["test_top1_error"] for one in made)},
        )
        for label, made in (("central crop", center), ("mean of ten crops", ten))
    )
    draw_arms(rows, "test_top1_error", lab.folder / "views.png", xlabel="test error, %")
    figure = Figure(
        file="views.png",
        caption=(
            "Test error of the same networks by the central crop and by the mean of ten, a dot a"
            " seed."
        ),
    )
    return Conclusion((find(_ERROR, gains, image_deviation=images),), rows, (figure,))


EXPERIMENT = Experiment(
    "tencrop",
    "Ten crops are better than one",
    "Section 4.1: the mean of the network's answers to five crops and their mirror images lowers"
    " the error of the central crop alone, from 39.0 to 37.5 %. Here: the same trained networks,"
    " asked both ways about the same test images.",
    arms,
    conclude,
)
