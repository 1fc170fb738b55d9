"""A release proves itself: every byte is compared with a digest before anything is opened."""

import shutil
from types import SimpleNamespace

import pytest

from pipeline.artifacts import EvaluationReport, file_sha256
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.release.package import GoldenImage, Release, open_release, read_package, write_package


@pytest.fixture
def copy(release, tmp_path):
    """The release's folder, to be damaged."""
    shutil.copytree(release.directory, tmp_path / "copy")
    return tmp_path / "copy"


def test_what_was_written_is_read_back(release, copy):
    again = read_package(copy, release.sha256(), name="small", version="3")
    assert again.model_dump() == release.model_dump()
    assert again.title == "small 3"
    assert again.model_path == copy / "data" / "model.keras"
    assert len(again.golden) == 3


@pytest.mark.parametrize("file", ["release.json", "data/model.keras", "golden/01"])
def test_a_flipped_byte_in_any_file_is_seen(release, copy, file):
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(
        CheckpointError, match=f"{file} is damaged. Expected SHA-256 .* Nothing was opened"
    ):
        read_package(copy, release.sha256())


@pytest.mark.parametrize("file", ["release.json", "data/model.keras", "golden/00"])
def test_a_missing_file_is_seen(release, copy, file):
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match="no file"):
        read_package(copy, release.sha256())


def test_the_digest_covers_what_is_said_of_the_model(copy):
    text = (copy / "release.json").read_text().replace('"owl"', '"wol"')
    (copy / "release.json").write_text(text)
    assert read_package(copy).class_names == ("cat", "dog", "wol")  # nobody knows the digest
    with pytest.raises(CheckpointError, match=r"release.json is damaged"):
        read_package(copy, "0" * 64)


def test_a_release_that_names_files_outside_its_folder_is_refused(copy):
    text = (copy / "release.json").read_text().replace("golden/00", "../../etc")
    (copy / "release.json").write_text(text)
    with pytest.raises(CheckpointError, match="holds no release that can be read"):
        read_package(copy)


def test_equal_input_gives_equal_files(release, model_file, tmp_path):
    golden = [
        GoldenImage((release.directory / item.file).read_bytes(), item.label, item.logits)
        for item in release.golden
    ]
    again = write_package(
        release.model_copy(update={"golden": ()}), model_file, golden, tmp_path / "again"
    )
    assert again.sha256() == release.sha256() == file_sha256(tmp_path / "again" / "release.json")


def test_a_bare_file_is_a_release_of_what_is_known(model_file, tmp_path):
    found = open_release(str(model_file), TrackingConfig(), tmp_path)
    assert found.name == "model.keras"
    assert found.class_names == ()
    assert found.temperature == 1.0


def test_the_temperature_of_a_bare_file_is_that_of_its_evaluation(
    model_file, tmp_path, monkeypatch
):
    for number, digest in enumerate(["other", file_sha256(model_file)]):
        folder = tmp_path / "stages" / f"evaluate-{number}"
        folder.mkdir(parents=True)
        (folder / EvaluationReport.FILE).write_text(digest)

    def read(directory):
        digest = (directory / EvaluationReport.FILE).read_text()
        return SimpleNamespace(model_sha256=digest, temperature=2.5, dataset_digest="d")

    monkeypatch.setattr(EvaluationReport, "read", read)
    assert open_release(str(model_file), TrackingConfig(), tmp_path).temperature == 2.5


def test_a_folder_is_a_release_only_with_its_record(release, tmp_path):
    assert (
        open_release(str(release.directory), TrackingConfig(), tmp_path).class_names
        == release.class_names
    )
    with pytest.raises(ConfigError, match="is not a model"):
        open_release(str(tmp_path), TrackingConfig(), tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"\x89HDF")
    with pytest.raises(ConfigError, match=r"is not a model. Expected a .keras file"):
        open_release(str(tmp_path / "model.h5"), TrackingConfig(), tmp_path)


def test_the_record_says_what_every_field_is():
    assert all(
        field.description for name, field in Release.model_fields.items() if not field.exclude
    )
