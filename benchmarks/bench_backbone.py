"""B1 to B3: EfficientNet-Lite0's forward pass beside PyTorch's and ONNX Runtime's, and features.

B1 classifies 32 images of 224 pixels together, B2 one at a time. Ours is a `tf.function` as
`alexnet predict` and `evaluate` compile it. PyTorch runs `efficientnet_lite_pytorch` with maps'
channels last; ONNX Runtime runs the file that `alexnet export onnx` writes. All have the same
weights and as many threads as processors; each is in a process of its own. B3 is the first phase of
fine-tuning: features of 2,048 prepared images, cut, computed, gathered and written, compilation
included, beside the forward pass alone on the same batches. One JSON object a line.

python benchmarks/bench_backbone.py [--full] [--only ROW]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from _harness import alternate_variants, print_rows, serve_variant

SIZE, BATCHES, IMAGES = 224, {"B1": 32, "B2": 1, "B3": 64}, 64
OURS, TORCH, ONNX, FEATURES = "tf.function", "PyTorch", "ONNX Runtime", "features"
FEATURE_IMAGES = 2048


def make_images(batch: int) -> Any:
    """Return uint8 [batch, 224, 224, 3]."""
    return np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)


def repeat(forward: Callable[[], Any], batch: int) -> Callable[[], int]:
    """Return a variant that classifies 64 images in batches."""

    def run() -> int:
        for _ in range(IMAGES // batch):
            forward()
        return IMAGES

    return run


def load_network() -> Any:
    """Return Lite0 with its weights on ImageNet."""
    from pipeline.config.model import ModelConfig
    from pipeline.model.imagenet import imagenet_class_names
    from pipeline.model.pretrained import load_pretrained_network

    config = ModelConfig(network="efficientnet_lite0", image_size=SIZE, weights="imagenet")
    return load_pretrained_network(config, imagenet_class_names()).network


def make_own_forward(batch: int) -> Callable[[], int]:
    """Return forward passes as the classifier compiles them."""
    import tensorflow as tf

    from pipeline.evaluate.scoring import ScoringModel, compute_tensor_logits

    network = ScoringModel(load_network())
    program = tf.function(lambda pixels: compute_tensor_logits(network, pixels))
    concrete = program.get_concrete_function(tf.TensorSpec((batch, SIZE, SIZE, 3), tf.uint8))
    images = tf.constant(make_images(batch))
    return repeat(lambda: concrete(images).numpy(), batch)


def make_torch_forward(batch: int) -> Callable[[], int]:
    """Return forward passes of PyTorch's code with the same weights."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    from pipeline.model.weight_sources import find_source, find_weights

    source = find_source("efficientnet_lite0")
    assert source is not None
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(find_weights(source).path, weights_only=True))
    model = model.eval().to(memory_format=torch.channels_last)
    images = torch.from_numpy(make_images(batch))

    def forward() -> Any:
        with torch.inference_mode():
            # In memory the channels stay last.
            return model(((images.float() - 127) / 128).permute(0, 3, 1, 2)).numpy()

    return repeat(forward, batch)


def make_onnx_forward(batch: int, scratch: Path) -> Callable[[], int]:
    """Return forward passes of the exported file in ONNX Runtime."""
    import onnxruntime

    from pipeline.export.formats import make_export_network, write_onnx
    from pipeline.model.imagenet import imagenet_class_names
    from pipeline.release.package import Release

    release = Release(
        model_sha256="", class_names=imagenet_class_names(), image_size=SIZE, short_side=256
    )
    opened: Any = SimpleNamespace(model=load_network(), release=release)
    path = write_onnx(make_export_network(opened), release, scratch)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = make_images(batch)
    return repeat(lambda: session.run(["logits"], {"image": images}), batch)


def make_features() -> Callable[[], int]:
    """Return the computation of every feature of a split in memory, from its beginning."""
    import tempfile

    from pipeline.artifacts import DatasetArtifact
    from pipeline.data.loader import LoadedSplit
    from pipeline.train.features import compute_features

    network, side = load_network(), SIZE * 8 // 7
    shape = (FEATURE_IMAGES, side, side, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    dataset: Any = DatasetArtifact.model_construct(
        class_names=("one",), class_counts={"train": (FEATURE_IMAGES,)}, short_side=side, fit="crop"
    )
    labels = np.zeros(FEATURE_IMAGES, np.int32)
    keys = tuple(map(str, range(FEATURE_IMAGES)))
    images = LoadedSplit(dataset, "train", labels, keys, pixels)

    def run() -> int:
        with tempfile.TemporaryDirectory() as folder:
            compute_features(
                network, images, Path(folder) / "features", mirror=False, report=lambda _: None
            )
        return FEATURE_IMAGES

    return run


def make_variant(name: str) -> Callable[[], int]:
    """Return the variant `ROW RUNTIME`."""
    import tempfile

    row, _, runtime = name.partition(" ")
    batch = BATCHES[row]
    if runtime == OURS:
        return make_own_forward(batch)
    if runtime == FEATURES:
        return make_features()
    if runtime == TORCH:
        return make_torch_forward(batch)
    with tempfile.TemporaryDirectory() as scratch:
        return make_onnx_forward(batch, Path(scratch))


def main() -> None:
    """Measure the rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="more rounds")
    parser.add_argument("--only", choices=tuple(BATCHES), help="one row alone")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        serve_variant(make_variant(options.worker))
        return
    for row in (options.only,) if options.only else BATCHES:
        against = (FEATURES, OURS) if row == "B3" else (OURS, TORCH, ONNX)
        names = [f"{row} {runtime}" for runtime in against]
        rates = alternate_variants(__file__, names, 9 if options.full else 5, [])
        pairs = {row: (names[0], names[1])}
        if len(names) > 2:
            pairs[f"{row} onnx"] = (names[0], names[2])
        print_rows(pairs, rates)


if __name__ == "__main__":
    main()
