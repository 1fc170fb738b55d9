"""Claim: features grow from edges to textures to objects."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import DatasetArtifact
from pipeline.config.settings import Config
from pipeline.engine.stage import Context
from pipeline.reproduce.arms import Arm, baseline, digest_of_files
from pipeline.reproduce.claims.ablation import image_deviation
from pipeline.reproduce.lab import Experiment, Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion, Figure, Row
from pipeline.reproduce.verdict import Question, find

if TYPE_CHECKING:
    from pipeline.data.loader import LoadedSplit

# Of each image the maps' means over so many positions a side are read, at every depth: a first
# layer has a hundred times as many numbers as the last, and would have the advantage of a longer
# description.
_POSITIONS = 4
_TRAINING_IMAGES, _TEST_IMAGES = 4000, 2000
_AT_ONCE = 250
# The ridge is chosen among these, in units of a feature's variance, by generalized cross-validation
# (Golub, Heath and Wahba, 1979). A smaller one would fit as many features as images exactly, of
# which that can say nothing.
_RIDGES = tuple(10.0 ** (power / 2) for power in range(4, -7, -1))
# For the images: how many are searched for what excites a map, and how many maps and layers are
# shown.
_SEARCHED, _MAPS, _PATCHES, _SHOWN_LAYERS = 512, 3, 5, 3
_NETWORKS = ("trained", "fresh")
_FILTERS_FILE, _PATCHES_FILE = "filters.png", "patches.png"
_SOURCE = (
    "qualitative: Krizhevsky 2012, section 6.1 and figures 3 and 4; the phrase is of Zeiler and"
    " Fergus, 2014, figure 2"
)
_LEARNT = Question(
    what=(
        "error of a linear probe at the first convolution less that at the last hidden layer, less"
        " the same with fresh weights"
    ),
    unit="points",
    published=None,
    source=_SOURCE,
    least=0.0,
)
_DROP = _LEARNT.model_copy(
    update={
        "what": (
            "error of a linear probe at the first convolution less that at the last hidden layer"
        )
    }
)


def arms(config: Config) -> tuple[Arm, ...]:
    """Return the network as it is."""
    return (baseline(config),)


def conclude(lab: Lab, measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare what can be read off at each depth."""
    from pipeline.reports.claim_figures import draw_probes

    taken = min(
        _TRAINING_IMAGES, lab.config.reproduce.images or _TRAINING_IMAGES
    )  # no image that the network was not trained on
    spec = {"training_images": taken, "test_images": _TEST_IMAGES, "positions": _POSITIONS}
    looks = [
        lab.look(f"features-seed{seed}", {**spec, "images": seed == 0}, read_off, trained)
        for seed, trained in enumerate(measured["baseline"])
    ]
    errors = {network: errors_by_depth(looks, network) for network in _NETWORKS}
    draw_probes(
        {"trained": errors["trained"], "fresh weights": errors["fresh"]}, lab.folder / "probes.png"
    )
    drops = {
        network: [
            100 * (by_depth[0] - by_depth[-1])
            for by_depth in zip(*errors[network].values(), strict=True)
        ]
        for network in _NETWORKS
    }
    wrong = [look.wrong() for look in looks]
    images = image_deviation([one[0, 0] for one in wrong], [one[0, -1] for one in wrong])
    # Two differences of the same images: their difference, again by image.
    both = image_deviation(
        [one[0, 0] * 1.0 - one[0, -1] for one in wrong],
        [one[1, 0] * 1.0 - one[1, -1] for one in wrong],
    )
    findings = (
        find(
            _LEARNT,
            [one - other for one, other in zip(drops["trained"], drops["fresh"], strict=True)],
            image_deviation=both,
        ),
        find(_DROP, drops["trained"], image_deviation=images),
    )
    rows = tuple(
        Row(arm=label, values={f"{depth} error": seeds for depth, seeds in errors[network].items()})
        for network, label in zip(_NETWORKS, ("trained", "fresh weights"), strict=True)
    )
    return Conclusion(findings, rows, tuple(_figures(lab, looks[0])), _notes(errors["trained"]))


