"""The train stage."""

from __future__ import annotations

from pipeline.artifacts import DatasetArtifact, ModelArtifact, TrainingResult, digest_of, file_sha256
from pipeline.config import TrainConfig
from pipeline.engine import Context, stage

# Clock readings differ between runs of the same training; every other number of the history is the same.
_CLOCK = frozenset({"seconds", "images_per_second"})


@stage(resumable=True)
def train(config: TrainConfig, dataset: DatasetArtifact, model: ModelArtifact, context: Context) -> TrainingResult:
    """Train the network on one device or on many, and keep the weights of its best epoch."""
    from pipeline.data.loader import load_split
    from pipeline.model.weights import load_model, save_model
    from pipeline.train import loop
    from pipeline.train.curves import write_history
    from pipeline.train.strategy import describe_runtime, make_strategy

    context.run.tags({"seed": config.seed, **describe_runtime()}, summary=True)
    strategy = make_strategy()
    state = loop.prepare(lambda: load_model(model.verified_model_path()), config, strategy)
    images, validation = load_split(dataset, "train"), load_split(dataset, "validation")
    context.run.tags({"training_images": images.where})
    checkpoint = context.scratch_directory / "checkpoint.npz"

    def progress(done: int, total: int, detail: str) -> None:
        context.progress(done * config.global_batch_size, total * config.global_batch_size, "images", detail)

    for epoch in loop.fit(state, images, validation, config, strategy, checkpoint, progress):
        context.run.metrics({name: value for name, value in epoch.items() if name != "epoch"}, step=int(epoch["epoch"]))

    best = loop.best_epoch(state.history)
    kept = load_model(model.model_path)  # outside the strategy's scope, so that the file knows nothing of devices
    kept.set_weights(state.best)
    path = context.directory / TrainingResult.MODEL_FILE
    save_model(kept, path)
    write_history(state.history, int(best["epoch"]), context.report_directory)
    return TrainingResult(
        directory=context.directory,
        model_sha256=file_sha256(path),
        parameters=model.parameters,
        variant=model.variant,
        image_size=model.image_size,
        class_names=model.class_names,
        best_epoch=int(best["epoch"]),
        epochs=len(state.history),
        validation_top1_error=best["validation_top1_error"],
        history_sha256=digest_of([{name: value for name, value in entry.items() if name not in _CLOCK} for entry in state.history]),
    )
