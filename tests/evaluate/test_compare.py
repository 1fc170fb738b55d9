import json

import numpy as np
import pytest
from scipy import stats

from pipeline.artifacts import EvaluationReport
from pipeline.errors import ConfigError, DatasetError
from pipeline.evaluate.compare import compare_reports, compute_mcnemar_p_value, write_comparison
from pipeline.evaluate.predictions import PredictionChunk, write_predictions
from pipeline.reports.comparison import describe_verdict, draw_comparison_page

NAMES = ("cat", "<script>alert(1)</script>", "émeu")


@pytest.fixture
def make_evaluation(tmp_path):
    """Return a function that makes the record of an evaluation with some images wrong."""

    def make(name, wrong, *, view="center crop", split="test", images="p", names=NAMES):
        folder = tmp_path / name
        folder.mkdir()
        labels = np.random.default_rng(0).integers(0, 3, len(wrong)).astype(np.int32)
        logits = np.random.default_rng(1).normal(0, 0.1, (len(wrong), 3)).astype(np.float32)
        logits[np.arange(len(wrong)), (labels + wrong) % 3] += 3
        light = np.zeros(len(wrong), np.float32)
        keys = tuple(f"{index}.png" for index in range(len(wrong)))
        digest = write_predictions(
            [PredictionChunk(keys, labels, logits, light, light)],
            3,
            folder / EvaluationReport.PREDICTIONS_FILE,
        )
        return EvaluationReport(
            directory=folder,
            split=split,
            view=view,
            images=len(wrong),
            top1_error=float(np.mean(wrong)),
            top5_error=0,
            loss=1,
            top1_error_interval=(0, 1),
            majority_error=0.6,
            calibration_error=0,
            temperature=1.2,
            class_names=names,
            model_sha256="a" * 64,
            dataset_digest="d" * 64,
            images_sha256=images * 64,
            predictions_sha256=digest,
        )

    return make


def some_wrong(count, images=1000, offset=0):
    wrong = np.zeros(images, int)
    wrong[offset : offset + count] = 1
    return wrong


def test_images_are_counted_by_who_is_wrong(make_evaluation):
    found = compare_reports(
        make_evaluation("one", some_wrong(100)), make_evaluation("two", some_wrong(60, offset=70))
    )
    assert (found.both_wrong, found.only_first_wrong, found.only_second_wrong) == (30, 70, 30)
    assert found.top1_error.difference == pytest.approx(-0.04)
    assert found.p_value == pytest.approx(stats.binomtest(70, 100).pvalue, abs=1e-12)
    assert len(found.disagreements) == 40
    labels = np.random.default_rng(0).integers(0, 3, 1000)
    recalls = [
        [1 - np.mean(wrong[labels == label]) for label in range(3)]
        for wrong in (some_wrong(100), some_wrong(60, offset=70))
    ]
    assert found.recall_changes == pytest.approx(np.subtract(*recalls[::-1]))


def test_mcnemar_equals_a_worked_example():
    # Two-sided exact binomial test of 1 against 8: 2 (C(9,0) + C(9,1)) / 2^9.
    assert compute_mcnemar_p_value(1, 8) == pytest.approx(2 * 10 / 512, abs=1e-12)
    assert compute_mcnemar_p_value(8, 1) == compute_mcnemar_p_value(1, 8)
    assert compute_mcnemar_p_value(0, 0) == 1.0
    assert compute_mcnemar_p_value(5, 5) == 1.0


def test_the_interval_is_that_of_a_paired_difference(make_evaluation):
    found = compare_reports(
        make_evaluation("one", some_wrong(100)), make_evaluation("two", some_wrong(60, offset=70))
    )
    change = some_wrong(60, offset=70) - some_wrong(100)
    reach = 1.96 * change.std() / np.sqrt(1000)
    low, high = found.top1_error.interval
    assert (low, high) == pytest.approx((-0.04 - reach, -0.04 + reach), abs=0.1 * reach)


def test_a_model_compared_with_itself_differs_in_nothing(make_evaluation):
    found = compare_reports(
        make_evaluation("one", some_wrong(100)), make_evaluation("two", some_wrong(100))
    )
    assert all(
        item.difference == item.interval[0] == item.interval[1] == 0 for item in found.measures
    )
    assert found.p_value == 1
    assert found.disagreements == ()
    assert describe_verdict(found.as_dict()).startswith("No clear difference")


def test_the_verdict_says_which_is_better(make_evaluation):
    one, two = make_evaluation("one", some_wrong(200)), make_evaluation("two", some_wrong(100))
    assert describe_verdict(compare_reports(one, two).as_dict()).startswith(
        "The second is better: wrong on 10.0 % against 20.0 % of 1,000 test images"
    )
    assert describe_verdict(compare_reports(two, one).as_dict()).startswith(
        "The second is worse: wrong on 20.0 %"
    )


def test_unlike_evaluations_are_refused(make_evaluation):
    one = make_evaluation("one", some_wrong(10))
    with pytest.raises(ConfigError, match=r"unlike views.*`center crop` and `mean of ten crops`"):
        compare_reports(one, make_evaluation("ten", some_wrong(10), view="mean of ten crops"))
    with pytest.raises(ConfigError, match="unlike splits"):
        compare_reports(one, make_evaluation("validation", some_wrong(10), split="validation"))
    with pytest.raises(
        DatasetError, match=r"not of the same images.*Received 1,000 images with other images"
    ):
        compare_reports(one, make_evaluation("others", some_wrong(10), images="q"))
    with pytest.raises(DatasetError, match="not of the same classes"):
        compare_reports(one, make_evaluation("renamed", some_wrong(10), names=("a", "b", "c")))
    gone = make_evaluation("gone", some_wrong(10))
    gone.predictions_path.unlink()
    with pytest.raises(DatasetError, match=r"cannot be read .*--rerun evaluate"):
        compare_reports(one, gone)


def test_the_page_and_its_numbers_are_written(make_evaluation, tmp_path):
    found = write_comparison(
        compare_reports(
            make_evaluation("one", some_wrong(100)), make_evaluation("two", some_wrong(60))
        ),
        tmp_path / "comparisons",
    )
    page = found.page.read_text(encoding="utf-8")
    assert "The second is better" in page
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    document = json.loads((found.page.parent / "comparison.json").read_text(encoding="utf-8"))
    assert document["only_first_wrong"] == 40
    assert document["verdict"] in page.replace("&#39;", "'")
    found.page.unlink()
    draw_comparison_page(found.page.parent)
    assert found.page.read_text(encoding="utf-8") == page
    assert document == json.loads(json.dumps(found.as_dict()))