def errors_by_depth(looks: Sequence[Measurement], network: str) -> dict[str, tuple[float, ...]]:
    """Return by depth the error of each seed's probe, shares in [0, 1].

    Of the `trained` networks or of those with `fresh` weights.
    """
    depths = [name.partition("/")[2] for name in looks[0].numbers if name.startswith(f"{network}/")]
    return {depth: tuple(look.numbers[f"{network}/{depth}"] for look in looks) for depth in depths}


def _figures(lab: Lab, first: Measurement) -> Iterator[Figure]:
    """Yield the images, those of the first seed's network copied from where it was looked at."""
    yield Figure(
        file="probes.png",
        caption=(
            "Test error of a linear classifier that reads one layer's activations alone, in the"
            " trained networks and in the same networks with the weights that their training began"
            " with; each seed a dot."
        ),
    )
    captions = {
        _FILTERS_FILE: (
            "The filters of the first convolution of seed 0, as the paper's figure 3; gray is zero."
        ),
        _PATCHES_FILE: (
            "What excites some maps of the first, the middle and the last convolution of seed 0"
            f" most, among {_SEARCHED} test images, cut to what a unit sees. The maps were chosen"
            " by how much they vary, not by how they look."
        ),
    }
    for file, caption in captions.items():
        if file in first.files:
            shutil.copyfile(first.directory / file, lab.folder / file)
            yield Figure(file=file, caption=caption)


