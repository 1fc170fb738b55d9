import io

import numpy as np
import pytest
from PIL import Image

from pipeline.config.data import DataConfig
from pipeline.data.duplicates import (
    DESCRIPTOR,
    choose_excluded_duplicates,
    describe_images,
    find_label_conflicts,
    find_near_pairs,
    group_duplicates,
)
from pipeline.data.examination import examine_image


def noise(count, seed, sides=(64, 128)):
    """Return images with the 1/f spectrum of photographs, each another size and color."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        height, width = rng.integers(*sides, 2)
        frequency = np.hypot(
            np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
        ) + 1 / max(height, width)
        pixels = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, height, width))) / frequency).real
        pixels = rng.uniform(60, 190, (3, 1, 1)) + 40 * (pixels - pixels.mean()) / pixels.std()
        images.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0)))
    return images


def thumbnails(images):
    return np.stack([np.asarray(image.resize((64, 64), Image.Resampling.BOX)) for image in images])


def encoded(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def scaled(image, factor):
    return image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.BILINEAR
    )


def mirrored(image):
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


CHANGES = {
    "encoded again": lambda image: encoded(image, 50),
    "half": lambda image: scaled(image, 0.5),
    "double": lambda image: scaled(image, 2),
    "mirrored": mirrored,
    "all": lambda image: encoded(mirrored(scaled(image, 0.7)), 70),
}


@pytest.fixture(scope="module")
def clean():
    return noise(300, seed=0)


@pytest.mark.slow
def test_the_audit_finds_copies_of_large_images():
    """As the audit itself looks at files, of which it sees some places only."""
    large = noise(25, seed=1, sides=(500, 1100))
    changes = [
        lambda image: image,
        lambda image: image.resize((157, 133), Image.Resampling.LANCZOS),
        *CHANGES.values(),
    ]
    looks = []
    for change in changes:
        for image in large:
            file = io.BytesIO()
            change(image).save(file, "JPEG", quality=92)
            looks.append(examine_image(file.getvalue(), DataConfig()).descriptor)
    found = group_duplicates(
        np.frombuffer(b"".join(looks), DESCRIPTOR), np.arange(len(looks), dtype=np.uint64)
    ).reshape(len(changes), 25)
    assert len(set(found[0])) == 25
    assert (found == found[0]).mean(1).min() >= 0.95


def test_clean_images_are_alone(clean):
    found = group_duplicates(describe_images(thumbnails(clean)), np.arange(300, dtype=np.uint64))
    assert np.mean(found != np.arange(300)) <= 0.01


@pytest.mark.parametrize("change", CHANGES)
def test_planted_copies_are_found(clean, change):
    both = thumbnails(clean + [CHANGES[change](image) for image in clean])
    found = group_duplicates(describe_images(both), np.arange(600, dtype=np.uint64))
    assert np.mean(found[:300] == found[300:]) >= 0.95
    splits = np.random.default_rng(0).integers(0, 3, 600)
    kept = ~choose_excluded_duplicates(found, splits, np.zeros(600, bool))
    for group in np.unique(found):
        assert len(set(splits[kept & (found == group)])) == 1


def test_equal_pixels_are_one_group_whatever_they_look_like():
    flat = np.zeros((6, 64, 64, 3), np.uint8)
    found = group_duplicates(describe_images(flat), np.asarray([1, 2, 1, 3, 2, 1], np.uint64))
    assert found.tolist() == [0, 1, 0, 3, 1, 0]


def test_color_tells_images_apart(clean):
    image = thumbnails(clean[:1])
    other = np.clip(image.astype(int) + np.asarray([40, 0, -40]), 0, 255).astype(np.uint8)
    looks = describe_images(np.concatenate([image, other, image]))
    assert {
        (int(a), int(b))
        for left, right in find_near_pairs(looks)
        for a, b in zip(left, right, strict=True)
    } <= {(0, 2), (2, 0)}
    assert group_duplicates(looks, np.arange(3, dtype=np.uint64)).tolist() == [0, 1, 0]


@pytest.mark.slow
def test_a_crowd_of_look_alikes_takes_no_square(clean):
    many = np.repeat(thumbnails(clean[:1]), 3000, axis=0)
    pairs = sum(len(left) for left, _ in find_near_pairs(describe_images(many)))
    assert pairs < 3000 * 32 * 2 * 12
    assert set(group_duplicates(describe_images(many), np.arange(3000, dtype=np.uint64))) == {0}


@pytest.mark.parametrize(
    ("splits", "given", "aside"),
    [
        ([0, 0, 2], [0, 0, 0], [0, 0, 1]),
        ([0, 2, 2], [0, 0, 0], [1, 0, 0]),
        ([0, 1, 2], [0, 0, 0], [0, 1, 1]),
        ([0, 0, 2], [0, 0, 1], [1, 1, 0]),
        ([0, 1, 2], [0, 1, 1], [1, 1, 0]),
        ([1, 1, 0], [1, 1, 0], [0, 0, 1]),
        ([0, 0, 0], [0, 0, 0], [0, 0, 0]),
    ],
)
def test_a_group_stays_in_one_split(splits, given, aside):
    found = np.asarray([4, 4, 4, 9])
    assert choose_excluded_duplicates(
        found, np.asarray([*splits, 2]), np.asarray([*given, 0], bool)
    ).tolist() == [
        *aside,
        0,
    ]


def test_conflicts_are_equal_pixels_with_other_labels():
    assert find_label_conflicts(
        np.asarray([5, 6, 5, 6, 7], np.uint64), ["a", "b", "c", "b", "a"]
    ) == [[0, 2]]


@pytest.mark.slow
def test_a_million_images():
    """Random looks, ten of them planted twice: all found, in minutes and within a gigabyte."""
    import resource

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (1_000_000, 8, 8, 3), np.uint8)
    small[-10:] = small[:10]
    looks = describe_in_parts(small)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = group_duplicates(looks, np.arange(len(small), dtype=np.uint64))
    assert (found[-10:] == np.arange(10)).all()
    assert np.count_nonzero(found != np.arange(len(small))) < 10_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000


def describe_in_parts(small):
    parts = (small[start : start + 2_000] for start in range(0, len(small), 2_000))
    return np.concatenate([describe_images(part.repeat(8, 1).repeat(8, 2)) for part in parts])
