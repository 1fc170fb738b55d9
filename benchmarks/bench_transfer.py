"""What pretrained features are worth: test error by images per class, paired with a plain probe.

    python benchmarks/bench_transfer.py path/to/folder --counts 5,10,20,50,100,500 --draws 5

The folder has `train` and `test`, each with a folder per class. For every count and draw, other
training images are drawn; all are judged on the same test images. One JSON object per count:

    error              top-1 error of the pipeline's classifier on the features, mean over draws
    probe              the same of a logistic regression, C = 0.1, on the same standardized features
    difference         error - probe, with the 95 % interval from a bootstrap of the test images
    error              top-1 error of the pipeline's classifier on the features, mean of the draws
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

_SUFFIXES = {".jpg", ".jpeg", ".png"}


def draw_files(folder: Path, per_class: int, seed: int, start: int = 0) -> dict[str, list[Path]]:
    """Return some files of each class, in an order that follows from the seed."""
    drawn = {}
    for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in kind.iterdir() if path.suffix.lower() in _SUFFIXES)
        random.Random(f"{seed} {kind.name}").shuffle(files)  # noqa: S311 - no secret
        drawn[kind.name] = files[start : start + per_class]
    return drawn


def link_files(target: Path, **splits: dict[str, list[Path]]) -> None:
    """Make a dataset folder of links to files."""
    for split, classes in splits.items():
        for name, files in classes.items():
            (target / split / name).mkdir(parents=True)
            for file in files:
                (target / split / name / file.name).symlink_to(file.resolve())


def read_features(folder: Path, network: str, work: Path) -> dict[str, tuple]:
    """Return features, labels and keys of the training and the test split of a dataset folder."""
    from pipeline.config.train import TrainConfig
    from pipeline.train.strategy import configure_runtime

    configure_runtime(TrainConfig())
    from pipeline import api
    from pipeline.artifacts import DatasetArtifact, ModelArtifact
    from pipeline.data.loader import load_split
    from pipeline.model.weights import load_model
    from pipeline.train.features import compute_features

    settings = {
        "data.dataset": str(folder),
        "data.validation_fraction": 0.001,
        "data.duplicates": "report",
        "model.network": network,
        "model.weights": "imagenet",
        "tracking.enabled": "no",
    }
    workspace = api.Workspace(work, settings=settings)
    outcomes = api.run(["ingest", "build"], workspace=workspace).outcomes
    dataset, built = (outcome.artifact for outcome in outcomes)
    assert isinstance(dataset, DatasetArtifact)
    assert isinstance(built, ModelArtifact)
    found = {}
    for split in ("train", "test"):
        images = load_split(dataset, split)

        def report(done: int, split: str = split, total: int = len(images)) -> None:
            print(f"{split}: {done} of {total}", file=sys.stderr)

        features = compute_features(
            load_model(built.model_path),
            images,
            work / "features" / split,
            mirror=split == "train",
            report=report,
        )
        found[split] = (features, images.labels, [Path(key).stem for key in images.keys])
    return found


def fit_probe(features: np.ndarray, labels: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Return the answers of the plain probe: standardized features, C = 0.1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    with threadpool_limits(1):
        return probe.fit(features, labels).predict(tested)


def train_from_scratch(drawn: dict, tested: dict, work: Path) -> float:
    """Return the test error of `alexnet/small` from fresh weights."""
    link_files(work / "photos", train=drawn, test=tested)
    command = [sys.executable, "-m", "pipeline", "--json", "--workdir", str(work / "runs"), "run"]
    command += ["--dataset", str(work / "photos"), "--network", "alexnet/small"]
    command += ["--set", "tracking.enabled=no", "--set", "evaluate.report=short"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["test"]["top1_error"]


def main() -> None:
    """Measure every count and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", default="efficientnet_lite0")
    parser.add_argument("--counts", default="5,10,20,50,100,500")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--scratch", type=int, default=0)
    parser.add_argument("--test-images", type=int, default=200, help="per class")
    parser.add_argument("--workdir", type=Path)
    options = parser.parse_args()
    counts = [int(count) for count in options.counts.split(",")]
    work = options.workdir or Path(tempfile.mkdtemp())
    pool = max(counts) * options.draws
    trained = draw_files(options.folder / "train", pool, seed=0)
    tested = draw_files(options.folder / "test", options.test_images, seed=0)
    if not (work / "photos").exists():
        link_files(work / "photos", train=trained, test=tested)
    found = read_features(work / "photos", options.network, work / "runs")
    features, labels, names = found["train"]
    tests, truth, _ = found["test"]
    from pipeline.train.head import fit_head

    index = {name: position for position, name in enumerate(names)}
    for count in counts:
        wrong, probe, scratch = [], [], []
        for draw in range(options.draws):
            start = draw * max(counts)
            files = {name: each[start : start + count] for name, each in trained.items()}
            rows = [
                index[file.stem] for each in files.values() for file in each if file.stem in index
            ]
            head = fit_head(features[rows], labels[rows], len(trained), seed=draw)
            wrong.append(head.compute_logits(tests[:, 0]).argmax(axis=1) != truth)
            probe.append(fit_probe(features[rows, 0], labels[rows], tests[:, 0]) != truth)
            if draw < options.scratch:
                with tempfile.TemporaryDirectory() as folder:
                    scratch.append(train_from_scratch(files, tested, Path(folder)))
        ours, plain = np.mean(wrong, axis=0), np.mean(probe, axis=0)
        rng = np.random.default_rng(0)
        picked = rng.integers(0, len(truth), (2000, len(truth)))
        interval = np.percentile((ours - plain)[picked].mean(axis=1), [2.5, 97.5])
        row = {
            "images_per_class": count,
            "draws": options.draws,
            "test_images": len(truth),
            "error": round(float(ours.mean()), 4),
            "error_by_draw": [round(float(one.mean()), 4) for one in wrong],
            "probe": round(float(plain.mean()), 4),
            "difference": round(float((ours - plain).mean()), 4),
            "interval": [round(float(value), 4) for value in interval],
            "scratch": [round(value, 4) for value in scratch],
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
