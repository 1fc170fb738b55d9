"""E1, E2 and the wait between epochs: training fed from JPEG files against other feeds.

That is against the same training fed from nothing, and against the usual recipe of a tf.data tutorial.
E1 trains the one-tower AlexNet on 224 pixels, 32 a step; E2 the small one on 64 pixels, 64 a step; on the pictures of bench_input.py.
Each variant is in a process of its own, runs the program's own compiled training step, and differs in its batches alone. One JSON object a
line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_input
from _harness import alternate, print_rows, serve

LARGE = {"variant": "owt", "image_size": 224, "batch": 32, "steps": 4}
SMALL = {"variant": "small", "image_size": 64, "batch": 64, "steps": 20}


def trained(folder: Path, size: dict[str, Any], feed: str) -> Callable[[], int]:
    """Return some steps of training; `feed` says where batches come from."""
    import tensorflow as tf

    from pipeline.config import ModelConfig, TrainConfig
    from pipeline.data.loader import load_split, training_batches, training_epochs
    from pipeline.model.alexnet import build_network
    from pipeline.train import loop

    pixels, batch, steps = size["image_size"], size["batch"], size["steps"]
    images = load_split(bench_input.prepared(folder, "encoded", short_side=pixels * 8 // 7), "train", in_memory=False)
    config = TrainConfig(global_batch_size=batch, crop="resized", learning_rate=1e-4, epochs=10_000)
    model = ModelConfig(variant=size["variant"], image_size=pixels)
    state = loop.prepare(lambda: build_network(model, num_classes=2, channel_mean=(128,) * 3, channel_std=(50,) * 3), config, None)
    train_steps = loop._compiled_training(state, images, config, None)

    left: dict[str, Any] = {"steps": 0}
    if feed == "jpeg":
        epochs = training_epochs(images, config, image_size=pixels, first=0)
    elif feed == "synthetic":
        first = next(iter(training_batches(images, config, image_size=pixels, epoch=0)))
        epochs = itertools.repeat(iter(tf.data.Dataset.from_tensors(first).repeat()))
    else:
        epochs = itertools.repeat(iter(tutorial(folder, pixels, batch)))

    def one() -> int:
        if left["steps"] < steps:
            left.update(batches=next(epochs), steps=len(images) // batch)
        left["steps"] -= steps
        train_steps(left["batches"], tf.constant(steps, tf.int64), tf.constant(True)).numpy()
        return steps * batch

    return one


def gaps(folder: Path, epochs: int) -> dict[str, Any]:
    """Return how long training waits for the first batch of an epoch, over many short ones with some work for each batch."""
    import tensorflow as tf

    from pipeline.config import TrainConfig
    from pipeline.data.loader import load_split, training_epochs

    images = load_split(bench_input.prepared(folder, "encoded"), "train", in_memory=False)
    config = TrainConfig(global_batch_size=256, crop="resized", epochs=epochs)
    work = tf.function(lambda batch: tf.reduce_sum(tf.cast(batch["pixels"], tf.float32) ** 2))
    waited, within = [], []
    for batches in training_epochs(images, config, image_size=64, first=0):
        started = time.perf_counter()
        for number, batch in enumerate(batches):
            (within if number else waited).append(1e3 * (time.perf_counter() - started))
            deadline = time.perf_counter() + 0.4  # training that the processor bounds, not the decoding
            while time.perf_counter() < deadline:
                work(batch)
            started = time.perf_counter()
    ordered = sorted(waited[1:])
    return {
        "id": "epoch gap",
        "what": f"wait for the first batch of {len(ordered)} epochs of {len(within) // epochs + 1} batches; within an epoch for comparison",
        "most_milliseconds": round(ordered[-1], 1),
        "median_milliseconds": round(ordered[len(ordered) // 2], 1),
        "within_median_milliseconds": round(sorted(within)[len(within) // 2], 1),
        "within_most_milliseconds": round(max(within), 1),
    }


def tutorial(folder: Path, size: int, batch: int) -> Any:
    """Return batches as tutorials make them: decode_image, resize the whole, crop and mirror, float32, AUTOTUNE everywhere."""
    import tensorflow as tf

    names = bench_input.files(folder)

    def load(name: Any) -> dict[str, Any]:
        image = tf.io.decode_image(tf.io.read_file(name), channels=3, expand_animations=False)
        image = tf.image.resize(tf.cast(image, tf.float32), (size * 8 // 7, size * 8 // 7))
        image = tf.image.random_flip_left_right(tf.image.random_crop(image, (size, size, 3)))
        label = tf.strings.to_number(tf.strings.split(name, os.sep)[-2], tf.int32)
        return {"pixels": (image - 128.0) / 50.0, "labels": label}

    def levels(batch: dict[str, Any]) -> dict[str, Any]:  # the program's network takes uint8
        return {**batch, "pixels": tf.cast(batch["pixels"] * 50.0 + 128.0, tf.uint8)}

    paths = tf.data.Dataset.from_tensor_slices(names).shuffle(len(names)).repeat()
    batches = paths.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(batch, drop_remainder=True).map(levels)
    return batches.prefetch(tf.data.AUTOTUNE)


VARIANTS: dict[str, Callable[[Path], Callable[[], int]]] = {
    "AlexNet, JPEG": lambda folder: trained(folder, LARGE, "jpeg"),
    "AlexNet, synthetic": lambda folder: trained(folder, LARGE, "synthetic"),
    "small, JPEG": lambda folder: trained(folder, SMALL, "jpeg"),
    "small, synthetic": lambda folder: trained(folder, SMALL, "synthetic"),
    "small, tutorial": lambda folder: trained(folder, SMALL, "tutorial"),
}
PAIRS = {
    "E1": ("AlexNet, JPEG", "AlexNet, synthetic"),
    "E2": ("small, JPEG", "small, tutorial"),
    "E2 ceiling": ("small, JPEG", "small, synthetic"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="11 rounds instead of 5")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        sys.path.insert(0, str(Path(__file__).parents[1]))
        if options.worker == "gaps":
            print(json.dumps(gaps(options.folder, 31)))
            return
        serve(VARIANTS[options.worker](options.folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        bench_input.make_pictures(Path(folder) / "pictures")
        rates = alternate(__file__, list(VARIANTS), 11 if options.full else 5, [folder])
        words = [sys.executable, __file__, "--worker", "gaps", folder]
        print(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print_rows(PAIRS, rates)


if __name__ == "__main__":
    main()
