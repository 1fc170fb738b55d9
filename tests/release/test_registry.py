"""Releases in a real registry: registered once, verified when opened."""

import shutil

import pytest

from pipeline.config.release import ReleaseConfig
from pipeline.errors import CheckpointError
from pipeline.release import package as package_module
from pipeline.release.commit import commit_promotion
from pipeline.release.package import open_release
from pipeline.tracking.registry import GATE_TAG, RELEASE_TAG, Aliases
from tests.release.registries import another, offered, registered, verdict


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
