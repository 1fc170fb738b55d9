import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from pyarrow import parquet

from pipeline.data.loader import load_split
from pipeline.errors import DatasetError


def split_of(dataset):
    """Return key -> split."""
    return {key: split for split in dataset.reads for key in load_split(dataset, split).keys}


def card_of(dataset):
    import json

    return json.loads((dataset.directory / "report" / "dataset_card.json").read_text())


def write_manifest(path, *lines):
    path.write_text("path,label,split\n" + "\n".join(lines))
    return str(path)


def test_digits_are_split_by_their_pixels(digits):
    assert {split: digits.count_images(split) for split in digits.reads} == {
        "train": 1265,
        "validation": 147,
        "test": 385,
    }
    assert digits.class_names == tuple("0123456789")
    assert [sum(counts) for counts in zip(*digits.class_counts.values(), strict=True)] == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]


def test_digits_keep_their_pixels(digits):
    from sklearn.datasets import load_digits

    images = load_split(digits, "validation")
    source = load_digits()
    for key, label in zip(images.keys, images.labels, strict=True):
        assert source.target[int(key[:4])] == label
    index = int(images.keys[0][:4])
    expected = tf.image.resize(source.images[index][..., None] * 255 / 16, (36, 36), antialias=True)
    assert np.abs(images.pixels[0].astype(float) - expected.numpy()).max() <= 1


def test_statistics_are_those_of_the_training_pixels(digits):
    channels = np.moveaxis(load_split(digits, "train").pixels.astype(np.float64), -1, 0).reshape(
        3, -1
    )
    np.testing.assert_allclose(
        digits.channel_mean, [channel.mean() for channel in channels], rtol=1e-12
    )
    np.testing.assert_allclose(
        digits.channel_std, [channel.std() for channel in channels], rtol=1e-12
    )


def test_digits_twice_give_the_same_record_and_files(digits, make_dataset):
    again = make_dataset(draw=True)
    assert again.identity() == digits.identity()
    names = ("report/samples.png", "report/dataset_card.html", "index/train.parquet")
    for name in (*names, f"{digits.builder_directory}/images-train.tfrecord-00000-of-00001"):
        assert (again.directory / name).read_bytes() == (digits.directory / name).read_bytes(), name


def test_a_renamed_stage_folder_is_still_usable(digits, tmp_path):
    shutil.copytree(digits.directory, tmp_path / "ingest-x")
    moved = digits.model_copy(update={"directory": tmp_path / "ingest-x"})
    assert moved.shards.is_relative_to(tmp_path)
    assert all(path.exists() for path in moved.promised_files())
    assert len(load_split(moved, "test").pixels) == 385


