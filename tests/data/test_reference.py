from pipeline.data.reference import detect_dataset_kind


def test_kind_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kinds = (
        "digits",
        "cifar10",
        "imagenette/320px-v2",
        "imagenet2012:5.1.0",
        "./x",
        "~/x",
        "/x",
        "Some Folder",
        "x.csv",
    )
    assert [detect_dataset_kind(name) for name in kinds] == [
        "digits",
        "tfds",
        "tfds",
        "tfds",
        "folder",
        "folder",
        "folder",
        "folder",
        "manifest",
    ]
    (tmp_path / "flowers").mkdir()
    assert detect_dataset_kind("flowers") == "folder"
