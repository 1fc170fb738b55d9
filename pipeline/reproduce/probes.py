"""Linear probes: how well a linear classifier tells the classes from one layer's activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import DatasetArtifact
from pipeline.engine.stage import Context
from pipeline.image_size import ImageSize
from pipeline.reports.store import ARRAYS_FILE, VALUES_FILE, write_report_data
from pipeline.reproduce.measurement import Measurement, hash_files

if TYPE_CHECKING:
    from pipeline.arrays import Array, Booleans, Floats, Images, Integers, Labels, Network, Tensor
    from pipeline.data.loader import LoadedSplit

# The networks that are probed: the trained one, and the same with the weights before training.
NETWORKS = ("trained", "fresh")
# Test images that are searched for the patches that excite a map most.
SEARCHED_IMAGES = 512
_SHOWN_MAPS, _SHOWN_PATCHES, _SHOWN_LAYERS = 3, 5, 3
_PROBE_BATCH = 250
# The ridge is chosen among these, in units of a feature's variance, by generalized cross-validation
# (Golub, Heath and Wahba, 1979). A smaller one would fit as many features as images exactly, and
# the criterion is undefined there.
_RIDGES = tuple(10.0 ** (power / 2) for power in range(4, -7, -1))


def measure_probes(
    spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context, trained: Path
) -> Measurement:
    """Fit a probe at each depth of a trained network and of the same network with fresh weights.

    `wrong.npy` is bool [2, depths, images]: which test images the probes misclassified.

    Args:
        spec: `training_images`, `test_images`, `positions` per side, and whether to store the
            `features` of the trained network for its figures.
        dataset: the prepared dataset.
        context: of the experiment.
        trained: folder of the trained network.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits  # scikit-learn brings it

    from pipeline.data.loader import load_split
    from pipeline.model.weights import load_model

    network = load_model(trained / Measurement.MODEL_FILE)
    # Only a few images are needed, so the splits stay on the disk.
    train, test = (load_split(dataset, split, in_memory=False) for split in ("train", "test"))
    counts = (min(spec["training_images"], len(train)), min(spec["test_images"], len(test)))
    wrong: list[Booleans] = []
    numbers: dict[str, float] = {}
    for name, own in zip(NETWORKS, (network, copy_fresh_network(network)), strict=True):
        context.progress(len(wrong), len(NETWORKS), "networks", f"probes, {name} weights")
        size, positions = network.input_shape[1:3], spec["positions"]
        known, labels = compute_probe_features(
            own, _read_batches(train, size, counts[0]), positions
        )
        asked, truth = compute_probe_features(own, _read_batches(test, size, counts[1]), positions)
        # On one thread: the last bits of a sum depend on the number of threads, and the others
        # would spin beside TensorFlow's.
        with threadpool_limits(1):
            by_depth = {
                depth: classify_linearly(known[depth], labels, asked[depth]) != truth
                for depth in known
            }
        wrong.append(np.stack(list(by_depth.values())))
        numbers |= {f"{name}/{depth}": float(missed.mean()) for depth, missed in by_depth.items()}
        numbers[f"{name} trend"] = float(
            np.polyfit(np.arange(len(by_depth)), wrong[-1].mean(axis=1), 1)[0]
        )
    np.save(context.directory / Measurement.WRONG_FILE, np.stack(wrong))
    files: tuple[str, ...] = (Measurement.WRONG_FILE,)
    if spec["features"]:
        _store_features(network, test, context.directory)
        files += (VALUES_FILE, ARRAYS_FILE)
    context.run.log_metrics(numbers)
    digest = hash_files(context.directory, files)
    return Measurement(
        directory=context.directory, name="features", numbers=numbers, files=files, sha256=digest
    )


def copy_fresh_network(network: Network) -> Network:
    """Return the same network with the weights that its training began with.

    The file of the network holds each layer's initializer with its seed.
    """
    import keras

    return keras.models.clone_model(network)


def list_probed_layers(network: Network) -> dict[str, str]:
    """Return each convolution and hidden layer with the layer of its activated output, in order."""
    import keras

    from pipeline.evaluate.map_layers import list_depth_layers

    hidden = [layer.name for layer in network.layers if isinstance(layer, keras.layers.Dense)][:-1]
    convolutions = [
        layer.name
        for layer in network.layers
        if hasattr(layer, "kernel") and not isinstance(layer, keras.layers.Dense)
    ]
    return dict(zip(convolutions, list_depth_layers(network), strict=True)) | {
        name: name for name in hidden
    }


