"""The figures of the inside of a network: there, of a sensible size, in the right colors,
whatever the names."""

import numpy as np
import pytest
from matplotlib import image as png

from pipeline.reports.evaluation import inspection_figures
from pipeline.reports.evaluation.data import LayerMaps, LayerPatches

HARD_NAMES = [
    "<script>alert('x')</script>",
    "two\nlines",
    "$x_1^{$ \\frac",
    "n" * 200,
    "日本語 \U0001f40d",
    "",
    "plain",
]
BLUE, ORANGE = (36, 96, 200), (239, 138, 44)


def noise(*shape):
    return np.random.default_rng(len(shape)).integers(0, 256, shape, dtype=np.uint8)


def maps_of(images, count, side, values=None):
    found = (
        np.random.default_rng(side).normal(size=(images, count, side, side))
        if values is None
        else values
    )
    return LayerMaps(np.tile(np.arange(count), (images, 1)), np.asarray(found, np.float32))


def patches_of(maps, patches, field, inside=None):
    pixels = noise(maps, patches, field, field, 4)
    pixels[..., 3] = 255
    if inside is not None:
        pixels[:, :, inside:] = 0
    return LayerPatches(np.arange(maps), pixels)


def drawn(path):
    """Return uint8 [height, width, 3] in [0, 255] after a check of the size."""
    pixels = np.round(png.imread(path)[..., :3] * 255).astype(np.uint8)
    height, width, _ = pixels.shape
    assert 50 < height < 2600
    assert 50 < width < 2000
    assert pixels.std() > 1
    return pixels


def holds(pixels, color):
    return bool((pixels == color).all(axis=-1).any())


