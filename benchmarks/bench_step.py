"""S1 to S7 and the layers: one optimizer step with the program's own loop.

Against bare TensorFlow, PyTorch and the machine's own limit.

Everything runs on the same batch again and again, so nothing waits for input. Limits are told in
images a second, too: as many as the machine could do if it did nothing but multiply matrices of
4096 x 4096. Each variant is in a process of its own; one JSON object a line.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from _harness import alternate_variants, print_rows, serve_variant

SIZE, CLASSES, GEMM = 224, 1000, 4096
# Multiplications of the one-tower network: all three products of each layer but the gradient by the
# pixels, which no update uses.
MACS, FIRST_LAYER = 714_188_480, 70_276_800
TRAIN_FLOP, FORWARD_FLOP = 2 * (3 * MACS - FIRST_LAYER), 2 * MACS
MEAN = (125.0, 120.0, 115.0)


def make_steps(network: Any, batch: int, precision: str = "float32") -> Callable[[], int]:
    """Return two steps of the program's training on one batch."""
    import tensorflow as tf

    from pipeline.config.train import TrainConfig
    from pipeline.data.loader import LoadedSplit
    from pipeline.data.training_batches import make_training_batches
    from pipeline.train.state import prepare_state
    from pipeline.train.step import compile_training
    from pipeline.train.strategy import Devices

    config = TrainConfig(global_batch_size=batch, learning_rate=1e-4, precision=precision)
    size, classes = network.input_shape[1], network.output_shape[-1]
    rng = np.random.default_rng(0)
    dataset = SimpleNamespace(
        short_side=size,
        class_counts={"train": (1,) * classes},
        channel_mean=MEAN,
        count_images=lambda _split: batch,
    )
    pixels = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    labels = rng.integers(0, classes, batch).astype(np.int32)
    images = LoadedSplit(dataset, "train", labels, tuple(map(str, range(batch))), pixels)
    state = prepare_state(lambda: network, config, Devices())
    train = compile_training(state, images, config, Devices())
    first = next(iter(make_training_batches(images, config, image_size=size, epoch=0)))
    again = iter(tf.data.Dataset.from_tensors(first).repeat())

    def run() -> int:
        train(again, tf.constant(2, tf.int64), tf.constant(True)).numpy()
        return 2 * batch

    return run


def make_own_steps(
    variant: str, batch: int, precision: str = "float32", **settings: Any
) -> Callable[[], int]:
    """Return steps of one of the program's networks."""
    from pipeline.config.model import ModelConfig
    from pipeline.model.networks import build_network

    model = ModelConfig(network=variant, image_size=SIZE, **settings)
    return make_steps(
        build_network(model, num_classes=CLASSES, channel_mean=MEAN, channel_std=(60.0,) * 3),
        batch,
        precision,
    )


def make_naive_steps(batch: int) -> Callable[[], int]:
    """Return steps of the two-tower network as it is usually written.

    With `Conv2D(groups=2)` and TensorFlow's LRN in a Lambda.
    """
    import keras
    import tensorflow as tf

    layers = keras.layers
    norm = lambda: layers.Lambda(  # noqa: E731
        lambda x: tf.nn.local_response_normalization(x, 2, 2.0, 1e-4, 0.75)
    )
    network = keras.Sequential(
        [
            layers.Input((SIZE, SIZE, 3), dtype="uint8"),
            layers.Rescaling(1.0, -120.0),
            layers.ZeroPadding2D(((0, 3), (0, 3))),
        ]
    )
    for filters, window, stride, groups, after in (
        (96, 11, 4, 1, "norm pool"),
        (256, 5, 1, 2, "norm pool"),
        (384, 3, 1, 1, ""),
        (384, 3, 1, 2, ""),
        (256, 3, 1, 2, "pool"),
    ):
        padding = "valid" if stride > 1 else "same"
        network.add(
            layers.Conv2D(filters, window, stride, padding, groups=groups, activation="relu")
        )
        if "norm" in after:
            network.add(norm())
        if "pool" in after:
            network.add(layers.MaxPooling2D(3, 2))
    network.add(layers.Flatten())
    for _ in range(2):
        network.add(layers.Dense(4096, activation="relu"))
        network.add(layers.Dropout(0.5))
    network.add(layers.Dense(CLASSES))
    assert network.count_params() == 60_965_224
    return make_steps(network, batch)


def _list_owt_shapes() -> list[tuple[int, ...]]:
    """Return the shapes of the weights of the one-tower network."""
    kernels = [
        (11, 11, 3, 64),
        (5, 5, 64, 192),
        (3, 3, 192, 384),
        (3, 3, 384, 256),
        (3, 3, 256, 256),
        (9216, 4096),
        (4096, 4096),
        (4096, CLASSES),
    ]
    return [shape for kernel in kernels for shape in (kernel, kernel[-1:])]


