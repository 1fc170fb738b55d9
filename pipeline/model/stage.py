"""The build stage, with a dataset and without."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.artifacts import DatasetArtifact, LayerRecord, ModelArtifact, file_sha256
from pipeline.config.model import ModelConfig
from pipeline.engine.stage import Context, stage
from pipeline.errors import ConfigError


def _weights_stamp(config: ModelConfig) -> dict[str, str]:
    """Describe the file of weights without reading it."""
    from pathlib import Path

    if not config.weights:
        return {}
    try:
        found = Path(config.weights).expanduser().stat()
    except OSError:
        return {"weights": "missing"}
    return {"weights": f"{found.st_size} bytes, changed at {found.st_mtime_ns}"}


@stage(source=_weights_stamp)
def build(config: ModelConfig, dataset: DatasetArtifact, context: Context) -> ModelArtifact:
    """Build the network for the dataset, with fresh weights or those of a file."""
    import numpy as np

    with np.load(dataset.sample_path) as sample:
        margin = (dataset.short_side - config.image_size) // 2
        window = slice(margin, margin + config.image_size)
        images, labels = sample["pixels"][:, window, window], sample["labels"]
    built = _built(
        config,
        dataset.class_names,
        dataset.channel_mean,
        dataset.channel_std,
        images,
        labels,
        context,
    )
    return built.model_copy(update={"short_side": dataset.short_side})


@stage(source=_weights_stamp)
def look(config: ModelConfig, context: Context) -> ModelArtifact:
    """Build a network for `model.classes` classes, on images of noise, to look at it."""
    import numpy as np

    from pipeline.model.signal import IMAGES, synthetic_images

    images = synthetic_images(IMAGES, config.image_size)
    names = tuple(f"class {index}" for index in range(config.classes))
    mean, std = (
        [float(value) for value in numbers]
        for numbers in (images.mean((0, 1, 2)), images.std((0, 1, 2)))
    )
    return _built(
        config,
        names,
        mean,
        std,
        images,
        np.arange(IMAGES, dtype=np.int32) % config.classes,
        context,
    )


build_alone = dataclasses.replace(look, name="build")


def _built(
    config: ModelConfig,
    class_names: tuple[str, ...],
    mean: Any,
    std: Any,
    images: Any,
    labels: Any,
    context: Context,
) -> ModelArtifact:
    """Build the network, check it on a batch, and write the file and the page."""
    from pipeline.model.alexnet import build_network, layer_table
    from pipeline.model.pretrained import network_from
    from pipeline.model.signal import Signal, measure_signal, verdict
    from pipeline.model.weights import save_model
    from pipeline.reports.network import write_card

    def fresh(activation: str) -> Any:
        other = config.model_copy(update={"activation": activation})
        return build_network(
            other, num_classes=len(class_names), channel_mean=mean, channel_std=std
        )

    if config.weights:
        network, afresh = network_from(config, class_names)
        context.run.set_tags(
            {"weights": config.weights, "layers_afresh": ", ".join(afresh) or "none"}
        )
    else:
        network = fresh(config.activation)
    signals: dict[str, Signal] = {}
    found = "Not checked: model.signal_check=off."
    if config.signal_check != "off" and images.std(axis=0).max() < 1:
        found = (  # so are their logits, in every network
            "Not checked: the images of the sample are all alike."
        )
    elif config.signal_check != "off":
        context.progress(0, 4, "networks", "signal check")
        signals["this network"] = measure_signal(network, images, labels)
        found = verdict(signals["this network"], config)
        if (
            config.signal_check == "stop"
            and signals["this network"].state in ("vanished", "exploded")
            and not config.weights
        ):
            raise ConfigError(f"{found} Or build it all the same: --set model.signal_check=warn.")
        for done, activation in enumerate(("relu", "tanh", "sigmoid"), start=1):
            signals[activation] = measure_signal(fresh(activation), images, labels)
            context.progress(done, 4, "networks", f"signal with {activation}")
    path = context.directory / ModelArtifact.MODEL_FILE
    save_model(network, path)
    layers = tuple(LayerRecord(**row) for row in layer_table(network))
    write_card(layers, signals, found, config, context.report_directory)
    own = signals.get("this network")
    artifact = ModelArtifact(
        directory=context.directory,
        model_sha256=file_sha256(path),
        parameters=sum(layer.parameters for layer in layers),
        macs=sum(layer.macs for layer in layers),
        layers=layers,
        variant=config.variant,
        fidelity=config.fidelity,
        image_size=config.image_size,
        class_names=class_names,
        signal="not checked" if own is None else own.state,
        logit_spread=None if own is None else float(f"{own.spread:.3g}"),
    )
    context.run.log_metrics(
        {"parameters": artifact.parameters, "macs": artifact.macs}, summary=True
    )
    if own is not None:
        context.run.log_metrics(own.metrics())
    return artifact
