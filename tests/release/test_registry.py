"""The registry in a real store: versions, aliases, the expected old value, and the lock."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from pipeline.artifacts import GateCheck
from pipeline.config.release import ReleaseConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import BusyError, CheckpointError, ConfigError, GateError, TrackingError
from pipeline.release import commit
from pipeline.release import package as package_module
from pipeline.release.commit import GateVerdict, Offer, commit_promotion
from pipeline.release.package import open_release
from pipeline.release.rollback import roll_back
from pipeline.tracking import registry_lock
from pipeline.tracking.registry import GATE_TAG, MODEL_TAG, RELEASE_TAG, Aliases, Registry
from pipeline.tracking.registry_lock import lease_registry
from pipeline.tracking.store import open_experiment


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A work directory with a database that is migrated: that takes seconds."""
    workdir = tmp_path_factory.mktemp("store")
    open_experiment(TrackingConfig(), workdir)
    return workdir


@pytest.fixture
def registry(store, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(store, workdir)
    return Registry("alexnet", TrackingConfig(), workdir)


def registered(registry, release, **tags):
    known = {
        "class_names": list(release.class_names),
        "sha256": release.model_sha256,
        "short_side": release.short_side,
    }
    tags = {
        RELEASE_TAG: release.sha256(),
        MODEL_TAG: release.model_sha256,
        GATE_TAG: "passed",
    } | tags
    with registry.lock():
        return registry.register(release.directory, release.image_size, known, tags, None)


def test_nothing_is_registered_at_first(registry):
    assert registry.read_aliases() == Aliases()
    assert registry.list_versions() == []
    assert registry.read_version("1") is None
    with pytest.raises(
        ConfigError,
        match=r"There is no model models:/alexnet@champion .* none yet. Type `alexnet run promote`",
    ):
        open_release("models:/alexnet@champion", registry.config, registry.workdir)


def test_a_release_is_registered_once_and_read_back_verified(registry, release):
    for outcome in ("promoted", "unchanged"):
        assert (
            commit_promotion(
                registry, offered(release), lambda _: verdict(True), ReleaseConfig()
            ).outcome
            == outcome
        )
    assert [version.number for version in registry.list_versions()] == ["1"]
    for reference in ("models:/alexnet@champion", "models:/alexnet/1"):
        found = open_release(reference, registry.config, registry.workdir)
        assert (found.title, found.sha256()) == ("alexnet 1", release.sha256())
    again = found.model_path
    content = bytearray(again.read_bytes())
    content[100] ^= 1
    again.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.keras is damaged"):
        open_release("models:/alexnet/1", registry.config, registry.workdir)


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


def test_a_version_that_somebody_else_registered_is_not_opened(registry, release, tmp_path):
    marker = tmp_path / "marker"
    loader = tmp_path / "foreign"
    (loader / "code").mkdir(parents=True)
    (loader / "code" / "evil.py").write_text(
        f"open({str(marker)!r}, 'w')\ndef _load_pyfunc(path): pass\n"
    )
    (loader / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: evil\n    code: code\n"
    )
    registered(registry, release)
    registry.connect().create_model_version("alexnet", loader.as_uri())
    with pytest.raises(
        CheckpointError, match=r"Version 2 of alexnet cannot be verified.*Nothing was opened"
    ):
        open_release("models:/alexnet/2", registry.config, registry.workdir)
    assert not marker.exists()


def test_the_champion_moves_only_from_the_expected_one(registry, release):
    registered(registry, release)
    assert registry.move_champion("1", expected="")
    assert registry.read_aliases() == Aliases(champion="1")
    registry.connect().create_model_version(
        "alexnet",
        registry.read_version("1").source,
        tags={GATE_TAG: "passed", RELEASE_TAG: "2" * 64},
    )
    assert not registry.move_champion("2", expected="")
    assert registry.read_aliases() == Aliases(champion="1")
    assert registry.move_champion("2", expected="1")
    assert registry.read_aliases() == Aliases(champion="2", previous="1")
    assert registry.read_version("1").aliases == ("previous",)


def another(registry, release, gate="passed", digest=None):
    """A further version with the same files."""
    source, tags = (
        registry.read_version("1").source,
        {
            GATE_TAG: gate,
            RELEASE_TAG: digest or release.sha256(),
        },
    )
    return str(registry.connect().create_model_version("alexnet", source, tags=tags).version)


def test_a_way_back_is_verified_marks_what_was_left_and_does_not_lead_forward_again(
    registry, release, monkeypatch
):
    # The files of all are those of the first; that each has a digest of its own is what counts
    # here.
    monkeypatch.setattr(commit, "open_version", lambda *_: None)
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
    monkeypatch.setattr(commit, "open_version", lambda *_: None)
    registered(registry, release)
    another(registry, release, digest="2" * 64)
    registry.set_alias("champion", "2")
    registry.set_alias("previous", "1")
    registry.set_tags("1", {"withdrawn": "yes"})
    with pytest.raises(ConfigError, match="Version 1, the previous champion, was withdrawn"):
        roll_back(registry, None)
    assert roll_back(registry, "1")[1].number == "1"


@pytest.mark.parametrize("tag", ["/elsewhere/evil", "../../evil", "ABC", "0" * 63])
def test_a_tag_that_is_no_digest_names_no_folder(registry, release, tag):
    registered(registry, release)
    number = another(registry, release, digest=tag)
    assert registry.read_version(number).release_sha256 == ""
    with pytest.raises(CheckpointError, match="cannot be verified"):
        open_release(f"models:/alexnet/{number}", registry.config, registry.workdir)


def test_a_damaged_copy_of_what_lies_elsewhere_is_fetched_again(registry, release, monkeypatch):
    registered(registry, release)
    kept, fetched = registry.workdir / "kept", []

    def fetch(*_, again=False):
        fetched.append(again)
        if again:
            shutil.rmtree(kept)
        if not kept.exists():
            shutil.copytree(release.directory, kept)
        return kept

    monkeypatch.setattr(package_module, "fetch_version", fetch)
    fetch()
    (kept / "data" / "model.keras").write_bytes(b"half of it")
    assert (
        open_release("models:/alexnet/1", registry.config, registry.workdir).sha256()
        == release.sha256()
    )
    assert fetched == [False, False, True]


def test_a_database_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "mlflow.db").write_text("junk")
    with pytest.raises(
        TrackingError, match=r"The registry in sqlite:.* does not answer \(.*not a database"
    ):
        Registry("alexnet", TrackingConfig(), tmp_path).list_versions()


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


