"""The claim about features: what is judged."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.reports.store import write_report_data
from pipeline.reproduce.claims import features


def test_the_drop_of_the_error_is_judged_and_what_training_adds_to_it(tmp_path, make_run):
    rng = np.random.default_rng(0)
    wrong = rng.random((2, 2, 500)) < np.array([[0.5, 0.3], [0.55, 0.6]])[..., np.newaxis]
    np.save(tmp_path / "wrong.npy", wrong)
    errors = wrong.mean(axis=2)
    numbers = {
        f"{name}/{layer}": errors[i, j]
        for i, name in enumerate(("trained", "fresh"))
        for j, layer in enumerate(("conv1", "fc7"))
    }
    run = make_run(tmp_path, numbers, reproduce={"images": 3000})
    arrays = {
        "filters": rng.normal(size=(5, 5, 3, 8)),
        "conv1 maps": np.array([3, 5]),
        "conv1 patches": rng.integers(0, 255, (2, 4, 5, 5, 4), dtype=np.uint8),
    }
    write_report_data(tmp_path, {"layers": ["conv1"], "towers": 2}, arrays)
    concluded = features.conclude_features(run, {"baseline": [None, None, None]})
    added, drop = concluded.findings
    assert drop.effects == pytest.approx([100 * (errors[0, 0] - errors[0, 1])] * 3)
    assert added.effects == pytest.approx(
        [100 * (errors[0, 0] - errors[0, 1] - errors[1, 0] + errors[1, 1])] * 3
    )
    difference = wrong[0, 0] * 1.0 - wrong[0, 1]
    assert drop.image_std == pytest.approx(100 * difference.std(ddof=1) / np.sqrt(500))
    assert added.image_std > drop.image_std
    assert drop.verdict == added.verdict == "reproduced"
    assert [spec["training_images"] for _, spec in run.asked] == [
        3000
    ] * 3  # no more than the network was trained on
    assert [spec["features"] for _, spec in run.asked] == [True, False, False]
    assert "at 1 of 1 steps." in concluded.notes[0]
    assert [figure.file for figure in concluded.figures] == [
        "probes.png",
        "filters.png",
        "patches.png",
    ]
    assert all((tmp_path / figure.file).stat().st_size for figure in concluded.figures)
