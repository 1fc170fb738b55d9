"""The errors of a training that failed name the cause and what to type."""

import math

import pytest

from pipeline.reports.training_advice import (
    advise_on_divergence,
    make_hung_error,
    make_memory_error,
    make_unfitting_error,
)

DIVERGED = {
    "steps": 7,
    "epochs": 1,
    "learning_rate": 0.01,
    "precision": "float32",
    "weights_finite": True,
    "largest_update": math.nan,
}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"steps": 1}, "at the first step, before any weight had changed"),
        ({"precision": "float16"}, "has left float16's range"),
        ({"precision": "float16", "weights_finite": False}, "0.01 is probably too high: try"),
        ({}, "--set train.learning_rate=0.001"),
        ({"largest_update": 0.5}, "asked for steps of 50% of its weights after epoch 1"),
    ],
)
def test_the_likely_cause_of_a_loss_that_is_not_finite(facts, expected):
    assert expected in advise_on_divergence(**DIVERGED | facts)


def test_what_hangs_is_named():
    waiting = {"watchdog_seconds": 600, "stage_seconds": 15}
    error = make_hung_error(input_stage="reading the shards", workers=1, **waiting)
    assert str(error).startswith(
        "No step ended within 600 s, which is train.watchdog_seconds, and what hangs is reading the"
        " shards. Expected an answer within 15 s. Received none."
    )
    error = make_hung_error(input_stage="", workers=2, **waiting)
    assert "the step itself: its device or another worker. Expected a step to end." in str(error)


def test_a_step_that_does_not_fit_names_settings_that_do():
    numbers = {"images": 96, "fitting_images": 32, "steps": 3, "batch_size": 32}
    for automatic, said in ((False, "Type --auto-batch, which"), (True, "A micro-batch of 96")):
        text = str(make_memory_error(automatic=automatic, **numbers))
        assert said in text
        assert "train.gradient_accumulation_steps=3, or --set train.global_batch_size=32." in text
    assert "not even with one image at a time. Expected a smaller" in str(make_unfitting_error())