def _notes(errors: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Say what the trend over the depths is, and what a probe does not say."""
    means = {depth: 100 * sum(seeds) / len(seeds) for depth, seeds in errors.items()}
    steps = list(pairwise(means.items()))
    rises = [
        f"{two} ({after - before:+.1f})" for (_, before), (two, after) in steps if after >= before
    ]
    trend = (
        f"From layer to layer the mean error falls at {len(steps) - len(rises)} of {len(steps)}"
        " steps"
    )
    return (
        f"{trend}; not at {', '.join(rises)}." if rises else f"{trend}.",
        (
            "A probe says what can be read off a layer linearly, and with that how far it is on its"
            " way from pixels to classes. Whether a person would call it an edge, a texture or an"
            " object only the images show, and they are of one network."
        ),
        (
            "Probes are fitted to images that the network was trained on, as it was itself, and"
            " scored on others."
        ),
    )


def read_off(
    spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context, trained: Path
) -> Measurement:
    """Fit a probe at each depth of a trained network and of the same network with fresh weights.

    Draw the trained one if asked to.

    `wrong.npy` is bool [2, depths, images], which test images the probes answered wrongly.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn brings it

    from pipeline.data.loader import load_split
    from pipeline.model.weights import load_model

    network = load_model(trained / Measurement.MODEL_FILE)
    # Only a few images are needed, so the splits stay on the disk.
    train, test = (load_split(dataset, split, in_memory=False) for split in ("train", "test"))
    counts = (min(spec["training_images"], len(train)), min(spec["test_images"], len(test)))
    wrong, numbers = list[Any](), dict[str, float]()
    for name, own in zip(_NETWORKS, (network, fresh_copy(network)), strict=True):
        context.progress(len(wrong), len(_NETWORKS), "networks", f"probes, {name} weights")
        size, positions = network.input_shape[1], spec["positions"]
        known, labels = features_by_depth(own, _batches(train, size, counts[0]), positions)
        asked, truth = features_by_depth(own, _batches(test, size, counts[1]), positions)
        # On one thread: a sum's last bits depend on how many share it, and the others would wait
        # spinning beside TensorFlow's.
        with threadpool_limits(1):
            by_depth = {
                depth: probe(known[depth], labels, asked[depth]) != truth for depth in known
            }
        wrong.append(np.stack(list(by_depth.values())))
        numbers |= {f"{name}/{depth}": float(missed.mean()) for depth, missed in by_depth.items()}
        numbers[f"{name} trend"] = float(
            np.polyfit(np.arange(len(by_depth)), wrong[-1].mean(axis=1), 1)[0]
        )
    np.save(context.directory / Measurement.WRONG_FILE, np.stack(wrong))
    files = (
        Measurement.WRONG_FILE,
        *(_draw(network, test, context.directory) if spec["images"] else ()),
    )
    context.run.log_metrics(numbers)
    digest = digest_of_files(context.directory, files)
    return Measurement(
        directory=context.directory, name="features", numbers=numbers, files=files, sha256=digest
    )


def fresh_copy(network: Any) -> Any:
    """Return the same network with the weights that its training began with.

    Each layer's file names its initial ones and their seed.
    """
    import keras

    return keras.models.clone_model(network)


def depths(network: Any) -> dict[str, str]:
    """Return what is probed, from the first on.

    Each convolution and hidden layer, with the layer that gives its activated output.
    """
    import keras

    from pipeline.evaluate.chain import list_depth_layers

    hidden = [layer.name for layer in network.layers if isinstance(layer, keras.layers.Dense)][:-1]
    convolutions = [
        layer.name
        for layer in network.layers
        if hasattr(layer, "kernel") and not isinstance(layer, keras.layers.Dense)
    ]
    return dict(zip(convolutions, list_depth_layers(network), strict=True)) | {
        name: name for name in hidden
    }


def features_by_depth(
    network: Any, batches: Iterable[tuple[Any, Any]], positions: int
) -> tuple[dict[str, Any], Any]:
    """Return what each depth says of some images, float32 [images, features], and their labels, int [images].

    Feature maps are averaged over a grid of positions, as many a side as asked for or as there are.

    Args:
        network: takes uint8 [batch, size, size, 3] in [0, 255], gives logits.
        batches: (pixels, labels), at least one.
        positions: a side.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    names = depths(network)
    part = keras.Model(network.input, [network.get_layer(name).output for name in names.values()])

    @tf.function(input_signature=[tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)])
    def pooled(pixels: Any) -> list[Any]:
        # A model gives a list of one as its only element.
        return [
            _averaged(tf.cast(values, tf.float32), positions)
            for values in keras.tree.flatten(part(pixels, training=False))
        ]

    found, labels = zip(*((pooled(pixels), labels) for pixels, labels in batches), strict=True)
    columns = (np.concatenate(rows) for rows in zip(*found, strict=True))
    return dict(zip(names, columns, strict=True)), np.concatenate(labels)


def _averaged(values: Any, positions: int) -> Any:
    """Return float [batch, features].

    Maps [batch, height, width, maps] averaged over a grid, or units [batch, units] as they are.
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


def probe(known: Any, labels: Any, asked: Any) -> Any:
    """Return the answers of a linear classifier, int [asked].

    Ridge regression on the classes, its ridge by generalized cross-validation.

    Features are standardized, so that no unit counts more for being louder.

    Args:
        known: float [images, features] to learn from.
        labels: int [images] in [0, classes).
        asked: float [images, features] to answer.
    """
    import numpy as np

    mean, spread = known.mean(axis=0, dtype=np.float64), known.std(axis=0, dtype=np.float64)
    scale = np.where(
        spread > 1e-6 * max(spread.max(), 1e-30), spread, np.inf
    )  # a unit that never changes says nothing
    x, y = (known - mean) / scale, np.eye(int(labels.max()) + 1)[labels]
    middle = y.mean(axis=0)
    wide = x.shape[1] > x.shape[0]  # then the images have fewer equations than the features
    target = y - middle if wide else x.T @ (y - middle)
    values, directions = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    values, along = values.clip(0), directions.T @ target
    explained = np.square(along).sum(axis=1) / (
        1 if wide else values.clip(1e-12 * values[-1] + 1e-30)
    )
    ridge = _ridge(values, explained, float(np.square(y - middle).sum()), len(x))
    weights = directions @ (along / (values + ridge)[:, np.newaxis])
    return ((asked - mean) / scale @ (x.T @ weights if wide else weights) + middle).argmax(axis=1)


def _ridge(values: Any, explained: Any, total: float, images: int) -> float:
    """Return the ridge with the least generalized cross-validation error.

    Args:
        values: float64 [directions], eigenvalues of the features' scatter.
        explained: float64 [directions], what each direction holds of the classes' sum of squares.
        total: that sum.
        images: how many were learned from.
    """

    def error(ridge: float) -> float:
        kept = values / (values + ridge)
        left = total - float(explained.sum()) + float((explained * (1 - kept) ** 2).sum())
        free = 1 - (1 + float(kept.sum())) / images  # 1 for the mean
        return left / free**2 if free > 0 else math.inf

    return min((images * ridge for ridge in _RIDGES), key=error)


def _batches(images: LoadedSplit, size: int, count: int) -> Iterator[tuple[Any, Any]]:
    """Yield the first images of a split in their central crops, uint8 [batch, size, size, 3], with their labels."""
    from pipeline.data.evaluation_batches import make_evaluation_batches

    left = count
    for pixels, labels in make_evaluation_batches(
        images, image_size=size, batch_size=_AT_ONCE
    ).take(-(-count // _AT_ONCE)):
        yield pixels[:left], labels[:left].numpy()
        left -= len(labels)


def _draw(network: Any, images: LoadedSplit, folder: Path) -> tuple[str, ...]:
    """Draw the first filters, and what excites maps of the first, the middle and the last convolution; return the files."""
    import numpy as np
    from PIL import Image

    from pipeline.evaluate import chain
    from pipeline.evaluate.explain import find_top_patches
    from pipeline.reports.evaluation.data import LayerPatches
    from pipeline.reports.evaluation.inspection_figures import draw_filters, draw_patches

    if not chain.can_explain(network):
        return ()
    draw_filters(*chain.read_first_filters(network), folder / _FILTERS_FILE)
    pixels = np.concatenate(
        [
            pixels
            for pixels, _ in _batches(images, network.input_shape[1], min(_SEARCHED, len(images)))
        ]
    )
    layers = chain.list_depth_layers(network)
    layers = [
        layers[place]
        for place in sorted(
            {
                round(share * (len(layers) - 1) / (_SHOWN_LAYERS - 1))
                for share in range(_SHOWN_LAYERS)
            }
        )
    ]
    found = find_top_patches(network, pixels, layers, maps=_MAPS, patches=_PATCHES)
    draw_patches(
        {name: LayerPatches(layer.maps, layer.pixels) for name, layer in found.items()},
        folder / _PATCHES_FILE,
    )
    with Image.open(folder / _PATCHES_FILE) as drawn:
        drawn.convert("RGB").save(
            folder / _PATCHES_FILE, optimize=True
        )  # as it was, in fewer bytes: a page holds many images
    return _FILTERS_FILE, _PATCHES_FILE


EXPERIMENT = Experiment(
    "features",
    "Training makes deeper layers know more of the object",
    "Section 6.1 and figures 3 and 4: the first layer learns edges of many frequencies and"
    " orientations and blobs of color, and images with similar activations of the last hidden"
    " layer show similar objects; Zeiler and Fergus, 2014, named what lies between. No number was"
    " published. Here: how well a linear classifier tells the classes by one layer's activations"
    " alone, from the first convolution to the last hidden layer, in the trained network and in the"
    " same one with fresh weights. Each reads a map's means over at most 4 x 4 positions, so that"
    " no depth has an advantage by sheer number; 4,000 training images, scored on 2,000 test"
    " images, or all where there are fewer.",
    arms,
    conclude,
)
