"""The claim about towers: what is judged, and when nothing can be."""

from __future__ import annotations

from pipeline.reproduce import tower_colors
from pipeline.reproduce.claims import towers


def test_a_network_with_one_tower_is_not_asked(
    context, dataset, tmp_path, network, saved, make_run
):
    saved(network(network="cifar"), tmp_path / "trained")
    made = tower_colors.measure_tower_colors(
        {"splits": 10, "split_seed": 0, "filters": True}, dataset, context, tmp_path / "trained"
    )
    assert made.numbers["towers"] == 1
    concluded = towers.conclude_towers(make_run(tmp_path, made.numbers), {"baseline": [made]})
    assert concluded.findings[0].verdict == "not measured"
    assert "one tower" in concluded.findings[0].why


def test_gray_images_have_no_colors_to_share_out(tmp_path, make_run):
    run = make_run(tmp_path)
    run.dataset.channel_covariance = ((4000.0,) * 3,) * 3
    assert "gray" in towers.conclude_towers(run, {"baseline": [None]}).findings[0].why
    assert not run.asked


def test_the_towers_are_judged_by_seeds(context, dataset, tmp_path, network, saved, make_run):
    saved(network(), tmp_path / "trained")
    made = tower_colors.measure_tower_colors(
        {"splits": 100, "split_seed": 0, "filters": True}, dataset, context, tmp_path / "trained"
    )
    run = make_run(tmp_path)
    run.examine_network = lambda *_: made
    concluded = towers.conclude_towers(run, {"baseline": [made, made]})
    assert [finding.effects for finding in concluded.findings] == [
        (made.numbers[f"{name}/effect"],) * 2 for name in ("filters", "changes")
    ]
    assert all((tmp_path / figure.file).stat().st_size for figure in concluded.figures)
    assert concluded.notes[0].startswith(("0 of 2", "2 of 2"))
