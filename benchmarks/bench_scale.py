"""N1 (with N2 as its `grown_mb`): what an image costs when there are many, in time and in memory.

Listing empty files, ingesting small images, and reading a training split that is streamed: with N
and with 4 N files, each in a process of its own. The images are synthetic JPEGs of 32 x 32 pixels
with noise of their own; time and memory are divided by the number of files. One JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CLASSES = 100


def write_files(folder: Path, count: int, *, empty: bool) -> None:
    """Write files into folders of classes."""
    import numpy as np

    for label in range(CLASSES):
        (folder / f"{label:03}").mkdir(parents=True)
    if empty:
        for index in range(count):
            os.close(
                os.open(
                    folder / f"{index % CLASSES:03}" / f"{index:07}.jpg", os.O_CREAT | os.O_WRONLY
                )
            )
        return
    import tensorflow as tf

    rng = np.random.default_rng(0)
    for start in range(0, count, 1000):
        for index, pixels in enumerate(
            rng.integers(0, 256, (min(1000, count - start), 32, 32, 3), np.uint8), start
        ):
            (folder / f"{index % CLASSES:03}" / f"{index:07}.jpg").write_bytes(
                tf.io.encode_jpeg(pixels).numpy()
            )


def read_resident_megabytes(*, peak: bool = True) -> float:
    """Return this process's resident memory, at its peak or now."""
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure_listing(folder: Path) -> dict[str, Any]:
    """Return the duration and memory of listing a folder."""
    from pipeline.data.folders import list_folder

    before, started = read_resident_megabytes(), time.perf_counter()
    count = len(list_folder(folder).files)
    return {
        "files": count,
        "seconds": time.perf_counter() - started,
        "mb": read_resident_megabytes() - before,
    }


def measure_ingest(folder: Path) -> dict[str, Any]:
    """Return the duration and memory of ingest."""
    from pipeline.config.data import DataConfig
    from pipeline.data.stage import ingest as stage
    from pipeline.engine.stage import Context

    def run_ingest(images: Path, workdir: str) -> Any:
        directory = Path(workdir) / "stages" / "ingest"
        directory.mkdir(parents=True)
        run = SimpleNamespace(key="", metrics=lambda *_, **__: None, tags=lambda *_, **__: None)
        config = DataConfig(
            dataset=str(images), short_side=32, test_fraction=0.05, validation_fraction=0.05
        )
        return stage.function(
            config, Context(directory, run, SimpleNamespace(progressed=lambda *_: None))
        )

    with tempfile.TemporaryDirectory() as workdir:
        run_ingest(
            folder.with_name("warm"), workdir
        )  # libraries are loaded and graphs are compiled
    with tempfile.TemporaryDirectory() as workdir:
        before, cpu, started = read_resident_megabytes(), sum(os.times()[:2]), time.perf_counter()
        record = run_ingest(folder, workdir)
        count = sum(record.count_images(split) for split in record.reads)
        found = {
            "files": count,
            "seconds": time.perf_counter() - started,
            "cpu": sum(os.times()[:2]) - cpu,
            "mb": read_resident_megabytes() - before,
        }
        return found | {"streamed": measure_streaming(record)}


def measure_streaming(record: Any) -> dict[str, Any]:
    """Read the training split twice from its shards; the first time to warm up."""
    from pipeline.config.train import TrainConfig
    from pipeline.data.loader import load_split
    from pipeline.data.training_batches import make_training_batches

    images = load_split(record, "train", in_memory=False)
    for epoch in range(2):
        before, cpu = read_resident_megabytes(peak=False), sum(os.times()[:2])
        most = before
        for batch in make_training_batches(
            images, TrainConfig(global_batch_size=64), image_size=28, epoch=epoch
        ):
            most = (
                max(most, read_resident_megabytes(peak=False)) if batch["labels"][0] == 0 else most
            )
    return {"files": len(images), "cpu": sum(os.times()[:2]) - cpu, "mb": most - before}


def measure_in_process(kind: str, folder: Path) -> dict[str, Any]:
    """Return what a process of its own measured."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", kind, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print one JSON object per row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full",
        action="store_true",
        help="1,000,000 files to list, and 200,000 images to ingest, instead of a tenth",
    )
    parser.add_argument("--worker", choices=["listing", "ingest"], help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        sys.path.insert(0, str(Path(__file__).parents[1]))
        print(
            json.dumps(
                {"listing": measure_listing, "ingest": measure_ingest}[options.worker](
                    options.folder
                )
            )
        )
        return
    factor = 10 if options.full else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "empty", 100_000 * factor, empty=True)
        found = measure_in_process("listing", folder / "empty")
        million = 1e6 / found["files"]
        print(
            json.dumps(
                {
                    "id": "index",
                    "seconds_per_million": round(found["seconds"] * million, 2),
                    "mb_per_million": round(found["mb"] * million),
                    **found,
                }
            )
        )
        write_files(folder / "warm", 600, empty=False)
        sizes = (5_000 * factor, 20_000 * factor)
        for size in sizes:
            write_files(folder / f"{size}", size, empty=False)
        few, many = (measure_in_process("ingest", folder / f"{size}") for size in sizes)
    for name, left, right in (("ingest", few, many), ("N1", few["streamed"], many["streamed"])):
        ratio = right["cpu"] / right["files"] / (left["cpu"] / left["files"])
        grown = right["mb"] - left["mb"]
        more = (
            {"bytes_per_image": round(grown * 2**20 / (right["files"] - left["files"]))}
            if name == "ingest"
            else {}
        )
        rates = {
            side: {
                "files": item["files"],
                "cpu_ms": round(1e3 * item["cpu"] / item["files"], 3),
                "mb": round(item["mb"]),
            }
            for side, item in (("N", left), ("4N", right))
        }
        print(
            json.dumps(
                {
                    "id": name,
                    "what": "CPU seconds an image, 4 N / N",
                    "ratio": round(ratio, 3),
                    "grown_mb": round(grown, 1),
                    **more,
                    **rates,
                }
            )
        )


if __name__ == "__main__":
    main()
