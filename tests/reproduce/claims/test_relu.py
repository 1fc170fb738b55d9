"""The claim about activations: arms that differ in the activation alone, and bounds."""

from __future__ import annotations

from pipeline.reports.claim_records import ClaimQuestion
from pipeline.reproduce.claims import relu
from tests.claim_settings import reproduction_settings

CONFIG = reproduction_settings().config

QUESTION = ClaimQuestion(
    quantity="an effect", unit="points", published=None, source="nowhere", null_effect=0.0
)


def test_the_arms_differ_in_the_activation_alone_and_nothing_regularizes(find_differences):
    first, *others = (arm.make_spec(CONFIG, 0) for arm in relu.list_activation_arms(CONFIG))
    assert all(find_differences(first, other) == {"model.alexnet.activation"} for other in others)
    train = first["train"]
    assert (
        train["weight_decay"],
        train["crop"],
        train["flip"],
        train["mixup"],
        train["label_smoothing"],
    ) == (0, "center", False, 0, 0)
    assert first["goal"] == 0.25


def test_a_ratio_is_a_bound_where_one_arm_does_not_arrive():
    arrived, late = [(10.0, True)] * 3, [(70.0, False), (65.0, True), (72.0, False)]
    assert relu.judge_time_ratio(
        QUESTION.model_copy(update={"unit": "times", "null_effect": 2.0}), late, arrived
    ).is_lower_bound
    refuted = relu.judge_time_ratio(
        QUESTION.model_copy(update={"unit": "times", "null_effect": 2.0, "published": 6.0}),
        arrived,
        late,
    )
    assert (refuted.is_upper_bound, refuted.verdict) == (True, "not reproduced")
    assert relu.judge_time_ratio(QUESTION, late, late).verdict == "not measured"


def test_the_claim_is_not_measured_on_images_that_are_no_cifar10():
    assert relu.list_activation_arms(reproduction_settings("paper").config) == ()
