"""The claim about vanishing gradients: its networks."""

from __future__ import annotations

from pipeline.reproduce.claims import gradients
from tests.claim_settings import reproduction_settings

CONFIG = reproduction_settings().config


def test_plain_networks_are_of_four_depths_and_three_activations():
    specs = [arm.make_spec(CONFIG, 0) for arm in gradients.list_plain_arms(CONFIG)]
    assert {(spec["model"]["alexnet"]["activation"], spec["depth"]) for spec in specs} == {
        (activation, deep) for activation in ("relu", "tanh", "sigmoid") for deep in (4, 8, 12, 16)
    }
