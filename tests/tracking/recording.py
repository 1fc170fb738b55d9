"""Runs for the tests of recording, and what the store has of them."""

from pathlib import Path

from pipeline.artifacts import DatasetArtifact, TrainingResult, file_sha256
from pipeline.config.resolution import resolve
from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.store import connect_store
from pipeline.tracking.tracker import MlflowTracker
from tests.networks import model_config

RESOLVED = resolve(overrides={"train.epochs": "3"}, environment={})


def client(workdir):
    return connect_store(TrackingConfig(), workdir)


def runs(workdir, experiment="alexnet"):
    from mlflow.entities import ViewType

    store = client(workdir)
    found = store.search_runs(
        [store.get_experiment_by_name(experiment).experiment_id], run_view_type=ViewType.ALL
    )
    return {run.info.run_name: run for run in found}


def dataset():
    return DatasetArtifact(
        name="digits",
        digest="ab" * 32,
        class_names=("0", "1"),
        class_counts={"train": (5, 6), "validation": (1, 1), "test": (2, 3)},
        reads={"train": "train"},
        short_side=36,
        channel_mean=(1, 2, 3),
        channel_covariance=((1, 0, 0), (0, 4, 0), (0, 0, 9)),
        builder_directory=Path("shards"),
    )


def trained(folder):
    from pipeline.model.networks import build_network
    from pipeline.model.weights import save_model

    folder.mkdir(parents=True)
    network = build_network(
        model_config(width_multiplier=0.2),
        num_classes=2,
        channel_mean=(1, 2, 3),
        channel_std=(4, 5, 6),
    )
    save_model(network, folder / "model.keras")
    return network, TrainingResult(
        directory=folder,
        model_sha256=file_sha256(folder / "model.keras"),
        parameters=network.count_params(),
        network="small",
        image_size=32,
        short_side=36,
        class_names=("0", "1"),
        best_epoch=1,
        epochs=1,
        validation_top1_error=0.5,
        history_sha256="",
    )


def record_a_run(workdir, config=None):
    """Record one pipeline of one stage, as the Runner does."""
    tracker = MlflowTracker(workdir, config or TrackingConfig())
    tracker.link_skipped_stage("ingest", "earlier-run-ingest")
    run = tracker.start_stage_run("train", "train", RESOLVED)
    run.set_tags({"devices": "CPU:0"}, summary=True)
    for step in (1, 2, 3):
        run.log_metrics({"train_loss": 1 / step, "validation_top1_error": 0.5 / step}, step=step)
    run.log_metrics({"test_top1_error": 0.25}, summary=True)
    run.log_dataset(dataset(), "train")
    report = workdir / "report"
    report.mkdir(exist_ok=True)
    (report / "page.html").write_text("<p>a page</p>")
    run.log_files(report)
    run.close("FINISHED")
    tracker.close("FINISHED")
    return tracker
