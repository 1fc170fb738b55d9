"""The definition of a claim: the size of its experiments as text."""

from __future__ import annotations

from pipeline.reproduce.catalog import select_experiments
from tests.claim_settings import reproduction_settings

CONFIG = reproduction_settings().config


def test_a_claim_says_how_large_its_arms_are():
    gradients, lrn = select_experiments(["lrn", "gradients"])
    assert (
        lrn.describe_size(CONFIG)
        == "small at width 0.5, 28 x 28 pixels, 10,000 training images, 10 epochs"
    )
    assert "4, 8, 12 and 16 layers" in gradients.describe_size(CONFIG)
