"""L: an epoch of a tiny network against Keras `fit`, two logical devices, checkpoints.

python benchmarks/bench_loop.py [--full] [--only ROW]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _harness
import numpy as np

PAIRS = {"L1": ("tiny, ours", "tiny, keras fit"), "L3": ("small, two devices", "small, one device")}
SIDE, CLASSES = 8, 10


def make_split(count: int, side: int) -> Any:
    """Return random images as a training split."""
    from pipeline.data.loader import LoadedSplit

    rng = np.random.default_rng(0)
    labels, pixels = (
        rng.integers(0, CLASSES, count).astype(np.int32),
        rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
    )
    dataset = SimpleNamespace(
        short_side=side,
        class_counts={"train": (1,) * CLASSES},
        channel_mean=(128,) * 3,
        count_images=lambda _: count,
    )
    return LoadedSplit(dataset, "train", labels, tuple(map(str, range(count))), pixels)


def build_tiny_network() -> Any:
    """Return 192 numbers -> 32 -> 16 -> 10."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3), dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            *(layers.Dense(width, "relu") for width in (32, 16)),
            layers.Dense(CLASSES),
        ]
    )


def build_small_network() -> Any:
    """Return the small network on 32 pixels."""
    from pipeline.config.model import ModelConfig
    from pipeline.model.networks import build_network

    return build_network(
        ModelConfig(image_size=32),
        num_classes=CLASSES,
        channel_mean=(128,) * 3,
        channel_std=(60,) * 3,
    )


def make_epochs(network: Callable[[], Any], images: Any, **settings: Any) -> Callable[[], int]:
    """Return whole epochs of the program's loop, opened and ended as training does."""
    import tensorflow as tf

    from pipeline.config.train import TrainConfig
    from pipeline.data.training_batches import iterate_training_epochs
    from pipeline.train import loop
    from pipeline.train.state import prepare_state
    from pipeline.train.step import compile_training
    from pipeline.train.strategy import configure_runtime, list_devices, make_devices

    config = TrainConfig(learning_rate=1e-4, epochs=10_000, **settings)
    configure_runtime(config)
    devices = make_devices()
    if len(list_devices()) != (2 if config.devices == "cpu:2" else 1):
        raise SystemExit(f"expected {config.devices}, received {list_devices()}")
    state = prepare_state(network, config, devices)
    train_steps = compile_training(state, images, config, devices)
    size, steps = network().input_shape[1], len(images) // config.global_batch_size
    epochs = iterate_training_epochs(
        images, config, image_size=size, first=0, opened=devices.distribute_batches
    )

    def run_epoch() -> int:
        iterator = next(epochs)
        for start in range(0, steps, loop._MAX_STEPS_PER_CALL):
            count = min(loop._MAX_STEPS_PER_CALL, steps - start)
            train_steps(iterator, tf.constant(count, tf.int64), tf.constant(start == 0)).numpy()
        return steps * config.global_batch_size

    return run_epoch


def make_keras_fit(images: Any) -> Callable[[], int]:
    """Return epochs of Keras's own loop, as its guide has it, fed from memory."""
    import keras
    import tensorflow as tf

    network = build_tiny_network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(1e-4, momentum=0.9), loss, metrics=["accuracy"])
    data = (
        tf.data.Dataset.from_tensor_slices((images.pixels, images.labels))
        .shuffle(len(images))
        .batch(32, drop_remainder=True)
    )
    data = data.prefetch(tf.data.AUTOTUNE)

    def run_epoch() -> int:
        network.fit(data, epochs=1, verbose=0)
        return len(images) // 32 * 32

    return run_epoch


def make_variant(name: str) -> Callable[[], int]:
    """Return the variant of a name."""
    if name.startswith("tiny"):
        images = make_split(8192, SIDE)
        return (
            make_keras_fit(images)
            if "keras" in name
            else make_epochs(build_tiny_network, images, global_batch_size=32, flip=False)
        )
    return make_epochs(
        build_small_network,
        make_split(512, 32),
        global_batch_size=64,
        devices="cpu:2" if "two" in name else "cpu",
    )


def measure_checkpoint(rounds: int) -> dict[str, Any]:
    """Return the duration of a checkpoint of the one-tower network of 2014.

    Also as a fraction of an epoch of ten minutes.
    """
    from pipeline.config.model import ModelConfig
    from pipeline.config.train import TrainConfig
    from pipeline.model.networks import build_network
    from pipeline.train.state import prepare_state
    from pipeline.train.strategy import Devices, configure_runtime

    config = TrainConfig()
    configure_runtime(config)
    model = ModelConfig(network="owt", image_size=224)
    load = lambda: build_network(  # noqa: E731
        model, num_classes=1000, channel_mean=(128,) * 3, channel_std=(60,) * 3
    )
    state, seconds = prepare_state(load, config, Devices()), []
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        path = Path(folder, "checkpoint.npz")
        for _ in range(rounds):
            started = time.perf_counter()
            state.save_to(path)
            seconds.append(time.perf_counter() - started)
        size = path.stat().st_size
    median = statistics.median(seconds)
    # Training waits until a checkpoint takes no more than this fraction, and saves once more at a
    # stop.
    return {
        "id": "C",
        "what": "a checkpoint of owt",
        "seconds": round(median, 2),
        "mb": round(size / 1e6),
        "ratio": round(median / 600, 5),
    }


def main() -> None:
    """Print one JSON object per row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="more rounds")
    parser.add_argument("--only", choices=(*PAIRS, "C"), help="one row")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _harness.serve_variant(make_variant(options.worker))
        return
    for name, pair in PAIRS.items():
        if options.only in (None, name):
            rates = _harness.alternate_variants(__file__, list(pair), 11 if options.full else 5, [])
            _harness.print_rows({name: pair}, rates)
    if options.only in (None, "C"):
        print(json.dumps(measure_checkpoint(5 if options.full else 3)))


if __name__ == "__main__":
    sys.exit(main())