def verdict(passed):
    return GateVerdict(
        (
            GateCheck(
                name="test",
                passed=passed,
                measured="",
                required="",
                text="good" if passed else "bad",
            ),
        )
    )


def offered(release):
    return Offer(release, {RELEASE_TAG: release.sha256(), MODEL_TAG: release.model_sha256})


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


def test_the_lock_lets_one_in_at_a_time(registry):
    inside, most = 0, 0

    def enter():
        nonlocal inside, most
        with registry.lock():
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_lease_of_a_store_elsewhere_lets_one_in_and_outlives_no_owner(registry, monkeypatch):
    monkeypatch.setattr(registry_lock, "_LOCK_SECONDS", 0.5)
    client = registry.connect()
    with lease_registry("alexnet", registry.config, registry.workdir):
        assert (
            json.loads(client.get_registered_model("alexnet.lock").tags["owner"])["pid"]
            == os.getpid()
        )
        with (
            pytest.raises(BusyError, match=f"is held by process {os.getpid()}"),
            lease_registry("alexnet", registry.config, registry.workdir),
        ):
            pass
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    owner = {
        "token": "x",
        "host": os.uname().nodename,
        "pid": int(gone.stdout),
        "since": time.time(),
    }
    client.create_registered_model("alexnet.lock", tags={"owner": json.dumps(owner)})
    with lease_registry("alexnet", registry.config, registry.workdir):
        pass
    client.create_registered_model(
        "alexnet.lock",
        tags={"owner": json.dumps({**owner, "host": "elsewhere", "since": time.time() - 3600})},
    )
    with lease_registry("alexnet", registry.config, registry.workdir):
        pass
    assert [model.name for model in client.search_registered_models()] == []


def test_a_store_that_does_not_answer_is_one_sentence(tmp_path):
    dead = Registry("alexnet", TrackingConfig(uri="http://127.0.0.1:9"), tmp_path)
    with pytest.raises(TrackingError, match=r"The registry in http://127.0.0.1:9 does not answer"):
        dead.read_aliases()