def make_bare_steps(batch: int) -> Callable[[], int]:
    """The one-tower network's training step on bare operations, in one compiled function."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    weights = [
        tf.Variable(
            (0.01 * rng.standard_normal(shape, np.float32))
            if len(shape) > 1
            else np.zeros(shape, np.float32)
        )
        for shape in _list_owt_shapes()
    ]
    slots = [tf.Variable(tf.zeros(weight.shape)) for weight in weights]
    images = tf.constant(rng.integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8))
    labels = tf.constant(rng.integers(0, CLASSES, batch).astype(np.int32))

    def forward(x: Any) -> Any:
        x = (tf.cast(x, tf.float32) - 120.0) / 60.0
        x = tf.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
        for layer in range(5):
            strides, padding = (4, "VALID") if layer == 0 else (1, "SAME")
            x = tf.nn.relu(
                tf.nn.bias_add(
                    tf.nn.conv2d(x, weights[2 * layer], strides, padding), weights[2 * layer + 1]
                )
            )
            x = tf.nn.max_pool2d(x, 3, 2, "VALID") if layer in (0, 1, 4) else x
        x = tf.reshape(x, (batch, 9216))
        for layer in (5, 6):
            x = tf.nn.relu(tf.nn.bias_add(x @ weights[2 * layer], weights[2 * layer + 1]))
            x = tf.nn.experimental.stateless_dropout(x, 0.5, seed=(layer, 0))
        return tf.nn.bias_add(x @ weights[14], weights[15])

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, forward(images))
            )
        for weight, slot, gradient in zip(
            weights, slots, tape.gradient(loss, weights), strict=True
        ):
            decayed = gradient + 5e-4 * weight if len(weight.shape) > 1 else gradient
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=weight.handle, accum=slot.handle, lr=1e-4, grad=decayed, momentum=0.9
            )
        return loss

    def run() -> int:
        step().numpy()
        step().numpy()
        return 2 * batch

    return run


def forward(batch: int) -> Callable[[], int]:
    """Return forward passes of the one-tower network."""
    import tensorflow as tf

    from pipeline.config.model import ModelConfig
    from pipeline.model.networks import build_network

    network = build_network(
        ModelConfig(network="owt", image_size=SIZE),
        num_classes=CLASSES,
        channel_mean=MEAN,
        channel_std=(60.0,) * 3,
    )
    images = tf.constant(
        np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)
    )
    score = tf.function(lambda x: network(x, training=False))

    def run() -> int:
        for _ in range(4):
            score(images).numpy()
        return 4 * batch

    return run


def make_torch_steps(batch: int, *, train: bool, bfloat16: bool = False) -> Callable[[], int]:
    """The same in PyTorch, channels last."""
    import torch
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    features = [
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(True),
        nn.MaxPool2d(3, 2),
    ]
    features += [
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(True),
    ]
    features += [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(3, 2), nn.Flatten()]
    head = [
        nn.Linear(9216, 4096),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(4096, CLASSES),
    ]
    network = nn.Sequential(*features, *head).to(memory_format=torch.channels_last)
    rng = np.random.default_rng(0)
    pixels = torch.tensor(rng.integers(0, 256, (batch, 3, SIZE, SIZE), dtype=np.uint8)).to(
        memory_format=torch.channels_last
    )
    labels = torch.tensor(rng.integers(0, CLASSES, batch))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    network.train(train)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = network((pixels.float() - 120.0) / 60.0)
            loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    def run() -> int:
        if not train:
            with torch.inference_mode():
                for _ in range(4):
                    network((pixels.float() - 120.0) / 60.0)
            return 4 * batch
        step()
        step()
        return 2 * batch

    return run


def make_matrix_products(flop_per_image: int, dtype: str = "float32") -> Callable[[], float]:
    """Return the images per call if the machine only multiplied matrices."""
    import tensorflow as tf

    left, right = (
        tf.cast(tf.random.stateless_normal((GEMM, GEMM), (seed, 0)), dtype) for seed in (1, 2)
    )
    multiply = tf.function(lambda: tf.reduce_sum(tf.cast(left @ right, tf.float32)))

    def run() -> float:
        for _ in range(4):
            multiply().numpy()
        return 4 * 2 * GEMM**3 / flop_per_image

    return run


def make_normalization(shape: tuple[int, ...], *, own: bool) -> Callable[[], int]:
    """Return the normalization forward and back."""
    import tensorflow as tf

    from pipeline.model.layers import LocalResponseNormalization

    rng = np.random.default_rng(0)
    x, upstream = (
        tf.constant(rng.normal(0, spread, shape).astype(np.float32)) for spread in (30, 1)
    )
    layer = (
        LocalResponseNormalization()
        if own
        else lambda value: tf.nn.local_response_normalization(value, 2, 2.0, 1e-4, 0.75)
    )

    @tf.function
    def both() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = layer(x)
        return out, tape.gradient(out, x, upstream)

    def run() -> int:
        for _ in range(4):
            both()[1].numpy()
        return 4 * shape[0]

    return run


def make_update(*, own: bool) -> Callable[[], int]:
    """Return updates of the one-tower network's weights, by the program's optimizer or Keras's."""
    import keras
    import tensorflow as tf

    from pipeline.config.train import TrainConfig
    from pipeline.train.optimizer import apply_update, make_optimizer

    config = TrainConfig(learning_rate=1e-4)
    weights = [keras.Variable(np.full(shape, 0.01, np.float32)) for shape in _list_owt_shapes()]
    gradients = [tf.fill(shape, 1e-3) for shape in _list_owt_shapes()]
    optimizer = (
        make_optimizer(config, weights)
        if own
        else keras.optimizers.SGD(1e-4, momentum=0.9, weight_decay=5e-4)
    )
    if not own:
        optimizer.build(weights)
    step = tf.function(
        lambda: (
            apply_update(optimizer, weights, gradients, config, 1)
            if own
            else optimizer.apply(gradients, weights)
        )
    )

    def run() -> int:
        for _ in range(4):
            step()
        weights[0].numpy()
        return 4

    return run


