"""What the stages of a retraining record: a review that says yes, a candidate that is promoted."""

from pipeline.artifacts import Decision, GateCheck, Review


def make_review(**changes):
    known = {
        "retrain": True,
        "text": "Retrain. 30 changed.",
        "brief": "30 changed",
        "triggers": ("new_data",),
        "reasons": {"new_data": "30 changed."},
    }
    known |= {"numbers": {"new_data.images": 30.0}, "notes": (), "champion": "2"}
    return Review(
        **known | {"champion_dataset_digest": "a" * 64, "dataset_digest": "b" * 64} | changes
    )


def make_decision(outcome="promoted", **changes):
    check = GateCheck(
        name="latency", passed=True, measured="1 ms", required="at most 2 ms", text="It is quick."
    )
    known = {
        "outcome": outcome,
        "reason": "all 10 checks passed",
        "name": "alexnet",
        "version": "3",
        "champion": "2",
        "policy": "superior",
    }
    known |= {
        "checks": (check,),
        "images": 200,
        "top1_error": 0.05,
        "champion_top1_error": 0.06,
        "advice": "",
        "test_images_note": "The old ones.",
    }
    return Decision(
        **known | {"model_sha256": "m", "release_sha256": "", "dataset_digest": "b" * 64} | changes
    )
