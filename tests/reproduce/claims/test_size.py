"""The claim about the number of images: equal steps."""

from __future__ import annotations

from pipeline.reproduce.claims import size
from tests.claim_settings import reproduction_settings

CONFIG = reproduction_settings().config


def test_every_size_has_as_many_steps():
    steps = {
        arm.make_spec(CONFIG, 0)["train"]["epochs"] * arm.images
        for arm in size.list_size_arms(CONFIG)
    }
    assert steps == {CONFIG.train.epochs * CONFIG.reproduce.images}
