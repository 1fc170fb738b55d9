"""The commit of a promotion in a real store: outcomes, expected champion, withdrawn versions."""

import pytest

from pipeline.config.release import ReleaseConfig
from pipeline.release.commit import GateVerdict, commit_promotion
from pipeline.release.package import open_release
from pipeline.tracking.registry import GATE_TAG, RELEASE_TAG, Aliases, Registry
from tests.release.registries import offered, registered, verdict


def test_a_champion_whose_files_are_damaged_is_mended_by_promoting_it_again(registry, release):
    commit_promotion(registry, offered(release), lambda _: verdict(True), ReleaseConfig())
    damaged = open_release("models:/alexnet@champion", registry.config, registry.workdir)
    damaged.model_path.write_bytes(b"no model")
    against = []
    settled = commit_promotion(
        registry,
        offered(release),
        lambda champion: against.append(champion) or verdict(True),
        ReleaseConfig(),
    )
    assert (settled.outcome, settled.version, against) == ("promoted", "2", [None])
    assert (
        open_release("models:/alexnet@champion", registry.config, registry.workdir).sha256()
        == release.sha256()
    )


def test_an_interrupted_promotion_is_finished_by_the_next_one(registry, release, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def promote():
        return commit_promotion(
            registry, offered(release), lambda _: verdict(True), ReleaseConfig()
        )

    for name in ("set_alias", "set_tags"):
        with monkeypatch.context() as patch:
            patch.setattr(Registry, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                promote()
        assert registry.read_aliases().champion == ""
    settled = promote()
    assert (settled.outcome, settled.version) == ("promoted", "1")
    assert len(registry.list_versions()) == 1  # a release has one, however often it was interrupted
    assert registry.read_champion().gate == "passed"


def test_a_dry_run_writes_nothing(registry, release):
    settled = commit_promotion(
        registry, offered(release), lambda _: verdict(True), ReleaseConfig(dry_run=True)
    )
    assert settled.outcome == "would promote"
    assert (
        commit_promotion(
            registry, offered(release), lambda _: verdict(False), ReleaseConfig(dry_run=True)
        ).outcome
        == "refused"
    )
    assert registry.list_versions() == []


def test_no_evidence_is_no_promotion(registry, release):
    settled = commit_promotion(registry, offered(release), lambda _: GateVerdict(), ReleaseConfig())
    assert settled.outcome == "refused"
    assert registry.read_aliases().champion == ""


def test_a_person_is_waited_for_where_that_is_asked_for(registry, release):
    waits = ReleaseConfig(approval="required")
    assert (
        commit_promotion(registry, offered(release), lambda _: verdict(True), waits).outcome
        == "waiting"
    )
    assert registry.read_aliases() == Aliases(candidate="1")
    approved = waits.model_copy(update={"approve": True})
    assert (
        commit_promotion(registry, offered(release), lambda _: verdict(False), approved).outcome
        == "refused"
    )  # approval is no way around the gate
    assert (
        commit_promotion(registry, offered(release), lambda _: verdict(True), approved).outcome
        == "promoted"
    )
    assert registry.read_aliases() == Aliases(champion="1", candidate="1")
    assert (
        commit_promotion(registry, offered(release), lambda _: verdict(True), approved).outcome
        == "unchanged"
    )


def test_what_somebody_went_back_from_is_not_released_again_by_itself(registry, release):
    registered(registry, release)
    registry.connect().create_model_version(
        "alexnet",
        registry.read_version("1").source,
        tags={GATE_TAG: "passed", RELEASE_TAG: "5" * 64},
    )
    registry.set_alias("champion", "2")
    registry.set_tags("1", {"withdrawn": "yes"})
    settled = commit_promotion(registry, offered(release), lambda _: verdict(True), ReleaseConfig())
    assert (settled.outcome, registry.read_aliases().champion) == ("refused", "2")
    assert "A rollback left version 1" in settled.reason
    assert registry.read_version("1").gate == "passed"  # one that passed may still be gone back to
    assert (
        commit_promotion(
            registry, offered(release), lambda _: verdict(True), ReleaseConfig(approve=True)
        ).outcome
        == "promoted"
    )


def test_a_champion_that_comes_meanwhile_is_judged_against(registry, release):
    registered(registry, release)
    source = registry.read_version("1").source
    registry.connect().create_model_version(
        "alexnet", source, tags={GATE_TAG: "passed", RELEASE_TAG: "5" * 64}
    )
    against = []

    def judge(champion):
        against.append(champion.number if champion else "")
        if len(against) == 1:
            registry.set_alias("champion", "2")  # another process is quicker
        return verdict(True)

    assert (
        commit_promotion(registry, offered(release), judge, ReleaseConfig()).outcome == "promoted"
    )
    assert against == ["", "2"]
    assert registry.read_aliases().champion == "1"
