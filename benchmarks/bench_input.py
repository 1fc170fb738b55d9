"""I1-I6: the input pipeline against PyTorch's loader and the bare decoder.

All read the same JPEG files on the same cores.

384 images are made from a seed: 1/f noise and shapes, sides of 256-500 pixels, quality 90; each is
there under eight names, so that an epoch is long enough. Every variant reads them for a second or
more in each round; prints one JSON object a line. A peer that is not installed is reported as
"skipped".
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _harness import alternate_variants, print_rows, serve_variant

IMAGES, NAMES, SIDE, SIZE, BATCH = 384, 8, 256, 224, 64
CORES = len(os.sched_getaffinity(0))


def make_images(folder: Path) -> None:
    """Write natural-like JPEG files of two classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        height, width = rng.integers(256, 501, 2)
        frequency = np.hypot(
            np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
        ) + 1 / max(height, width)
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, height, width))) / frequency).real
        pixels = 128 + 45 * (noise - noise.mean()) / noise.std()
        for _ in range(6):
            top, left, size = (
                rng.integers(0, height - 40),
                rng.integers(0, width - 40),
                rng.integers(20, 120),
            )
            pixels[:, top : top + size, left : left + size] = rng.integers(0, 256, (3, 1, 1))
        path = folder / f"{index % 2}" / f"{index:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0)).save(
            path, quality=90
        )
        for name in range(1, NAMES):
            path.with_name(f"{index:04d}_{name}.jpg").hardlink_to(path)


def list_files(folder: Path) -> list[str]:
    """Return the paths of the JPEG files."""
    return sorted(str(path) for path in folder.glob("images/*/*.jpg"))


# -- ours ------------------------------------------------------------------------------------------


def prepare_images(folder: Path, store: str, short_side: int = SIDE) -> Any:
    """Return the record of the dataset, prepared for this process alone."""
    from types import SimpleNamespace

    from pipeline.config.data import DataConfig
    from pipeline.data.stage import ingest
    from pipeline.engine.stage import Context

    directory = folder / f"{store} {os.getpid()}" / "stages" / "ingest"
    directory.mkdir(parents=True)
    run = SimpleNamespace(key="", metrics=lambda *_, **__: None, tags=lambda *_, **__: None)
    config = DataConfig(
        dataset=str(folder / "images"),
        short_side=short_side,
        store=store,
        duplicates="report",
        test_fraction=0.01,
        validation_fraction=0.01,
    )
    return ingest.function(
        config, Context(directory, run, SimpleNamespace(progressed=lambda *_: None))
    )


def make_own_input(
    folder: Path, store: str, *, in_memory: bool = False, apply: bool = False, **how: Any
) -> Callable[[], int]:
    """Return one pass over the training images as the train stage reads them.

    Args:
        apply: include what it does to the pixels on its device.
    """
    import tensorflow as tf

    from pipeline.config.train import TrainConfig
    from pipeline.data.augment import augment_batch
    from pipeline.data.loader import load_split
    from pipeline.data.training_batches import iterate_training_epochs

    config = TrainConfig(global_batch_size=BATCH, epochs=10_000, **how)
    images = load_split(prepare_images(folder, store), "train", in_memory=in_memory)
    device = tf.function(lambda batch: augment_batch(batch, config, images.dataset)[0])
    epochs = iterate_training_epochs(images, config, image_size=SIZE, first=0)

    def run_batches() -> int:
        batches = itertools.islice(
            next(epochs), len(images) // BATCH
        )  # small epochs share an iterator
        return sum(len(device(batch) if apply else batch["pixels"]) for batch in batches)

    return lambda: sum(run_batches() for _ in range(8 if images.pixels is not None else 1))


def make_keras_input(folder: Path) -> Callable[[], int]:
    """Return the same crops and mirroring by Keras's preprocessing layers, in memory."""
    import keras
    import tensorflow as tf

    from pipeline.data.loader import load_split
    from pipeline.data.shards import make_deterministic_options

    images = load_split(prepare_images(folder, "encoded"), "train", in_memory=True)
    layers = keras.Sequential(
        [keras.layers.RandomCrop(SIZE, SIZE), keras.layers.RandomFlip("horizontal")]
    )
    shuffled = (
        tf.data.Dataset.from_tensor_slices(images.pixels)
        .shuffle(len(images))
        .batch(BATCH, drop_remainder=True)
    )
    batches = shuffled.map(
        lambda batch: tf.cast(layers(batch, training=True), tf.uint8), num_parallel_calls=CORES
    ).prefetch(2)
    batches = batches.with_options(make_deterministic_options())
    return lambda: sum(len(batch) for batch in batches)


# -- peers -----------------------------------------------------------------------------------------


class ImageFiles:
    """A PyTorch dataset of a list of files."""

    def __init__(self, names: list[str], read: Callable[[str, Any], Any]):
        self.names, self.read = names, read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        import torch

        return torch.from_numpy(
            np.ascontiguousarray(self.read(self.names[index], np.random.default_rng()))
        )