def test_folder_has_natural_order_and_counts_what_it_leaves_out(folder, make_dataset):
    (folder / "3").mkdir()
    (folder / "README.txt").write_text("hello")
    (folder / "1" / "notes.txt").write_text("hello")
    (folder / "1" / ".hidden.jpg").write_text("hello")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "1.jpg").write_text("hello")
    (folder / "1" / "again").symlink_to(folder)
    (folder / "2" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    before = sorted((path, path.lstat().st_mtime_ns) for path in folder.rglob("*"))
    dataset = make_dataset(dataset=str(folder), draw=True)
    card = card_of(dataset)
    assert dataset.class_names == ("1", "2", "10")
    assert dataset.name == "images"
    assert card["excluded"] == {
        "hidden": 2,
        "links in a loop": 1,
        "broken links": 1,
        "other extension": 1,
        "outside the class folders": 1,
    }
    assert (
        card["found"]
        == card["accepted"] + len(card["quarantined"]) + sum(card["excluded"].values())
        == 96
    )
    assert (card["accepted"], card["empty_folders"]) == (90, 1)
    assert sorted((path, path.lstat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_shards_hold_the_files_as_they_are(folder, make_dataset):
    import hashlib

    dataset = make_dataset(dataset=str(folder))
    for split in dataset.reads:
        index = parquet.read_table(dataset.directory / "index" / f"{split}.parquet").to_pydict()
        for key, label, sha256 in zip(index["key"], index["label"], index["sha256"], strict=True):
            assert hashlib.sha256((folder / key).read_bytes()).digest() == sha256
            assert key.startswith(f"{dataset.class_names[label]}/")


def test_other_files_move_no_image_to_another_split(folder, make_dataset, write_folder):
    before = split_of(make_dataset(dataset=str(folder)))
    write_folder(folder / "more", classes=("x",), seed=1)
    shutil.move(folder / "more" / "x", folder / "20")
    shutil.rmtree(folder / "more")
    (folder / "1" / "0.jpg").rename(folder / "1" / "renamed.jpg")
    shutil.copy(folder / "1" / "1.png", folder / "1" / "copy.png")
    after = split_of(make_dataset(dataset=str(folder)))
    assert after.pop("1/renamed.jpg") == before.pop("1/0.jpg")
    assert after["1/copy.png"] == before["1/1.png"]
    assert before.items() <= after.items()
    assert len(after) == len(before) + 31


def test_files_that_cannot_be_decoded_are_quarantined(folder, make_dataset):
    whole = (folder / "1" / "0.jpg").read_bytes()
    (folder / "1" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "1" / "text.jpg").write_text("not an image")
    (folder / "2" / "empty.png").write_bytes(b"")
    header = bytearray((folder / "1" / "1.png").read_bytes())
    header[16:24] = (20_000).to_bytes(4, "big") * 2
    (folder / "2" / "huge.png").write_bytes(header)
    dataset = make_dataset(dataset=str(folder), max_quarantined_fraction=0.1, draw=True)
    reasons = {item["file"]: item["reason"] for item in card_of(dataset)["quarantined"]}
    assert dataset.quarantined == 4
    assert reasons["1/text.jpg"] == "text, not an image"
    assert reasons["2/empty.png"] == "empty file"
    assert reasons["2/huge.png"].startswith("20000 x 20000 pixels")
    assert reasons["1/truncated.jpg"]
    assert not reasons.keys() & split_of(dataset).keys()
    with pytest.raises(
        DatasetError,
        match=r"4 of 94 files cannot be used: .*text.jpg.* data.max_quarantined_fraction=0.05",
    ):
        make_dataset(dataset=str(folder))


def test_bmp_is_an_image(tmp_path, make_dataset, write_folder):
    from PIL import Image

    root = write_folder(tmp_path / "p", classes=("a", "b"))
    Image.fromarray(np.full((20, 20, 3), (200, 100, 50), np.uint8)).save(root / "a" / "flat.bmp")
    dataset = make_dataset(dataset=str(root))
    (split,) = (name for key, name in split_of(dataset).items() if key == "a/flat.bmp")
    images = load_split(dataset, split)
    assert np.unique(
        images.pixels[images.keys.index("a/flat.bmp")].reshape(-1, 3), axis=0
    ).tolist() == [[200, 100, 50]]


def test_given_splits_are_kept_and_missing_ones_cut(tmp_path, make_dataset, write_folder):
    write_folder(tmp_path / "p" / "train", classes=("a", "b"), per_class=30)
    write_folder(tmp_path / "p" / "val", classes=("a", "b"), per_class=4, seed=1)
    dataset = make_dataset(dataset=str(tmp_path / "p"))
    assert dataset.class_counts["validation"] == (4, 4)
    assert all(key.startswith("val/") for key in load_split(dataset, "validation").keys)
    assert dataset.count_images("train") + dataset.count_images("test") == 60
    write_folder(tmp_path / "p" / "test", classes=("a", "b"), per_class=5, seed=2)
    dataset = make_dataset(dataset=str(tmp_path / "p"))
    assert dataset.class_counts == {"train": (30, 30), "validation": (4, 4), "test": (5, 5)}


def test_a_class_may_be_called_train(tmp_path, make_dataset, write_folder):
    root = write_folder(tmp_path / "p", classes=("bus", "train"))
    assert make_dataset(dataset=str(root)).class_names == ("bus", "train")


def test_same_image_in_two_splits_is_told(tmp_path, make_dataset, write_folder):
    for split in ("train", "val", "test"):
        write_folder(tmp_path / "p" / split, classes=("a", "b"), per_class=3, seed=0)
    card = card_of(make_dataset(dataset=str(tmp_path / "p"), duplicates="report", draw=True))
    assert (card["contents_in_several_splits"], card["contents_with_several_labels"]) == (6, 0)
    assert card["duplicates"]["groups_in_several_splits"] == len(card["duplicates"]["groups"]) == 6
    assert card["excluded_duplicates"] == []


def test_duplicates_of_test_images_are_excluded(tmp_path, make_dataset, write_folder):
    write_folder(tmp_path / "p" / "train", classes=("a", "b"), per_class=10, seed=1)
    write_folder(tmp_path / "p" / "val", classes=("a", "b"), per_class=3, seed=2)
    write_folder(tmp_path / "p" / "test", classes=("a", "b"), per_class=3, seed=3)
    shutil.copy(
        tmp_path / "p" / "test" / "a" / "0.jpg", tmp_path / "p" / "train" / "b" / "copy.jpg"
    )
    shutil.copy(tmp_path / "p" / "val" / "a" / "1.png", tmp_path / "p" / "train" / "a" / "copy.png")
    dataset = make_dataset(dataset=str(tmp_path / "p"), draw=True)
    card = card_of(dataset)
    assert dataset.class_counts == {"train": (10, 10), "validation": (3, 3), "test": (3, 3)}
    assert dataset.excluded_duplicates == 2
    assert card["excluded_duplicates"] == ["train/a/copy.png", "train/b/copy.jpg"]
    assert card["duplicates"]["equal_images_with_several_labels"] == [
        ["test/a/0.jpg", "train/b/copy.jpg"]
    ]
    assert (card["contents_in_several_splits"], card["contents_with_several_labels"]) == (0, 0)
    assert card["found"] == card["accepted"] + len(card["excluded_duplicates"]) == 34
    page = (dataset.directory / "report" / "dataset_card.html").read_text()
    assert "excluded duplicates</td><td>2" in page
    assert page.count("<img") == 5


def test_classes_keep_their_numbers(folder, make_dataset, write_folder, tmp_path):
    work = tmp_path / "same"
    ingested = make_dataset(dataset=str(folder), workdir=work)
    assert ingested.class_names == ("1", "2", "10")
    write_folder(folder / "more", classes=("x",), seed=1)
    shutil.move(folder / "more" / "x", folder / "0")
    shutil.rmtree(folder / "more")
    assert make_dataset(dataset=str(folder), workdir=work).class_names == ("1", "2", "10", "0")
    (folder / "2").rename(folder / "two")
    with pytest.raises(DatasetError, match=r"'2'.* --set data.renamed_classes=2=two"):
        make_dataset(dataset=str(folder), workdir=work)
    for settings in ({"renamed_classes": {"2": "two"}}, {}):
        assert make_dataset(dataset=str(folder), workdir=work, **settings).class_names == (
            "1",
            "two",
            "10",
            "0",
        )


def test_stored_pixels_are_those_of_the_decoder(folder, make_dataset):
    dataset = make_dataset(dataset=str(folder), store="pixels")
    for split in dataset.reads:
        stored = np.load(dataset.pixels_path(split), mmap_mode="r")
        np.testing.assert_array_equal(stored, load_split(dataset, split, in_memory=True).pixels)
        assert dataset.pixels_path(split) in dataset.promised_files()


def test_orientation_is_applied_once(tmp_path, make_dataset, write_folder):
    from PIL import Image

    root = write_folder(tmp_path / "p", classes=("a", "b"))
    pixels = np.zeros((36, 36, 3), np.uint8)
    pixels[:18, :18] = 255  # a white corner at the top left of what the camera stored
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise
    Image.fromarray(pixels).save(root / "a" / "turned.png", exif=exif)
    dataset = make_dataset(dataset=str(root))
    (split,) = (name for key, name in split_of(dataset).items() if key == "a/turned.png")
    images = load_split(dataset, split, in_memory=True)
    found = images.pixels[images.keys.index("a/turned.png")]
    assert (found[:18, 18:] == 255).all()
    assert found.sum() == pixels.sum()


def test_names_are_text_on_the_page(tmp_path, make_dataset, write_folder):
    names = (
        '<script>alert("1")</script>',
        "two\nlines $x^2$ 'quote'",
        "日本" + "ü" * 90,
        os.fsdecode(b"\xff\xfe"),
    )
    root = tmp_path / "p"
    for seed, name in enumerate(names):
        target = root / name.replace("/", "\u2215")
        write_folder(tmp_path / "one", classes=("x",), seed=seed)
        root.mkdir(exist_ok=True)
        (tmp_path / "one" / "x").rename(target)
        (target / f"{name[:20]!r}.jpg".replace("/", "")).write_text("not an image")
    dataset = make_dataset(dataset=str(root), max_quarantined_fraction=0.1, draw=True)
    page = (dataset.directory / "report" / "dataset_card.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "two lines $x^2$ &#39;quote&#39;" in page
    assert "\\xff\\xfe" in dataset.class_names
    assert page.count("<img") == 4


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "no usable image"),
        ({"a": 30}, "at least two classes. .* Received 1: 'a'"),
        ({"a": 1, "b": 1}, "split would be empty|no training image"),
        ({"train/a": 30, "train/b": 30, "test/c": 2}, "1 of 3 classes have no training image: 'c'"),
    ],
)
def test_what_cannot_train_a_classifier_is_refused(
    tmp_path, make_dataset, layout, message, write_folder
):
    (tmp_path / "p").mkdir()
    for seed, (name, count) in enumerate(layout.items()):
        write_folder(tmp_path / "p", classes=(name,), per_class=count, seed=seed)
    with pytest.raises(DatasetError, match=message):
        make_dataset(dataset=str(tmp_path / "p"))


def test_manifest_names_images_labels_and_splits(folder, make_dataset):
    rows = [
        f"{path.relative_to(folder)},class {path.parent.name},{'test' if path.stem == '7' else ''}"
        for path in folder.rglob("*.*")
    ]
    dataset = make_dataset(dataset=write_manifest(folder / "list.csv", *rows))
    assert dataset.class_names == ("class 1", "class 2", "class 10")
    assert dataset.class_counts["test"] == (1, 1, 1)
    assert sorted(load_split(dataset, "test").keys) == ["1/7.png", "10/7.png", "2/7.png"]
    assert dataset.count_images("train") + dataset.count_images("validation") == 87
    assert not (dataset.directory / dataset.ATTRIBUTES_FILE).exists()


def test_what_else_a_manifest_says_is_kept_by_key(folder, make_dataset):
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    text = "path,label,camera\n" + "\n".join(
        f"{path},{path.parent.name},camera {path.stem}" for path in paths
    )
    (folder / "list.csv").write_text(text)
    dataset = make_dataset(dataset=str(folder / "list.csv"))
    table = parquet.read_table(dataset.directory / dataset.ATTRIBUTES_FILE)
    found = dict(zip(table["key"].to_pylist(), table["camera"].to_pylist(), strict=True))
    assert found == {str(path): f"camera {path.stem}" for path in paths}


def test_the_index_says_how_large_the_files_were(digits):
    index = parquet.read_table(digits.directory / "index" / "test.parquet")
    assert index.column_names == ["key", "label", "sha256", "height", "width"]
    assert set(index["height"].to_pylist()) == set(index["width"].to_pylist()) == {8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.jpg,x\n", "lacks the column path.* Received file, label"),
        ("path,label,split\na.jpg,x,dev\n", "Line 2 .* split 'dev'"),
        ("path,label\na.jpg,\n", "Line 2 .* label ''"),
        ("path,label\na.jpg,x\na.jpg,y\n", "names 'a.jpg' more than once"),
        ("", "lacks the column label, path. .* Received nothing"),
        (
            "path,label\na.jpg,x\n",
            "no usable image.* 1 such files, 1 unusable: .a.jpg. .No such file",
        ),
    ],
)
def test_unusable_manifests_are_refused(tmp_path, make_dataset, text, message):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        make_dataset(dataset=str(tmp_path / "m.csv"))


