"""E1 to E4 and the wait between epochs: training fed from JPEG files.

E1 and E2 train with the program's own compiled step and differ in the batches alone: none to wait
for, or those of the usual recipe of a tf.data tutorial. E1 trains the one-tower AlexNet on 224
pixels, 32 a step; E2 the small one on 64 pixels, 64 a step; on the images of bench_input.py. The
other rows are whole programs, ours being `loop.train_epochs` with all that it does besides. "E2
default" has the split in memory, as `alexnet train` has it where it fits, decoded before the
measured part begins; its peer is the tutorial's recipe in Keras `fit`. E3 is E1's network against
`fit` on the same batches, E4 against PyTorch with its DataLoader; both in bfloat16, too. Either
`fit` is begun once and held between two turns, so that its input is not opened anew in each. Each
variant is in a process of its own; one JSON object a line. A peer that is not installed is reported
as "skipped".
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_input
import bench_step
from _harness import alternate_variants, print_rows, serve_variant

LARGE = {"network": "owt", "image_size": 224, "batch": 32, "steps": 4}
# A quarter of the width: a network for which the input matters on two cores.
SMALL = {"network": "small", "width_multiplier": 0.25, "image_size": 64, "batch": 64, "steps": 20}
EPOCH = {**SMALL, "steps": 48}
CLASSES = 2


def build_sized_network(size: dict[str, Any]) -> Any:
    """Return the network of a size."""
    from pipeline.config.model import ModelConfig
    from pipeline.model.networks import build_network

    model = ModelConfig(
        network=size["network"],
        image_size=size["image_size"],
        alexnet={"width_multiplier": size.get("width_multiplier", 1.0)},
    )
    return build_network(model, num_classes=CLASSES, channel_mean=(128,) * 3, channel_std=(50,) * 3)


def make_own_steps(folder: Path, size: dict[str, Any], feed: str) -> Callable[[], int]:
    """Return some steps of training; `feed` says where batches come from."""
    import tensorflow as tf

    from pipeline.config.train import TrainConfig
    from pipeline.data.loader import load_split
    from pipeline.data.training_batches import iterate_training_epochs, make_training_batches
    from pipeline.train.state import prepare_state
    from pipeline.train.step import compile_training
    from pipeline.train.strategy import Devices

    pixels, batch, steps = size["image_size"], size["batch"], size["steps"]
    images = load_split(
        bench_input.prepare_images(folder, "encoded", short_side=pixels * 8 // 7),
        "train",
        in_memory=False,
    )
    config = TrainConfig(global_batch_size=batch, crop="resized", learning_rate=1e-4, epochs=10_000)
    state = prepare_state(lambda: build_sized_network(size), config, Devices())
    train_steps = compile_training(state, images, config, Devices())

    left: dict[str, Any] = {"steps": 0}
    if feed == "jpeg":
        epochs = iterate_training_epochs(images, config, image_size=pixels, first=0)
    elif feed == "synthetic":
        first = next(iter(make_training_batches(images, config, image_size=pixels, epoch=0)))
        epochs = itertools.repeat(iter(tf.data.Dataset.from_tensors(first).repeat()))
    else:
        epochs = itertools.repeat(iter(make_tutorial_batches(folder, pixels, batch)))

    def run_steps() -> int:
        if left["steps"] < steps:
            left.update(batches=next(epochs), steps=len(images) // batch)
        left["steps"] -= steps
        train_steps(left["batches"], tf.constant(steps, tf.int64), tf.constant(True)).numpy()
        return steps * batch

    return run_steps


def measure_epoch_gaps(folder: Path, epochs: int) -> dict[str, Any]:
    """Return how long training waits for the first batch of an epoch.

    Over many short epochs with some work for each batch.
    """
    import tensorflow as tf

    from pipeline.config.train import TrainConfig
    from pipeline.data.loader import load_split
    from pipeline.data.training_batches import iterate_training_epochs

    images = load_split(bench_input.prepare_images(folder, "encoded"), "train", in_memory=False)
    config = TrainConfig(global_batch_size=256, crop="resized", epochs=epochs)
    work = tf.function(lambda batch: tf.reduce_sum(tf.cast(batch["pixels"], tf.float32) ** 2))
    waited, within = [], []
    for batches in iterate_training_epochs(images, config, image_size=64, first=0):
        started = time.perf_counter()
        for number, batch in enumerate(batches):
            (within if number else waited).append(1e3 * (time.perf_counter() - started))
            deadline = (
                time.perf_counter() + 0.4
            )  # training that the processor bounds, not the decoding
            while time.perf_counter() < deadline:
                work(batch)
            started = time.perf_counter()
    ordered = sorted(waited[1:])
    return {
        "id": "epoch gap",
        "what": (
            f"wait for the first batch of {len(ordered)} epochs of {len(within) // epochs + 1}"
            " batches; within an epoch for comparison"
        ),
        "max_milliseconds": round(ordered[-1], 1),
        "median_milliseconds": round(ordered[len(ordered) // 2], 1),
        "within_median_milliseconds": round(sorted(within)[len(within) // 2], 1),
        "within_max_milliseconds": round(max(within), 1),
    }


def make_tutorial_batches(folder: Path, size: int, batch: int, *, uint8: bool = True) -> Any:
    """Return batches as tutorials make them.

    decode_image, resize the whole, crop and mirror, float32, AUTOTUNE everywhere.
    """
    import tensorflow as tf

    names = bench_input.list_files(folder)

    def load(name: Any) -> dict[str, Any]:
        image = tf.io.decode_image(tf.io.read_file(name), channels=3, expand_animations=False)
        image = tf.image.resize(tf.cast(image, tf.float32), (size * 8 // 7, size * 8 // 7))
        image = tf.image.random_flip_left_right(tf.image.random_crop(image, (size, size, 3)))
        label = tf.strings.to_number(tf.strings.split(name, os.sep)[-2], tf.int32)
        return {"pixels": (image - 128.0) / 50.0, "labels": label}

    def convert_to_uint8(
        batch: dict[str, Any],
    ) -> dict[str, Any]:  # the program's network takes uint8
        return {**batch, "pixels": tf.cast(batch["pixels"] * 50.0 + 128.0, tf.uint8)}

    paths = tf.data.Dataset.from_tensor_slices(names).shuffle(len(names)).repeat()
    batches = paths.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(batch, drop_remainder=True)
    return (batches.map(convert_to_uint8) if uint8 else batches).prefetch(tf.data.AUTOTUNE)


# -- whole programs --------------------------------------------------------------------------------


class TrainingTurns:
    """A training in its own thread that is held between two measurements.

    Args:
        train: trains without end, and calls what it is given with the number of its steps so far.
    """

    def __init__(self, train: Callable[[Callable[[int], None]], Any]):
        self._go, self._held = threading.Semaphore(0), threading.Semaphore(0)
        self._done = self._wanted = 0
        threading.Thread(target=self._run_training, args=(train,), daemon=True).start()

    def _run_training(self, train: Callable[[Callable[[int], None]], Any]) -> None:
        self._go.acquire()
        try:
            train(self._report_steps)
        except BaseException:  # noqa: BLE001 - whoever waits for steps would wait for ever
            traceback.print_exc()
        os._exit(1)

    def _report_steps(self, done: int) -> None:
        self._done = done
        if done >= self._wanted:
            self._held.release()
            self._go.acquire()

    def take(self, steps: int) -> int:
        """Train for some steps, or a few more if several are one call; return their number."""
        before = self._done
        self._wanted = before + steps
        self._go.release()
        self._held.acquire()
        return self._done - before


def make_own_loop(
    folder: Path, size: dict[str, Any], precision: str = "float32", *, in_memory: bool = False
) -> Callable[[], int]:
    """Return some steps of the program's training, its loop as the train stage calls it."""
    from pipeline.config.train import TrainConfig
    from pipeline.data.loader import load_split
    from pipeline.train import loop
    from pipeline.train.state import prepare_state
    from pipeline.train.strategy import configure_runtime, make_devices

    settings = {} if in_memory else {"crop": "resized"}
    # No checkpoint: its clock goes on while others have their turn. What it costs, bench_loop.py
    # says.
    config = TrainConfig(
        global_batch_size=size["batch"],
        learning_rate=1e-4,
        epochs=10_000,
        precision=precision,
        checkpoint_seconds=1e6,
        **settings,
    )
    configure_runtime(config)
    record = bench_input.prepare_images(folder, "encoded", short_side=size["image_size"] * 8 // 7)
    images, validation = (
        load_split(record, split, in_memory=in_memory) for split in ("train", "validation")
    )
    devices = make_devices()
    state, checkpoint = (
        prepare_state(lambda: build_sized_network(size), config, devices),
        folder / f"checkpoint {os.getpid()}.npz",
    )

    def train(report_steps: Callable[[int], None]) -> None:
        training = loop.Training(
            images,
            validation,
            config,
            devices,
            checkpoint,
            report_progress=lambda done, _total, _detail: report_steps(done),
        )
        for _ in loop.train_epochs(state, training):
            pass

    turns = TrainingTurns(train)
    return lambda: turns.take(size["steps"]) * size["batch"]


def make_keras_fit(network: Any, batches: Any, size: dict[str, Any]) -> Callable[[], int]:
    """Return some steps of Keras's `fit` on endless batches of (pixels, labels)."""
    import keras

    class StepCallback(keras.callbacks.Callback):
        """Reports the beginning of a step.

        At its end, the numbers would be asked for and Keras would have to wait.
        """

        def __init__(self, report_steps: Callable[[int], None]):
            super().__init__()
            self.report_steps = report_steps

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
            self.report_steps(batch)

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(
        keras.optimizers.SGD(1e-4, momentum=0.9, weight_decay=5e-4), loss, metrics=["accuracy"]
    )
    turns = TrainingTurns(
        lambda report_steps: network.fit(batches, verbose=0, callbacks=[StepCallback(report_steps)])
    )
    return lambda: turns.take(size["steps"]) * size["batch"]


def make_tutorial_fit(folder: Path, size: dict[str, Any]) -> Callable[[], int]:
    """Return `fit` on a tutorial's batches, which the network takes as they are."""
    import keras

    whole = build_sized_network(size)
    network = keras.Model(whole.get_layer("normalize").output, whole.output)
    batches = make_tutorial_batches(folder, size["image_size"], size["batch"], uint8=False)
    return make_keras_fit(
        network, batches.map(lambda batch: (batch["pixels"], batch["labels"])), size
    )


def make_own_batches_fit(
    folder: Path, size: dict[str, Any], precision: str = "float32"
) -> Callable[[], int]:
    """Return `fit` on the program's batches."""
    from pipeline.config.train import TrainConfig
    from pipeline.data.loader import load_split
    from pipeline.data.training_batches import make_training_batches
    from pipeline.train.state import _set_precision

    pixels = size["image_size"]
    images = load_split(
        bench_input.prepare_images(folder, "encoded", short_side=pixels * 8 // 7),
        "train",
        in_memory=False,
    )
    batches = make_training_batches(
        images,
        TrainConfig(global_batch_size=size["batch"], crop="resized"),
        image_size=pixels,
        epoch=0,
    )
    network = build_sized_network(size)
    _set_precision(network, precision)
    return make_keras_fit(
        network, batches.map(lambda batch: (batch["pixels"], batch["labels"])).repeat(), size
    )


class LabeledFiles(bench_input.ImageFiles):
    """The same dataset with each file's class."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index), int(Path(self.names[index]).parent.name)


def make_torch_training(
    folder: Path, size: dict[str, Any], *, bfloat16: bool = False
) -> Callable[[], int]:
    """Return some steps of PyTorch's training, channels last, fed by its loader."""
    import torch
    from torch.utils.data import DataLoader

    network = inspect.getclosurevars(bench_step.make_torch_steps(1, train=True)).nonlocals[
        "network"
    ]
    network[-1] = torch.nn.Linear(4096, CLASSES)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    workers = {"num_workers": bench_input.CORES, "persistent_workers": True}
    loader = DataLoader(
        LabeledFiles(bench_input.list_files(folder), bench_input.read_with_pil),
        size["batch"],
        shuffle=True,
        drop_last=True,
        **workers,
    )

    def repeat_batches() -> Iterator[Any]:
        while True:
            yield from loader

    batches = repeat_batches()

    def run_steps() -> int:
        for pixels, labels in itertools.islice(batches, size["steps"]):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = network(
                    (pixels.permute(0, 3, 1, 2).float() - 120.0) / 60.0
                )  # a permutation of NHWC is channels last
                loss = torch.nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss.item()
        return size["steps"] * size["batch"]

    return run_steps


VARIANTS: dict[str, Callable[[Path], Callable[[], int]]] = {
    "AlexNet, JPEG": lambda folder: make_own_steps(folder, LARGE, "jpeg"),
    "AlexNet, synthetic": lambda folder: make_own_steps(folder, LARGE, "synthetic"),
    "small, JPEG": lambda folder: make_own_steps(folder, SMALL, "jpeg"),
    "small, synthetic": lambda folder: make_own_steps(folder, SMALL, "synthetic"),
    "small, tutorial": lambda folder: make_own_steps(folder, SMALL, "tutorial"),
    "small, ours, in memory": lambda folder: make_own_loop(folder, EPOCH, in_memory=True),
    "small, tutorial in Keras fit": lambda folder: make_tutorial_fit(folder, EPOCH),
    "AlexNet, ours": lambda folder: make_own_loop(folder, LARGE),
    "AlexNet, Keras fit": lambda folder: make_own_batches_fit(folder, LARGE),
    "AlexNet, PyTorch": lambda folder: make_torch_training(folder, LARGE),
    "AlexNet, ours, bfloat16": lambda folder: make_own_loop(folder, LARGE, "bfloat16"),
    "AlexNet, Keras fit, bfloat16": lambda folder: make_own_batches_fit(folder, LARGE, "bfloat16"),
    "AlexNet, PyTorch, bfloat16": lambda folder: make_torch_training(folder, LARGE, bfloat16=True),
}
PAIRS = {
    "E1": ("AlexNet, JPEG", "AlexNet, synthetic"),
    "E2": ("small, JPEG", "small, tutorial"),
    "E2 ceiling": ("small, JPEG", "small, synthetic"),
    "E2 default": ("small, ours, in memory", "small, tutorial in Keras fit"),
    "E3": ("AlexNet, ours", "AlexNet, Keras fit"),
    "E4": ("AlexNet, ours", "AlexNet, PyTorch"),
    "E3 bfloat16": ("AlexNet, ours, bfloat16", "AlexNet, Keras fit, bfloat16"),
    "E4 bfloat16": ("AlexNet, ours, bfloat16", "AlexNet, PyTorch, bfloat16"),
}
# What is measured in turns; more at once would not fit into the memory of a small machine.
GROUPS = (("E1", "E2", "E2 ceiling"), ("E2 default",), ("E3", "E4"), ("E3 bfloat16", "E4 bfloat16"))


def main() -> None:
    """Print one JSON object per row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="11 rounds instead of 5")
    parser.add_argument(
        "--only", choices=(*PAIRS, "gaps"), help="one group of rows, by any of them"
    )
    parser.add_argument("--rounds", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        sys.path.insert(0, str(Path(__file__).parents[1]))
        if options.worker == "gaps":
            print(json.dumps(measure_epoch_gaps(options.folder, 31)))
            return
        serve_variant(VARIANTS[options.worker](options.folder))
        return
    rounds = options.rounds or (11 if options.full else 5)
    with tempfile.TemporaryDirectory() as folder:
        bench_input.make_images(Path(folder) / "images")
        for rows in GROUPS:
            if options.only in (None, *rows):
                names = list(dict.fromkeys(name for row in rows for name in PAIRS[row]))
                print_rows(
                    {row: PAIRS[row] for row in rows},
                    alternate_variants(__file__, names, rounds, [folder]),
                )
        if options.only in (None, "gaps"):
            arguments = [sys.executable, __file__, "--worker", "gaps", folder]
            print(
                subprocess.run(
                    arguments, check=True, capture_output=True, text=True
                ).stdout.splitlines()[-1]
            )


if __name__ == "__main__":
    main()
