"""8-bit integers are measured by their errors on labeled images."""

import numpy as np
import pytest

from pipeline.errors import ConfigError, GateError
from pipeline.evaluate.intervals import compute_wilson_interval
from pipeline.export import integer_cost
from pipeline.export.export import export_release
from tests.export.networks import CASES, IMAGES, network, released


def test_integers_are_judged_by_their_errors(release, labeled, tmp_path, capfd):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    output, told = tmp_path / "int8", []
    exported = export_release(
        release,
        "litert",
        output,
        IMAGES,
        int8=True,
        calibration=labeled,
        test=iter(labeled),
        max_error_rise=1,
        progress=told.append,
    )
    assert capfd.readouterr() == ("", "")
    cost = exported.cost
    assert (cost.images, cost.float_top1_error) == (30, pytest.approx(2 / 30))
    assert cost.float_interval == compute_wilson_interval(2, 30)
    assert cost.rise == pytest.approx(cost.int8_top1_error - 2 / 30)
    assert cost.rise_interval[0] < cost.rise < cost.rise_interval[1]
    assert 0 < exported.bytes < 0.5 * cost.float_bytes
    assert min(cost.float_seconds, exported.seconds) > 0
    assert exported.checks[0].difference > 1e-3  # integers, indeed
    opened = interpreter.Interpreter(str(exported.file))
    assert opened.get_input_details()[0]["dtype"] == np.uint8
    kinds = [detail["dtype"] for detail in opened.get_tensor_details()]
    assert kinds.count(np.int8) > 2 * kinds.count(np.float32)
    assert "a rise of" in exported.headline()
    assert "measuring the cost of int8: 30 test images" in told


def test_what_int8_costs_is_a_paired_count():
    wrong, int8_wrong = np.zeros(1000, bool), np.zeros(1000, bool)
    wrong[:30], int8_wrong[20:70] = True, True
    cost = integer_cost.compute_cost(wrong, int8_wrong, 10, 0.1)
    assert (cost.float_top1_error, cost.int8_top1_error, cost.rise) == (
        0.03,
        0.05,
        pytest.approx(0.02),
    )
    # 40 and 20 images that one alone gets wrong: 0.02 +- 1.96 sqrt(60 / 1000 - 0.02^2) /
    # sqrt(1000), to the precision of that formula.
    assert cost.rise_interval == pytest.approx((0.02 - 0.01513, 0.02 + 0.01513), abs=1e-3)


def test_integers_that_err_more_are_refused(release, labeled, tmp_path, fake):
    fake()  # reads the classes backwards
    settings = {"int8": True, "calibration": labeled, "test": labeled}
    with pytest.raises(
        GateError,
        match=(
            r"cost too much: .* in place of 6\.7 % on 30 .* Expected a rise of at most"
            r" \+5\.0 points"
        ),
    ):
        export_release(release, "litert", tmp_path / "out", IMAGES, **settings)
    assert list(tmp_path.iterdir()) == []
    exported = export_release(
        release, "litert", tmp_path / "out", IMAGES, **settings, max_error_rise=1
    )
    assert "rise of" in exported.page.read_text(encoding="utf-8")


def test_integers_need_images(release, tmp_path, fake):
    fake()
    with pytest.raises(ConfigError, match="8-bit integers need calibration images"):
        export_release(
            release, "litert", tmp_path / "out", IMAGES, int8=True, test=[(IMAGES[0], 0)]
        )
    with pytest.raises(ConfigError, match="8-bit integers need test images"):
        export_release(
            release, "litert", tmp_path / "out", IMAGES, int8=True, calibration=[(IMAGES[0], 0)]
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_network_in_integers(case, tmp_path):
    pytest.importorskip("ai_edge_litert")
    release = released(network(case), tmp_path / "model")
    labeled = [(encoded, 0) for encoded in IMAGES]
    exported = export_release(
        release,
        "litert",
        tmp_path / "out",
        IMAGES,
        int8=True,
        calibration=labeled,
        test=labeled,
        max_error_rise=1,
    )
    assert 0 < exported.checks[0].difference < 1
