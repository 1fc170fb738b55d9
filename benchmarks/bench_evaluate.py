"""V1 and V2: what scoring costs beyond the network's own work, in time and in memory.

V1 scores a split in memory, 4,096 images of 32 pixels by the small network, at the default batch
size: batches from the loader, a program compiled anew in every round, each image looked at, logits
checked. Its peer is the bare forward pass, compiled once, on the same batches in a list. "V1 file"
also writes the file of predictions. V2 scores 10^3 and 10^6 images of 4 x 4 pixels by a single
layer, into a file, each in a process of its own that has scored some before; the images are made on
the fly, and their names, which the loader holds anyway, beforehand. Growth is the peak of resident
memory above what it was. One JSON object a line.

python benchmarks/bench_evaluate.py [--full] [--only ROW]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import bench_loop
import numpy as np
from _harness import alternate_variants, print_rows, serve_variant

PAIRS = {"V1": ("score", "forward pass"), "V1 file": ("score and write", "forward pass")}
IMAGES, SIDE, CLASSES = 4096, 32, 10
FEW, MANY, V2_SIDE, V2_BATCH = 1_000, 1_000_000, 4, 1_000
# By then the pools of Arrow and of the C library are full: some 28 MB, however many images follow
WARM_UP = 100_000


def make_scoring(
    network: Any, batches: Iterable[Any], keys: Any, batch_size: int, path: Path | None = None
) -> int:
    """Score images with the program's own functions, to a file or not; return their number."""
    from pipeline.evaluate.predictions import write_predictions
    from pipeline.evaluate.scoring import ScoringModel, score_batches

    seen = [0]
    count = lambda done, _wrong: seen.append(done)  # noqa: E731
    chunks = score_batches(
        ScoringModel(network), batches, keys, batch_size=batch_size, progress=count
    )
    if path is None:
        return sum(len(chunk.keys) for chunk in chunks)
    write_predictions(chunks, CLASSES, path)
    return seen[-1]


# -- time ------------------------------------------------------------------------------------------


def make_variant(name: str) -> Callable[[], int]:
    """Return one pass over the split."""
    from pipeline.config.evaluate import EvaluateConfig
    from pipeline.data.evaluation_batches import make_evaluation_batches

    network, images, batch_size = (
        bench_loop.build_small_network(),
        bench_loop.make_split(IMAGES, SIDE),
        EvaluateConfig().global_batch_size,
    )
    batches = make_evaluation_batches(images, image_size=SIDE, batch_size=batch_size)
    if name == "forward pass":
        return make_forward_pass(network, list(batches))

    def run_scoring() -> int:
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
            path = Path(folder, "predictions.parquet") if name == "score and write" else None
            return make_scoring(network, batches, images.keys, batch_size, path)

    return run_scoring


def make_forward_pass(network: Any, batches: list[Any]) -> Callable[[], int]:
    """Return the minimum of scoring: the compiled network on each batch, logits in NumPy."""
    import tensorflow as tf

    forward = tf.function(lambda pixels: tf.cast(network(pixels, training=False), tf.float32))
    return lambda: sum(len(forward(pixels).numpy()) for pixels, _ in batches)


# -- memory ----------------------------------------------------------------------------------------


def build_single_layer() -> Any:
    """Return 4 x 4 pixels -> 10 logits."""
    import keras

    layers = keras.layers
    image = keras.Input((V2_SIDE, V2_SIDE, 3), dtype="uint8")
    return keras.Model(
        image, layers.Dense(CLASSES)(layers.Flatten()(layers.Rescaling(1 / 255)(image)))
    )


def make_batches(count: int) -> Iterator[tuple[Any, Any]]:
    """Yield images and labels, which are not kept in memory."""
    rng = np.random.default_rng(0)
    for _ in range(count // V2_BATCH):
        pixels = rng.integers(0, 256, (V2_BATCH, V2_SIDE, V2_SIDE, 3), dtype=np.uint8)
        yield pixels, rng.integers(0, CLASSES, V2_BATCH).astype(np.int32)


def measure_growth(count: int) -> dict[str, Any]:
    """Return by how much scoring so many images makes this process grow."""
    from pipeline.evaluate.speed import measure_resident_memory

    network, keys = (
        build_single_layer(),
        tuple(f"{index:08}.jpg" for index in range(max(count, WARM_UP))),
    )
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:

        def score(images: int) -> int:
            return make_scoring(
                network,
                make_batches(images),
                keys[:images],
                V2_BATCH,
                Path(folder, "predictions.parquet"),
            )

        score(WARM_UP)
        started = time.perf_counter()
        done, added = measure_resident_memory(lambda: score(count))
    assert done == count, done
    return {
        "predictions": count,
        "mb": None if added is None else added / 1e6,
        "seconds": time.perf_counter() - started,
    }


def measure_in_process(count: int) -> dict[str, Any]:
    """Return what a process of its own measured."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", "growth", str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory() -> dict[str, Any]:
    """Return the growth of memory with the number of images."""
    few, many = measure_in_process(FEW), measure_in_process(MANY)
    row: dict[str, Any] = {
        "id": "V2",
        "what": f"resident growth while {FEW:,} and {MANY:,} images are scored",
        "grown_mb": "skipped",
    }
    if few["mb"] is not None:
        grown = many["mb"] - few["mb"]
        row |= {
            "grown_mb": round(grown, 1),
            "bytes_per_prediction": round(grown * 1e6 / (MANY - FEW), 1),
        }
        row |= {"few_mb": round(few["mb"], 1), "many_mb": round(many["mb"], 1)}
    return row | {"predictions_per_second": round(MANY / many["seconds"])}


def main() -> None:
    """Print one JSON object per row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="more rounds")
    parser.add_argument("--rounds", type=int, help="so many rounds")
    parser.add_argument("--only", choices=("V1", "V2"), help="one row")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("count", nargs="?", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == "growth":
        print(json.dumps(measure_growth(options.count)))
    elif options.worker:
        serve_variant(make_variant(options.worker))
    else:
        if options.only in (None, "V1"):
            names = list(dict.fromkeys(name for pair in PAIRS.values() for name in pair))
            print_rows(
                PAIRS,
                alternate_variants(
                    __file__, names, options.rounds or (11 if options.full else 5), []
                ),
            )
        if options.only in (None, "V2"):
            print(json.dumps(measure_memory()))


if __name__ == "__main__":
    sys.exit(main())
