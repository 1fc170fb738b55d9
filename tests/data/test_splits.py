import hashlib
from types import SimpleNamespace

import numpy as np

from pipeline.config.data import DataConfig
from pipeline.data.duplicates import describe_images
from pipeline.data.splits import assign_split, assign_splits

CONFIG = DataConfig(validation_fraction=0.1, test_fraction=0.2)


def image(number, split="", group="", label="a", look=None):
    """Return a checked file whose thumbnail is noise of its own, or of the number `look`."""
    thumbnail = (
        np.random.default_rng(number if look is None else look)
        .integers(0, 256, (4, 4, 3), np.uint8)
        .repeat(16, 0)
        .repeat(16, 1)
    )
    pixels = int.from_bytes(hashlib.sha256(thumbnail.tobytes()).digest()[:8], "big")
    look = describe_images(thumbnail[np.newaxis]).tobytes()
    facts = SimpleNamespace(
        sha256=hashlib.sha256(bytes([number % 256, number // 256])).digest(),
        pixel_hash=pixels,
        descriptor=look,
    )
    return SimpleNamespace(
        file=SimpleNamespace(key=f"{number}", split=split, group=group, label=label), facts=facts
    )


def test_fractions_are_those_asked_for_and_independent():
    contents = [hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(20_000)]
    splits = [assign_split(content, "", frozenset(), CONFIG) for content in contents]
    assert abs(splits.count("test") / 20_000 - 0.2) < 0.01
    assert abs(splits.count("validation") / 20_000 - 0.08) < 0.01
    more = [
        assign_split(
            content, "", frozenset(), DataConfig(validation_fraction=0.1, test_fraction=0.3)
        )
        for content in contents
    ]
    assert {before for before, after in zip(splits, more, strict=True) if before != after} == {
        "train",
        "validation",
    }
    assert {after for before, after in zip(splits, more, strict=True) if before != after} == {
        "test"
    }


def test_named_splits_are_kept():
    assert {
        assign_split(bytes(32), split, frozenset({"train", "test"}), CONFIG)
        for split in ("test", "validation")
    } == {"test", "validation"}
    assert (
        assign_split(bytes(32), "train", frozenset({"train", "validation", "test"}), CONFIG)
        == "train"
    )
    assert assign_split(bytes(32), "train", frozenset({"train"}), CONFIG) == "test"


def test_a_group_is_assigned_as_one():
    images = [image(number, group=f"patient {number % 40}") for number in range(400)]
    placed, copies = assign_splits(images, CONFIG)
    assert copies.groups == []
    splits = {}
    for item, split in zip(images, placed, strict=True):
        splits.setdefault(item.file.group, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert set().union(*splits.values()) == {"train", "validation", "test"}


def test_copies_leave_no_trace_in_another_split_and_move_nobody():
    images = [image(number) for number in range(300)]
    before, _ = assign_splits(images, CONFIG)
    copied = [*images, *(image(1000 + number, look=number) for number in range(300))]
    after, copies = assign_splits(copied, CONFIG)
    moved = [(old, new) for old, new in zip(before, after, strict=False) if new not in (old, "")]
    assert moved == []
    assert len(copies.groups) == 300
    assert copies.in_several_splits > 50
    for original, copy in zip(after[:300], after[300:], strict=True):
        assert original == copy or "" in (original, copy)
        assert original or copy
    reported, told = assign_splits(copied, CONFIG.model_copy(update={"duplicates": "report"}))
    assert "" not in reported
    assert told.in_several_splits == copies.in_several_splits


def test_a_named_test_image_is_never_set_aside():
    images = [
        image(1, "test"),
        image(2, "train", look=1),
        image(3, "train", look=1),
        image(4, "validation"),
        image(5, "train"),
    ]
    placed, copies = assign_splits(images, CONFIG)
    assert placed == ["test", "", "", "validation", "train"]
    assert copies.groups == [[0, 1, 2]]


def test_one_image_under_two_labels_is_told():
    _, copies = assign_splits(
        [
            image(1, "train", label="cat"),
            image(2, "train", label="dog", look=1),
            image(3, "test"),
        ],
        CONFIG,
    )
    assert copies.conflicts == [[0, 1]]