def test_filters_are_drawn_in_their_colors(tmp_path):
    kernel = np.zeros((5, 5, 3, 3), np.float32)
    kernel[..., 0, 0], kernel[..., 2, 1] = (
        0.2,
        -7.0,
    )  # one filter wants red, one refuses blue, one is dead
    inspection_figures.draw_filters(kernel, 1, tmp_path / "filters.png")
    image = drawn(tmp_path / "filters.png")
    seen = {tuple(np.round(color / 255, 1)) for color in image[image.shape[0] // 2]}
    assert {(1.0, 0.5, 0.5), (0.5, 0.5, 0.0), (0.5, 0.5, 0.5)} <= seen


def test_towers_are_drawn_apart_under_their_names(tmp_path):
    kernel = np.zeros((5, 5, 3, 48), np.float32)
    kernel[..., 0, :24], kernel[..., 2, 24:] = 1, 1
    inspection_figures.draw_filters(kernel, 2, tmp_path / "two.png")
    inspection_figures.draw_filters(kernel, 1, tmp_path / "one.png")
    two, one = drawn(tmp_path / "two.png"), drawn(tmp_path / "one.png")
    red, blue = ((two[..., channel] > 200) & (two[..., 1] < 150) for channel in (0, 2))
    assert np.flatnonzero(red.any(axis=1)).max() + 30 < np.flatnonzero(blue.any(axis=1)).min()
    assert two.shape[0] > one.shape[0]


@pytest.mark.parametrize(("window", "filters"), [(11, 96), (5, 8), (3, 64), (1, 2)])
def test_filters_of_every_size_are_enlarged_by_a_whole_number(tmp_path, window, filters):
    kernel = np.random.default_rng(0).normal(size=(window, window, 3, filters))
    inspection_figures.draw_filters(kernel, 2, tmp_path / "filters.png")
    image, scale = drawn(tmp_path / "filters.png"), 72 // window
    top, left = 18 + 45, 18  # the margin and the line of the name, in dots
    first = image[top : top + scale * window, left : left + scale * window].reshape(
        window, scale, window, scale, 3
    )
    assert (first == first[:, :1, :, :1]).all()
    expected = np.round(255 * (0.5 + 0.5 * kernel[..., 0] / np.abs(kernel[..., 0]).max()))
    assert np.abs(first[:, 0, :, 0] - expected).max() <= 1


@pytest.mark.parametrize("images", [1, 2])
def test_activations_of_layers_of_unlike_sizes(tmp_path, images):
    maps = {
        "conv1": maps_of(images, 8, 32),
        "leaky_relu_with_a_long_name_2": maps_of(images, 3, 7),
        "conv3": maps_of(images, 1, 1),
    }
    inspection_figures.draw_activations(noise(images, 32, 32, 3), maps, tmp_path / "maps.png")
    drawn(tmp_path / "maps.png")


def test_activations_are_black_where_nothing_is_active(tmp_path):
    silent, planted = np.zeros((1, 1, 8, 8)), np.zeros((1, 1, 8, 8))
    planted[..., :4] = 3
    inspection_figures.draw_activations(
        np.full((1, 8, 8, 3), 255, np.uint8),
        {"a": maps_of(1, 1, 8, silent)},
        tmp_path / "silent.png",
    )
    inspection_figures.draw_activations(
        np.full((1, 8, 8, 3), 255, np.uint8),
        {"a": maps_of(1, 1, 8, planted)},
        tmp_path / "planted.png",
    )
    silent, planted = drawn(tmp_path / "silent.png"), drawn(tmp_path / "planted.png")
    dark = [(image.astype(int).sum(axis=-1) < 10).sum() for image in (silent, planted)]
    assert dark[0] == pytest.approx((0.84 * 150) ** 2, rel=0.03)
    assert dark[1] == pytest.approx(dark[0] / 2, rel=0.03)


def test_patches_of_layers(tmp_path):
    layers = {
        "conv1": patches_of(6, 5, 11),
        "conv2": patches_of(2, 5, 99, inside=40),
        "conv3": patches_of(1, 1, 300),
    }
    inspection_figures.draw_patches(layers, tmp_path / "patches.png")
    inspection_figures.draw_patches({"conv1": patches_of(1, 1, 5)}, tmp_path / "one.png")
    assert drawn(tmp_path / "patches.png").shape[1] > drawn(tmp_path / "one.png").shape[1]


def test_patches_are_trimmed_to_the_largest_of_their_layer():
    patches = np.zeros((1, 2, 9, 9, 4), np.uint8)
    patches[0, 0, 5:, :6], patches[0, 1, :2, 7:] = 255, 200  # 4 x 6 and 2 x 2 pixels of an image
    trimmed = inspection_figures._trim_patches(patches)
    assert trimmed.shape == (1, 2, 4, 6, 4)
    expected = np.zeros((2, 4, 6), np.uint8)
    expected[0], expected[1, 1:3, 2:4] = 255, 200
    assert np.array_equal(trimmed[0, ..., 3], expected)
    assert np.array_equal(trimmed[0, ..., 0], expected)


def test_patches_of_windows_that_are_not_square(tmp_path):
    pixels = np.zeros((2, 3, 3, 9, 4), np.uint8)
    pixels[:, :, :2, 4:] = 255
    assert inspection_figures._trim_patches(pixels).shape == (2, 3, 2, 5, 4)
    whole = np.concatenate([noise(2, 3, 20, 12, 3), np.full((2, 3, 20, 12, 1), 255, np.uint8)], -1)
    positions = np.tile(np.float32([[0, 0], [20, 12], [7, 3]]), (2, 1, 1))
    layers = {"window": LayerPatches(np.arange(2), pixels)}
    layers["whole"] = LayerPatches(np.arange(2), whole, positions)
    inspection_figures.draw_patches(layers, tmp_path / "patches.png")
    drawn(tmp_path / "patches.png")


@pytest.mark.parametrize("count", [1, 3, 16])
def test_heat_over_images_with_hard_names(tmp_path, count):
    labels, answers = np.arange(count) % 7, np.arange(count) * 2 % 7
    heat = np.random.default_rng(0).random((count, 32, 32)).astype(np.float32)
    heat[0] = 0
    inspection_figures.draw_grad_cam(
        noise(count, 32, 32, 3), heat, labels, answers, HARD_NAMES, tmp_path / "cam.png"
    )
    image = drawn(tmp_path / "cam.png")
    assert holds(image, BLUE)  # the first is right
    assert holds(image, ORANGE) == (count > 1)


def test_heat_covers_only_what_is_warm():
    pixels, heat = noise(8, 8, 3), np.zeros((8, 8))
    heat[2, 3] = 1
    overlaid = inspection_figures._overlay_heat(pixels, heat)
    gray = overlaid.max(axis=-1) - overlaid.min(axis=-1) < 1e-9
    assert np.argwhere(~gray).tolist() == [[2, 3]]
    assert overlaid[2, 3, 0] > 0.8  # yellow
    assert overlaid.min() >= 0
    assert overlaid.max() <= 1


def test_neighbors_have_frames_by_class(tmp_path):
    images = np.full((2, 32, 32, 3), 128, np.uint8)
    near = np.full((2, 6, 32, 32, 3), 128, np.uint8)
    seen = {}
    for name, others in {
        "same": [[0] * 6, [1] * 6],
        "other": [[1] * 6, [0] * 6],
        "both": [[0, 1] * 3, [1] * 6],
    }.items():
        inspection_figures.draw_neighbors(
            images, np.array([0, 1]), near, np.array(others), ["a", "b"], tmp_path / f"{name}.png"
        )
        image = drawn(tmp_path / f"{name}.png")
        seen[name] = holds(image, BLUE), holds(image, ORANGE)
    assert seen == {"same": (True, False), "other": (False, True), "both": (True, True)}


@pytest.mark.parametrize(("queries", "count", "size"), [(1, 1, 12), (7, 6, 32), (2, 3, 224)])
def test_neighbors_with_hard_names(tmp_path, queries, count, size):
    labels, others = np.arange(queries) % 7, np.arange(queries * count).reshape(queries, count) % 7
    path = tmp_path / "neighbors.png"
    inspection_figures.draw_neighbors(
        noise(queries, size, size, 3),
        labels,
        noise(queries, count, size, size, 3),
        others,
        HARD_NAMES,
        path,
    )
    drawn(path)


def test_one_class_is_enough(tmp_path):
    inspection_figures.draw_neighbors(
        noise(1, 8, 8, 3),
        np.array([0]),
        noise(1, 2, 8, 8, 3),
        np.array([[0, 0]]),
        ["all"],
        tmp_path / "near.png",
    )
    inspection_figures.draw_grad_cam(
        noise(1, 8, 8, 3),
        np.ones((1, 8, 8)),
        np.array([0]),
        np.array([0]),
        ["all"],
        tmp_path / "cam.png",
    )
    assert not holds(drawn(tmp_path / "near.png"), ORANGE)
    assert not holds(drawn(tmp_path / "cam.png"), ORANGE)


def test_the_same_is_drawn_twice_alike(tmp_path):
    for name in ("one.png", "two.png"):
        inspection_figures.draw_activations(
            noise(1, 8, 8, 3), {"conv1": maps_of(1, 2, 8)}, tmp_path / name
        )
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