VARIANTS: dict[str, Callable[[], Callable[[], float]]] = {
    "owt": lambda: make_own_steps("owt", 32),
    "owt, bare operations": lambda: make_bare_steps(32),
    "owt, PyTorch channels last": lambda: make_torch_steps(32, train=True),
    "GEMM, training": lambda: make_matrix_products(TRAIN_FLOP),
    "owt, batch 128": lambda: make_own_steps("owt", 128),
    "paper": lambda: make_own_steps("paper", 32, fidelity="paper"),
    "paper, code of 2012": lambda: make_own_steps("paper", 32),
    "paper, groups=2": lambda: make_naive_steps(32),
    "owt, bfloat16": lambda: make_own_steps("owt", 32, "bfloat16"),
    "owt, PyTorch bfloat16": lambda: make_torch_steps(32, train=True, bfloat16=True),
    "owt forward": lambda: forward(32),
    "owt forward, PyTorch channels last": lambda: make_torch_steps(32, train=False),
    "GEMM, forward": lambda: make_matrix_products(FORWARD_FLOP),
    "update": lambda: make_update(own=True),
    "update, Keras": lambda: make_update(own=False),
    "LRN 55 x 55 x 96": lambda: make_normalization((32, 55, 55, 96), own=True),
    "LRN 55 x 55 x 96, TensorFlow": lambda: make_normalization((32, 55, 55, 96), own=False),
    "LRN 27 x 27 x 256": lambda: make_normalization((32, 27, 27, 256), own=True),
    "LRN 27 x 27 x 256, TensorFlow": lambda: make_normalization((32, 27, 27, 256), own=False),
}
PAIRS = {
    "S1": ("owt", "owt, bare operations"),
    "S2": ("owt", "owt, PyTorch channels last"),
    "S3": ("owt", "GEMM, training"),
    "S3 batch 128": ("owt, batch 128", "GEMM, training"),
    "S4": ("paper", "paper, groups=2"),
    "S4 code": ("paper, code of 2012", "paper, groups=2"),
    "S5": ("owt, bfloat16", "owt"),
    "S5 PyTorch": ("owt, bfloat16", "owt, PyTorch bfloat16"),
    "S6": ("owt forward", "owt forward, PyTorch channels last"),
    "S6 GEMM": ("owt forward", "GEMM, forward"),
    "S7": ("update", "update, Keras"),
    "LRN1": ("LRN 55 x 55 x 96", "LRN 55 x 55 x 96, TensorFlow"),
    "LRN2": ("LRN 27 x 27 x 256", "LRN 27 x 27 x 256, TensorFlow"),
}
# What is measured in turns; more at once would not fit into the memory of a small machine.
GROUPS = (
    ("S1", "S2", "S3", "S3 batch 128"),
    ("S4", "S4 code"),
    ("S5", "S5 PyTorch"),
    ("S6", "S6 GEMM"),
    ("S7",),
    ("LRN1", "LRN2"),
)


def main() -> None:
    """Print one JSON object per row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="9 rounds instead of 5")
    parser.add_argument(
        "--only", metavar="ROW", help="one group of rows, by any of them: " + ", ".join(PAIRS)
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        sys.path.insert(0, str(Path(__file__).parents[1]))
        serve_variant(VARIANTS[options.worker]())
        return
    for rows in GROUPS:
        if options.only in (None, *rows):
            names = list(dict.fromkeys(name for row in rows for name in PAIRS[row]))
            rates = alternate_variants(__file__, names, 9 if options.full else 5, [])
            print_rows({row: PAIRS[row] for row in rows}, rates)


if __name__ == "__main__":
    main()
