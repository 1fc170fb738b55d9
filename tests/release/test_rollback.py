"""The rollback in a real store."""

import pytest

from pipeline.errors import CheckpointError, ConfigError, GateError
from pipeline.release import rollback
from pipeline.release.rollback import roll_back
from pipeline.tracking.registry import GATE_TAG, RELEASE_TAG, Aliases
from tests.release.registries import another, registered


def test_a_way_back_is_verified_marks_what_was_left_and_does_not_lead_forward_again(
    registry, release, monkeypatch
):
    # The files of all are those of the first; that each has a digest of its own is what counts
    # here.
    monkeypatch.setattr(rollback, "open_version", lambda *_: None)
    registered(registry, release)
    registry.move_champion("1", expected="")
    with pytest.raises(ConfigError, match="There is no version to roll back to"):
        roll_back(registry, None)
    another(registry, release, digest="2" * 64)
    another(registry, release, gate="refused", digest="3" * 64)
    another(registry, release, gate="waiting", digest="4" * 64)
    registry.move_champion("2", expected="1")
    for number in ("3", "4"):
        with pytest.raises(GateError, match=f"Version {number} of alexnet never passed the gate"):
            roll_back(registry, number)
    with pytest.raises(ConfigError, match="Version 2 is the champion already"):
        roll_back(registry, "2")
    with pytest.raises(ConfigError, match="Version 9 is not there"):
        roll_back(registry, "9")
    before, after = roll_back(registry, None)
    assert (before, after.number) == ("2", "1")
    assert registry.read_aliases() == Aliases(champion="1", previous="1")
    assert registry.read_version("2").withdrawn
    assert "rolled back to it from version 2" in registry.read_version("1").tags["decision_reason"]
    with pytest.raises(ConfigError, match="There is no version to roll back to"):  # typed twice
        roll_back(registry, None)
    assert roll_back(registry, "2")[1].number == "2"  # forward, by its number
    assert not registry.read_version("2").withdrawn
    assert not registry.read_version("1").withdrawn
    assert registry.read_aliases() == Aliases(champion="2", previous="1")


def test_a_withdrawn_version_before_is_gone_back_to_only_by_its_number(
    registry, release, monkeypatch
):
    monkeypatch.setattr(rollback, "open_version", lambda *_: None)
    registered(registry, release)
    another(registry, release, digest="2" * 64)
    registry.set_alias("champion", "2")
    registry.set_alias("previous", "1")
    registry.set_tags("1", {"withdrawn": "yes"})
    with pytest.raises(ConfigError, match="Version 1, the previous champion, was withdrawn"):
        roll_back(registry, None)
    assert roll_back(registry, "1")[1].number == "1"


def test_nobody_goes_back_to_a_damaged_version(registry, release):
    registered(registry, release)
    registry.move_champion("1", expected="")
    source = registry.read_version("1").source
    registry.connect().create_model_version(
        "alexnet", source, tags={GATE_TAG: "passed", RELEASE_TAG: "0" * 64}
    )
    with pytest.raises(CheckpointError, match="damaged"):
        roll_back(registry, "2")
    assert registry.read_aliases().champion == "1"