def compute_probe_features(
    network: Network, batches: Iterable[tuple[Tensor, Labels]], positions: int
) -> tuple[dict[str, Floats], Labels]:
    """Return the features of images at each depth, float32 [images, features], and their labels.

    Feature maps are averaged over a grid of positions.

    Args:
        network: takes uint8 [batch, height, width, 3] in [0, 255], gives logits.
        batches: (pixels, labels), at least one.
        positions: per side of the grid; fewer where a map has fewer.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    names = list_probed_layers(network)
    part = keras.Model(network.input, [network.get_layer(name).output for name in names.values()])

    @tf.function(input_signature=[tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)])
    def compute_pooled(pixels: Tensor) -> list[Tensor]:
        # A model gives a list of one as its only element.
        return [
            average_over_grid(tf.cast(values, tf.float32), positions)
            for values in keras.tree.flatten(part(pixels, training=False))
        ]

    features, labels = zip(
        *((compute_pooled(pixels), labels) for pixels, labels in batches), strict=True
    )
    columns = (np.concatenate(rows) for rows in zip(*features, strict=True))
    return dict(zip(names, columns, strict=True)), np.concatenate(labels)


def average_over_grid(values: Tensor, positions: int) -> Tensor:
    """Return features, float [batch, features]: maps averaged over a grid, or units unchanged.

    Args:
        values: float, maps [batch, height, width, maps] or units [batch, units].
        positions: per side of the grid.
    """
    import numpy as np
    import tensorflow as tf

    if len(values.shape) == 2:
        return values
    windows = []
    for side in values.shape[1:3]:
        edges = np.linspace(0, side, min(positions, side) + 1)
        weights = np.zeros((len(edges) - 1, side), np.float32)
        for row, start, end in zip(weights, edges[:-1], edges[1:], strict=True):
            row[math.floor(start) : math.ceil(end)] = 1 / (math.ceil(end) - math.floor(start))
        windows.append(weights)
    grid = tf.einsum("bhwc,ph,qw->bpqc", values, *windows)
    return tf.reshape(grid, (-1, math.prod(grid.shape[1:])))


def classify_linearly(known: Floats, labels: Labels, asked: Floats) -> Integers:
    """Return the answers of ridge regression on the classes, int [asked].

    The ridge is chosen by generalized cross-validation. Features are standardized, so that no unit
    counts more for its larger scale.

    Args:
        known: float [images, features] to learn from.
        labels: int [images] in [0, classes).
        asked: float [images, features] to classify.
    """
    import numpy as np

    mean, std = known.mean(axis=0, dtype=np.float64), known.std(axis=0, dtype=np.float64)
    # A unit that never changes is left out.
    scale = np.where(std > 1e-6 * max(std.max(), 1e-30), std, np.inf)
    x, y = (known - mean) / scale, np.eye(int(labels.max()) + 1)[labels]
    middle = y.mean(axis=0)
    wide = x.shape[1] > x.shape[0]  # then the images give fewer equations than the features
    target = y - middle if wide else x.T @ (y - middle)
    values, directions = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    values, along = values.clip(0), directions.T @ target
    explained = np.square(along).sum(axis=1) / (
        1 if wide else values.clip(1e-12 * values[-1] + 1e-30)
    )
    ridge = _choose_ridge(values, explained, float(np.square(y - middle).sum()), len(x))
    weights = directions @ (along / (values + ridge)[:, np.newaxis])
    scores = (asked - mean) / scale @ (x.T @ weights if wide else weights) + middle
    answers: Integers = scores.argmax(axis=1)
    return answers


def _choose_ridge(values: Floats, explained: Floats, total: float, images: int) -> float:
    """Return the ridge with the least generalized cross-validation error.

    Args:
        values: float64 [directions], eigenvalues of the features' scatter.
        explained: float64 [directions], the part of each direction in the classes' sum of squares.
        total: that sum.
        images: number of images that were learned from.
    """

    def compute_error(ridge: float) -> float:
        kept = values / (values + ridge)
        left = total - float(explained.sum()) + float((explained * (1 - kept) ** 2).sum())
        free = 1 - (1 + float(kept.sum())) / images  # 1 for the mean
        return left / free**2 if free > 0 else math.inf

    return min((images * ridge for ridge in _RIDGES), key=compute_error)


def _read_batches(
    images: LoadedSplit, size: ImageSize, count: int
) -> Iterator[tuple[Tensor, Labels]]:
    """Yield the first images of a split with their labels.

    Pixels are those of the central crops, uint8 [batch, height, width, 3] in [0, 255].
    """
    from pipeline.data.evaluation_batches import make_evaluation_batches

    left = count
    for pixels, labels in make_evaluation_batches(
        images, image_size=size, batch_size=_PROBE_BATCH
    ).take(-(-count // _PROBE_BATCH)):
        yield pixels[:left], labels[:left].numpy()
        left -= len(labels)


def _store_features(network: Network, images: LoadedSplit, folder: Path) -> None:
    """Store the first filters and the patches that excite maps of three layers most.

    `layers` is empty where the network is none that can be explained.
    """
    import numpy as np

    from pipeline.evaluate import map_layers
    from pipeline.evaluate.explain import find_top_patches

    layers = map_layers.list_depth_layers(network)
    if not layers or map_layers.find_first_convolution(network) is None:
        write_report_data(folder, {"layers": []})
        return
    kernel, towers = map_layers.read_first_filters(network)
    count = min(SEARCHED_IMAGES, len(images))
    pixels: Images = np.concatenate(
        [pixels for pixels, _ in _read_batches(images, network.input_shape[1:3], count)]
    )
    steps = range(_SHOWN_LAYERS)
    indices = sorted({round(step * (len(layers) - 1) / (_SHOWN_LAYERS - 1)) for step in steps})
    shown = [layers[index] for index in indices]
    found = find_top_patches(network, pixels, shown, maps=_SHOWN_MAPS, patches=_SHOWN_PATCHES)
    arrays: dict[str, Array] = {"filters": kernel}
    for name, patches in found.items():
        arrays |= {f"{name} maps": patches.maps, f"{name} patches": patches.pixels}
    write_report_data(folder, {"layers": list(found), "towers": towers}, arrays)
