import pytest

from pipeline.config.resolution import resolve
from pipeline.data.class_ids import order_classes, read_known_classes, write_known_classes
from pipeline.errors import ConfigError, DatasetError


def test_class_ids_stay():
    assert order_classes({"10", "2"}, (), {}) == ("2", "10")
    assert order_classes({"10", "2", "1"}, ("2", "10"), {}) == ("2", "10", "1")
    assert order_classes({"b", "c"}, ("a", "b"), {"a": "c"}) == ("c", "b")
    assert order_classes({"b", "c"}, ("c", "b"), {"a": "c"}) == ("c", "b")
    assert order_classes({"b"}, ("a", "b"), {"a": ""}) == ("b",)
    with pytest.raises(
        DatasetError,
        match=(
            r"1 classes of the last ingest .* 'a'.*new classes: 'c'.*--set"
            r" data.renamed_classes=a=c for .*--set data.renamed_classes=a= to drop it"
        ),
    ):
        order_classes({"b", "c"}, ("a", "b"), {})
    with pytest.raises(
        DatasetError, match=r"data.renamed_classes names 'x'. .* known classes: 'a', 'b'"
    ):
        order_classes({"a", "b"}, ("a", "b"), {"x": "y"})


def test_classes_are_remembered_whole_or_not_at_all(tmp_path):
    path = tmp_path / "classes" / "x.json"
    assert read_known_classes(path) == ()
    write_known_classes(path, ("b", "ä\n"))
    assert read_known_classes(path) == ("b", "ä\n")
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]
    path.write_text("[1")
    with pytest.raises(DatasetError, match=r"x.json cannot be read .* Remove the file"):
        read_known_classes(path)


def test_renamed_classes_can_be_typed():
    config = resolve(overrides={"data.renamed_classes": "Cat=cat, wolf="}, environment={}).config
    assert config.data.renamed_classes == {"Cat": "cat", "wolf": ""}
    with pytest.raises(ConfigError, match="old=new"):
        resolve(overrides={"data.renamed_classes": "cat"}, environment={})
