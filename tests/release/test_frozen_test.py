"""Which images a candidate and the champion are judged on."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.artifacts import DatasetArtifact
from pipeline.release.frozen_test import (
    find_dataset,
    freeze_test,
    map_class_indices,
    use_current_test,
)


@pytest.fixture
def make_dataset(tmp_path):
    """A dataset's record and indices: `splits` maps a split to (content, class name) pairs."""

    def make(name, class_names, **splits):
        directory = tmp_path / "stages" / f"ingest-{name}"
        (directory / "index").mkdir(parents=True)
        for split in ("train", "validation", "test"):
            rows = splits.get(split, ())
            columns = {
                "key": [content for content, _ in rows],
                "label": pa.array([class_names.index(label) for _, label in rows], pa.int32()),
                "sha256": pa.array(
                    [hashlib.sha256(content.encode()).digest() for content, _ in rows],
                    pa.binary(32),
                ),
            }
            parquet.write_table(pa.table(columns), directory / "index" / f"{split}.parquet")
        dataset = DatasetArtifact(
            directory=directory,
            name=name,
            digest=hashlib.sha256(name.encode()).hexdigest(),
            class_names=class_names,
            class_counts={},
            reads={},
            short_side=32,
            channel_mean=(0, 0, 0),
            channel_covariance=((1, 0, 0), (0, 1, 0), (0, 0, 1)),
            builder_directory=directory,
        )
        (directory / "artifact.json").write_text(dataset.model_dump_json())
        for path in dataset.promised_files():
            path.parent.mkdir(exist_ok=True)
            path.touch()
        return dataset

    return make


def chosen(test_set, dataset):
    """What counts, as (content, class name): own images first, then those that are gone."""
    own = parquet.read_table(dataset.directory / "index" / "test.parquet")["key"].to_pylist()
    gone = (
        parquet.read_table(test_set.earlier.directory / "index" / "test.parquet")["key"].to_pylist()
        if test_set.earlier
        else []
    )
    keys = [own[place] for place in test_set.own] + [gone[place] for place in test_set.gone]
    return [
        (key, dataset.class_names[label]) for key, label in zip(keys, test_set.labels, strict=True)
    ]


def test_new_test_images_do_not_count_before_a_promotion(make_dataset):
    earlier = make_dataset(
        "a", ("cat", "dog"), train=[("t", "cat")], test=[("1", "cat"), ("2", "dog")]
    )
    dataset = make_dataset(
        "b", ("cat", "dog"), train=[("t", "cat")], test=[("new", "cat"), ("2", "dog"), ("1", "cat")]
    )
    test_set = freeze_test(dataset, earlier)
    assert chosen(test_set, dataset) == [("1", "cat"), ("2", "dog")]
    assert test_set.own.tolist() == [2, 1]
    assert "2 images with the labels that they had." in test_set.text
    assert "1 new test images do not count" in test_set.text


def test_a_changed_label_does_not_count_and_an_image_that_is_gone_does(make_dataset):
    earlier = make_dataset("a", ("cat", "dog"), test=[("1", "cat"), ("2", "dog"), ("3", "dog")])
    dataset = make_dataset("b", ("cat", "dog"), test=[("1", "dog"), ("3", "dog")])
    test_set = freeze_test(dataset, earlier)
    assert sorted(chosen(test_set, dataset)) == [("1", "cat"), ("2", "dog"), ("3", "dog")]
    assert test_set.gone.tolist() == [1]
    assert "(1 of them are no longer in the data, 1 have another label now)" in test_set.text


def test_classes_are_matched_by_name_and_images_of_new_ones_are_added(make_dataset):
    earlier = make_dataset("a", ("cat", "dog"), test=[("1", "cat"), ("2", "dog")])
    dataset = make_dataset(
        "b", ("bird", "dog", "cat"), test=[("1", "cat"), ("2", "dog"), ("5", "bird"), ("6", "dog")]
    )
    test_set = freeze_test(dataset, earlier)
    assert chosen(test_set, dataset) == [("1", "cat"), ("2", "dog"), ("5", "bird")]
    assert "and 1 of classes that it had none of" in test_set.text
    assert "1 new test images" in test_set.text


def test_what_the_candidate_was_trained_on_and_what_has_no_class_any_more_is_left_out(make_dataset):
    earlier = make_dataset(
        "a", ("cat", "dog", "ox"), test=[("1", "cat"), ("2", "dog"), ("3", "ox"), ("4", "cat")]
    )
    dataset = make_dataset(
        "b", ("cat", "dog"), train=[("1", "cat")], validation=[("2", "dog")], test=[("4", "cat")]
    )
    test_set = freeze_test(dataset, earlier)
    assert chosen(test_set, dataset) == [("4", "cat")]
    assert "3 of its images are left out" in test_set.text


def test_copies_within_the_test_count_as_often_as_they_did(make_dataset):
    earlier = make_dataset("a", ("cat", "dog"), test=[("1", "cat"), ("1", "cat"), ("2", "dog")])
    dataset = make_dataset("b", ("cat", "dog"), test=[("1", "cat"), ("2", "dog")])
    assert chosen(freeze_test(dataset, earlier), dataset) == [
        ("1", "cat"),
        ("1", "cat"),
        ("2", "dog"),
    ]


def test_nothing_left_of_the_test_is_an_exam_of_what_is_gone(make_dataset):
    earlier = make_dataset("a", ("cat", "dog"), test=[("1", "cat"), ("2", "dog")])
    dataset = make_dataset("b", ("cat", "dog"), train=[("9", "cat")])
    test_set = freeze_test(dataset, earlier)
    assert test_set.own.tolist() == []
    assert chosen(test_set, dataset) == [("1", "cat"), ("2", "dog")]


def test_without_an_earlier_dataset_the_whole_test_split_counts():
    test_set = use_current_test(np.array([1, 0, 1]), "why")
    assert test_set.own.tolist() == [0, 1, 2]
    assert test_set.labels.tolist() == [1, 0, 1]
    assert test_set.text == "why"


def test_a_dataset_is_found_by_its_digest_and_only_where_it_is_whole(make_dataset, tmp_path):
    dataset = make_dataset("a", ("cat", "dog"), test=[("1", "cat")])
    assert find_dataset(dataset.digest, tmp_path).directory == dataset.directory
    assert find_dataset("0" * 64, tmp_path) is None
    assert find_dataset("", tmp_path) is None
    (dataset.directory / "index" / "test.parquet").unlink()
    dataset.sample_path.unlink()
    assert find_dataset(dataset.digest, tmp_path) is None


def test_a_renamed_class_is_the_same_class(make_dataset):
    earlier = make_dataset("a", ("cat", "dog"), test=[("1", "cat"), ("2", "dog")])
    dataset = make_dataset("b", ("hound", "cat"), test=[("1", "cat"), ("2", "hound")])
    test_set = freeze_test(dataset, earlier, {"dog": "hound"})
    assert sorted(chosen(test_set, dataset)) == [("1", "cat"), ("2", "hound")]
    assert "left out" not in test_set.text
    assert map_class_indices(
        ("cat", "dog", "ox"), ("hound", "cat"), {"dog": "hound", "ox": ""}
    ).tolist() == [1, 0, -1]
