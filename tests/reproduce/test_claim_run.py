"""The work on a claim: what makes two experiments one."""

from __future__ import annotations

from pipeline.reproduce.arms import make_baseline_arm
from pipeline.reproduce.claim_run import hash_spec
from tests.claim_settings import reproduction_settings

CONFIG = reproduction_settings().config


def test_settings_that_change_nothing_are_no_reason_to_train_again():
    spec = make_baseline_arm(CONFIG).make_spec(CONFIG, 0)
    other = {**spec, "train": {**spec["train"], "checkpoint_seconds": 5.0, "watchdog_seconds": 1.0}}
    assert hash_spec(spec) == hash_spec(other)
    assert hash_spec(spec) != hash_spec({**spec, "train": {**spec["train"], "epochs": 3}})
