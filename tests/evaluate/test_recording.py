import numpy as np

from pipeline.evaluate.findings import EvaluationFindings
from pipeline.evaluate.metrics import Tally, summarize_tally
from pipeline.evaluate.recording import list_center_metrics, list_details
from pipeline.evaluate.robustness import CorruptionResult


def make_findings(classes, view="center crop", **more):
    tally = Tally(classes, 0)
    tally.add_images(np.eye(classes, dtype=np.float32), np.arange(classes))
    names = [str(index) for index in range(classes)]
    summary = summarize_tally(tally)
    return EvaluationFindings("test", view, names, "tiny", summary, (), (), (), (), **more)


def test_many_classes_are_not_recorded_one_by_one():
    assert not [name for name in list_details(make_findings(101)) if "/" in name]
    assert [name for name in list_details(make_findings(100)) if "/" in name]


def test_what_is_measured_by_the_center_is_never_called_ten_crops():
    robustness = CorruptionResult(2, 0.0, {"noise": {1: 0.5}})
    findings = make_findings(2, "mean of ten crops", robustness=robustness)
    assert list_center_metrics(findings) == {"mean_corruption_error": 0.5}
    assert "mean_corruption_error" not in list_details(findings)
