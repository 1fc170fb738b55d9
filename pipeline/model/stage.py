"""The build stage."""

from __future__ import annotations

from pipeline.artifacts import DatasetArtifact, ModelArtifact, file_sha256
from pipeline.config import ModelConfig
from pipeline.engine import Context, stage


@stage()
def build(config: ModelConfig, dataset: DatasetArtifact, context: Context) -> ModelArtifact:
    """Build the network for the dataset, with fresh weights."""
    from pipeline.model.alexnet import build_network, layer_table
    from pipeline.model.card import write_card
    from pipeline.model.weights import save_model

    network = build_network(
        config, num_classes=len(dataset.class_names), channel_mean=dataset.channel_mean, channel_std=dataset.channel_std
    )
    path = context.directory / ModelArtifact.MODEL_FILE
    save_model(network, path)
    write_card(layer_table(network), config, context.report_directory)
    artifact = ModelArtifact(
        directory=context.directory,
        model_sha256=file_sha256(path),
        parameters=network.count_params(),
        variant=config.variant,
        image_size=config.image_size,
        class_names=dataset.class_names,
    )
    context.run.metrics({"parameters": artifact.parameters}, summary=True)
    return artifact
