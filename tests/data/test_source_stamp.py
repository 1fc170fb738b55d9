import sys

import pytest

from pipeline.config.data import DataConfig
from pipeline.data.source_stamp import stamp_source
from pipeline.errors import DatasetError


def test_stamp_changes_with_the_files(folder):
    config = DataConfig(dataset=str(folder))
    stamps = [stamp_source(config)]
    (folder / "1" / "new.jpg").write_text("x")
    stamps.append(stamp_source(config))
    (folder / "1" / "new.jpg").write_text("y2")
    stamps.append(stamp_source(config))
    (folder / "1" / "new.jpg").rename(folder / "2" / "new.jpg")
    stamps.append(stamp_source(config))
    assert len({stamp["folder"] for stamp in stamps}) == 4
    assert stamp_source(config) == stamps[-1]


def test_stage_and_stamp_need_no_heavy_library():
    import subprocess

    code = (
        "import sys; from pipeline.data.stage import ingest; from pipeline.config.data import"
        " DataConfig\nfor name in ('digits', 'cifar10', '/nowhere', '/nowhere.csv'):"
        " ingest.source(DataConfig(dataset=name))\nprint([name for name in ('tensorflow', 'keras',"
        " 'numpy', 'mlflow', 'sklearn', 'tensorflow_datasets') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_a_missing_folder_is_an_error_for_ingest_and_not_for_status(tmp_path, make_dataset):
    missing = str(tmp_path / "nowhere")
    assert stamp_source(DataConfig(dataset=missing)) == {"folder": "missing"}
    assert stamp_source(DataConfig(dataset=f"{missing}.csv")) == {"manifest": "missing"}
    with pytest.raises(DatasetError, match=r"There is no folder .*nowhere"):
        make_dataset(dataset=missing)
    with pytest.raises(DatasetError, match=r"There is no manifest .*nowhere.csv"):
        make_dataset(dataset=f"{missing}.csv")