def draw_window(height: int, width: int, rng: Any) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random crop, as torchvision's RandomResizedCrop.

    Its area is 8-100 % of the image.
    """
    for _ in range(10):
        area, aspect = (
            height * width * rng.uniform(0.08, 1),
            np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))),
        )
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    return 0, 0, height, width


def read_with_pil(name: str, rng: Any) -> Any:
    """Return a random crop of a JPEG file, decoded and resized by Pillow."""
    from PIL import Image

    with Image.open(name) as file:
        image = file.convert("RGB")
    top, left, height, width = draw_window(image.height, image.width, rng)
    image = image.resize(
        (SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    return np.asarray(image)[:, :: 1 - 2 * int(rng.integers(2))]


def read_with_cv2(name: str, rng: Any) -> Any:
    """Return a random crop of a JPEG file, decoded by simplejpeg and resized by OpenCV."""
    import cv2
    import simplejpeg

    pixels = simplejpeg.decode_jpeg(Path(name).read_bytes(), fastdct=False, fastupsample=False)
    top, left, height, width = draw_window(*pixels.shape[:2], rng)
    return cv2.resize(pixels[top : top + height, left : left + width], (SIZE, SIZE))[
        :, :: 1 - 2 * int(rng.integers(2))
    ]


def make_torch_input(folder: Path, read: Callable[[str, Any], Any]) -> Callable[[], int]:
    """Return one pass of PyTorch's loader over the files."""
    from torch.utils.data import DataLoader

    read(list_files(folder)[0], np.random.default_rng(0))  # a missing library is known now
    loader = DataLoader(
        ImageFiles(list_files(folder), read),
        BATCH,
        shuffle=True,
        num_workers=CORES,
        drop_last=True,
        persistent_workers=True,
    )
    return lambda: sum(len(batch) for batch in loader)


def make_decoder(folder: Path) -> Callable[[], int]:
    """Return a full decode of every file from memory by libjpeg-turbo, one thread a core."""
    from concurrent.futures import ThreadPoolExecutor

    import simplejpeg

    encoded = [Path(name).read_bytes() for name in list_files(folder)]
    pool = ThreadPoolExecutor(CORES)
    return lambda: sum(
        1
        for _ in pool.map(
            partial(simplejpeg.decode_jpeg, fastdct=False, fastupsample=False), encoded
        )
    )


def make_copier(folder: Path) -> Callable[[], int]:  # noqa: ARG001 - every variant gets the folder
    """Return copying prepared images into batches: what the memory allows."""
    images = np.random.default_rng(0).integers(0, 256, (IMAGES * NAMES, SIDE, SIDE, 3), np.uint8)
    batch = np.empty((BATCH, SIDE, SIDE, 3), np.uint8)

    def run_batches() -> Iterator[int]:
        for start in range(0, len(images), BATCH):
            np.copyto(batch, images[start : start + BATCH])
            yield BATCH

    return lambda: sum(sum(run_batches()) for _ in range(8))


def make_audit(folder: Path) -> Callable[[], int]:
    """Return one audit of every file that remembers nothing."""
    from pipeline.config.data import DataConfig
    from pipeline.data.audit import audit_files
    from pipeline.data.folders import list_folder

    config, entries = DataConfig(), list_folder(folder / "images").files

    def run_batches() -> int:
        with tempfile.TemporaryDirectory() as memory:
            return len(
                audit_files(entries, Path(memory) / "memory.sqlite", config, lambda *_: None)
            )

    return run_batches


VARIANTS: dict[str, Callable[[Path], Callable[[], int]]] = {
    "jpeg resized crop": lambda folder: make_own_input(folder, "encoded", crop="resized"),
    "jpeg random crop": lambda folder: make_own_input(folder, "encoded", apply=True),
    "jpeg random crop, color": lambda folder: make_own_input(
        folder, "encoded", apply=True, color_noise=0.1
    ),
    "memory random crop": lambda folder: make_own_input(folder, "encoded", in_memory=True),
    "memory resized crop": lambda folder: make_own_input(
        folder, "encoded", in_memory=True, crop="resized"
    ),
    "pixels random crop": lambda folder: make_own_input(folder, "pixels"),
    "pixels random crop, color": lambda folder: make_own_input(folder, "pixels", color_noise=0.1),
    "pixels random crop, color, applied": lambda folder: make_own_input(
        folder, "pixels", apply=True, color_noise=0.1
    ),
    "keras layers": make_keras_input,
    "torch, PIL": lambda folder: make_torch_input(folder, read_with_pil),
    "torch, simplejpeg and cv2": lambda folder: make_torch_input(folder, read_with_cv2),
    "libjpeg-turbo decode": make_decoder,
    "memory copy": make_copier,
    "audit": make_audit,
}
PAIRS = {
    "I1": ("jpeg resized crop", "torch, PIL"),
    "I2": ("jpeg resized crop", "torch, simplejpeg and cv2"),
    "I3": ("jpeg resized crop", "libjpeg-turbo decode"),
    "I4": ("memory random crop", "jpeg random crop"),
    "I4 resized": ("memory resized crop", "jpeg resized crop"),
    "I4 pixels": ("pixels random crop", "jpeg random crop"),
    "I5": ("memory random crop", "memory copy"),
    "I6": ("memory random crop", "keras layers"),
    "color noise": ("jpeg random crop, color", "jpeg random crop"),
    "color noise, pixels": ("pixels random crop, color", "pixels random crop"),
    "color noise, pixels, applied": ("pixels random crop, color, applied", "pixels random crop"),
    "audit": ("audit", "libjpeg-turbo decode"),
}


def main() -> None:
    """Print one JSON object per row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="11 rounds instead of 5")
    parser.add_argument(
        "--only", action="append", choices=list(PAIRS), help="measure this row, and others so named"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        sys.path.insert(0, str(Path(__file__).parents[1]))
        serve_variant(VARIANTS[options.worker](options.folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "images")
        pairs = {
            name: pair for name, pair in PAIRS.items() if not options.only or name in options.only
        }
        needed = [name for name in VARIANTS if any(name in pair for pair in pairs.values())]
        rates = alternate_variants(__file__, needed, 11 if options.full else 5, [folder])
    print_rows(pairs, rates)


if __name__ == "__main__":
    main()