def test_duplicates_and_groups_of_a_manifest_reach_training(tmp_path, make_dataset, write_folder):
    root = write_folder(tmp_path / "p", classes=("a", "b"), per_class=8)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.*"))
    shutil.copy(root / names[0], root / "a" / f"copy{names[0][-4:]}")
    names.append(f"a/copy{names[0][-4:]}")
    # Two images of class b are one object, and one of them belongs to a duplicate's group, too.
    groups = {names[0]: "one", names[1]: "one", names[10]: "two", names[11]: "two"}
    splits = {names[5]: "validation", names[15]: "test"}

    def write(groups):
        rows = [
            f"{name},{name[0]},{splits.get(name, 'train')},{groups.get(name, '')}" for name in names
        ]
        (root / "list.csv").write_text("path,label,split,group\n" + "\n".join(rows))
        return make_dataset(dataset=str(root / "list.csv"))

    dataset = write(groups)
    images = load_split(dataset, "train")
    found = dict(zip(images.keys, images.groups.tolist(), strict=True))
    assert found[names[0]] == found[names[1]] == found[names[-1]]
    assert found[names[10]] == found[names[11]]
    assert len(set(found.values())) == len(names) - len(splits) - 3
    assert load_split(dataset, "test").groups is None
    assert dataset.directory / "index" / "groups.parquet" in dataset.promised_files()
    other = write({})
    assert other.digest == dataset.digest
    assert other.identity() != dataset.identity()  # what learned from the folds is stale
    alone = other.model_copy(update={"groups_sha256": ""})
    assert "groups_sha256" in alone.RARE
    assert load_split(alone, "train").groups is None
