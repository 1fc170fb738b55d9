"""The build stage, with a dataset and without."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import DatasetArtifact, ModelArtifact, file_sha256
from pipeline.config.model import ModelConfig
from pipeline.engine.stage import Context, stage
from pipeline.errors import CheckpointError, ConfigError
from pipeline.image_size import sides_of
from pipeline.model.networks import (
    REGISTRIES,
    build_network,
    describe_start,
    find_network,
    network_code,
)
from pipeline.model.safety import require_safe
from pipeline.model.weight_sources import IMAGENET

if TYPE_CHECKING:
    from pipeline.arrays import Images, Labels, Network
    from pipeline.model.network_row import NetworkRow
    from pipeline.model.signal import Signal

# The signal of the network in use, beside those of the same network with other activations.
_THIS_NETWORK = "this network"
_COMPARED_ACTIVATIONS = ("relu", "tanh", "sigmoid")


def _weights_stamp(config: ModelConfig) -> dict[str, str | None]:
    """Describe the files of weights and network unread; ImageNet's are known by their checksum."""
    files = {} if config.weights in ("", IMAGENET) else {"weights": config.weights}
    if config.network.endswith(".keras"):
        files["network"] = config.network
    return {name: _describe_file(Path(path).expanduser()) for name, path in files.items()}


def _describe_file(path: Path) -> str | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return f"{found.st_size} bytes, changed at {found.st_mtime_ns}"


def _draw_network(record: ModelArtifact, folder: Path) -> None:
    from pipeline.reports.network import draw_network_pages

    draw_network_pages(record, folder)


@stage(source=_weights_stamp, chosen_code=network_code, registries=REGISTRIES, draw=_draw_network)
def build(config: ModelConfig, dataset: DatasetArtifact, context: Context) -> ModelArtifact:
    """Build the network, with fresh weights or those of a file."""
    import numpy as np

    with np.load(dataset.sample_path) as sample:
        rows, columns = (
            slice((dataset.short_side - side) // 2, (dataset.short_side + side) // 2)
            for side in sides_of(config.image_size)
        )
        images, labels = sample["pixels"][:, rows, columns], sample["labels"]
    statistics = _Statistics(dataset.class_names, dataset.channel_mean, dataset.channel_std)
    record = _build_and_check(config, statistics, images, labels, context)
    return record.model_copy(update={"short_side": dataset.short_side, "fit": dataset.fit})


@stage(source=_weights_stamp, chosen_code=network_code, registries=REGISTRIES, draw=_draw_network)
def build_without_dataset(config: ModelConfig, context: Context) -> ModelArtifact:
    """Build a network for `model.classes` classes, on images of noise, to look at it."""
    import numpy as np

    from pipeline.model.signal import SIGNAL_IMAGES, make_photo_like_noise

    images = make_photo_like_noise(SIGNAL_IMAGES, config.image_size)
    statistics = _Statistics(
        _name_classes(config),
        [float(value) for value in images.mean((0, 1, 2))],
        [float(value) for value in images.std((0, 1, 2))],
    )
    labels = np.arange(SIGNAL_IMAGES, dtype=np.int32) % config.classes
    record = _build_and_check(config, statistics, images, labels, context)
    if not config.weights:
        return record
    # Weights are used as they were judged: on the center 7/8 of an image, as 224 pixels of 256.
    return record.model_copy(update={"short_side": round(max(sides_of(config.image_size)) * 8 / 7)})


def _name_classes(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the classes of a network without a dataset."""
    from pipeline.model.imagenet import IMAGENET_CLASSES, imagenet_class_names

    if config.weights and config.classes == IMAGENET_CLASSES:
        return imagenet_class_names()
    return tuple(f"class {index}" for index in range(config.classes))


build_alone = dataclasses.replace(build_without_dataset, name="build")


@dataclass(frozen=True)
class _Statistics:
    """What a network must know of a dataset: its classes, and RGB mean and std in levels 0-255."""

    class_names: tuple[str, ...]
    channel_mean: Sequence[float]
    channel_std: Sequence[float]


def _build_and_check(
    config: ModelConfig,
    statistics: _Statistics,
    images: Images,
    labels: Labels,
    context: Context,
) -> ModelArtifact:
    """Build the network, check its signal on a batch, and store the file and the report data."""
    from pipeline.model.layer_table import describe_layers
    from pipeline.model.signal import count_signal_images
    from pipeline.model.weights import save_model

    network, pretrained, notes = _make_network(config, statistics, context)
    layers = describe_layers(network)
    count = count_signal_images(sum(layer.bytes for layer in layers))
    signals, finding = _check_signal(
        network, config, statistics, images[:count], labels[:count], context
    )
    path = context.directory / ModelArtifact.MODEL_FILE
    save_model(network, path)
    _require_openable(config, path)
    own = signals.get(_THIS_NETWORK)
    notes = [*notes, _describe_pixels(network)]
    _store_report_data(config, signals, finding, notes, context.directory)
    artifact = ModelArtifact(
        directory=context.directory,
        model_sha256=file_sha256(path),
        parameters=sum(layer.parameters for layer in layers),
        macs=sum(layer.macs for layer in layers),
        layers=layers,
        network=config.network,
        fidelity=config.alexnet.fidelity,
        image_size=config.image_size,
        class_names=statistics.class_names,
        signal="not checked" if own is None else own.state,
        logit_spread=None if own is None else float(f"{own.spread:.3g}"),
        **pretrained,
    )
    context.run.log_metrics(
        {"parameters": artifact.parameters, "macs": artifact.macs}, summary=True
    )
    if own is not None:
        context.run.log_metrics(own.to_metrics())
    return artifact


def _make_network(
    config: ModelConfig, statistics: _Statistics, context: Context
) -> tuple[Network, dict[str, str], list[str]]:
    """Return the network, what the record says of weights that are not fresh, and notes."""
    row = find_network(config.network)
    if not config.weights and row.family in ("function", "hub"):
        network, notes = _adopt_network(row, config, statistics, context)
        return network, {}, notes
    if not config.weights and row.family != "file":
        return _make_fresh_network(config, statistics), {}, []
    from pipeline.model.pretrained import load_pretrained_network

    found = load_pretrained_network(config, statistics.class_names)
    record = {
        "pretrained": found.weights,
        "weights_sha256": found.sha256,
        "weights_licence": found.licence,
    }
    afresh = ", ".join(found.fresh_layers) or "none"
    context.run.set_tags({"weights": config.weights, "layers_afresh": afresh} | record)
    return found.network, record, [f"Weights: {found.weights}; layers that start afresh: {afresh}."]


def _adopt_network(
    row: NetworkRow, config: ModelConfig, statistics: _Statistics, context: Context
) -> tuple[Network, list[str]]:
    """Return the network of a function or a preset, and what a person should know of it."""
    from pipeline.model.own_networks import adopt_network

    classes = len(statistics.class_names)
    pixels = (statistics.channel_mean, statistics.channel_std)
    adopted = adopt_network(row, config, num_classes=classes, pixels=pixels)
    if not adopted.replaced_classes:
        return adopted.network, []
    note = (
        f"the classifier of {row.name} has {adopted.replaced_classes} classes: a fresh one of"
        f" {classes} replaces it"
    )
    context.notify(note)
    return adopted.network, [f"{note[0].upper()}{note[1:]}."]


def _describe_pixels(network: Network) -> str:
    """Return how a network scales its pixels, in words."""
    from pipeline.model.layers import PixelNormalization

    found = [layer for layer in network.layers if isinstance(layer, PixelNormalization)]
    if not found or (set(found[0].mean), set(found[0].std)) == ({0.0}, {1.0}):
        return "Pixels: levels of 0-255 as they are; its own layers scale them."
    mean, std = (
        ", ".join(f"{value:.4g}" for value in values) for values in (found[0].mean, found[0].std)
    )
    return f"Pixels: levels of 0-255, less {mean}, divided by {std} (red, green, blue)."


def _make_fresh_network(config: ModelConfig, statistics: _Statistics) -> Network:
    return build_network(
        config,
        num_classes=len(statistics.class_names),
        channel_mean=statistics.channel_mean,
        channel_std=statistics.channel_std,
    )


def _check_signal(
    network: Network,
    config: ModelConfig,
    statistics: _Statistics,
    images: Images,
    labels: Labels,
    context: Context,
) -> tuple[dict[str, Signal], dict[str, Any]]:
    """Return the signal of the network and of others to compare, by name, and the finding.

    Raises:
        ConfigError: no signal passes through fresh weights, and `model.signal_check` is `stop`.
    """
    from pipeline.model.signal import measure_signal
    from pipeline.reports.network import describe_signal

    if config.signal_check == "off":
        return {}, {"skipped": "off"}
    if images.std(axis=0).max() < 1:  # so are their logits, in every network
        return {}, {"skipped": "alike"}
    row = find_network(config.network)
    # Only AlexNet has its activation as a setting.
    compared = _COMPARED_ACTIVATIONS if row.family == "alexnet" else ()
    networks = 1 + len(compared)
    context.progress(0, networks, "networks", "signal check")
    own = measure_signal(network, images, labels)
    signals = {_THIS_NETWORK: own}
    starts_fresh = not config.weights and row.family != "file"
    finding = own.to_finding() | {"start": describe_start(config), "fresh": starts_fresh}
    dead = own.state in ("vanished", "exploded") and starts_fresh
    if dead and config.signal_check == "stop":
        raise ConfigError(
            describe_signal(finding),
            hint="Or build it all the same: --set model.signal_check=warn",
        )
    for done, activation in enumerate(compared, start=1):
        settings = config.alexnet.model_copy(update={"activation": activation})
        other = config.model_copy(update={"alexnet": settings})
        signals[activation] = measure_signal(_make_fresh_network(other, statistics), images, labels)
        context.progress(done, networks, "networks", f"signal with {activation}")
    return signals, finding


def _require_openable(config: ModelConfig, path: Path) -> None:
    """Check that the later stages can open the file of a network that the user's code made.

    Raises:
        ConfigError: it has layers that are not known to be harmless.
    """
    if find_network(config.network).family not in ("function", "hub"):
        return
    try:
        require_safe(path)
    except CheckpointError as error:
        raise ConfigError(
            f"The network {config.network} cannot be opened again without running code",
            expected="layers and operations of Keras alone",
            received=error.received,
            hint="Make it of Keras's layers, without Lambda and classes of your own",
        ) from error


def _store_report_data(
    config: ModelConfig,
    signals: Mapping[str, Signal],
    finding: Mapping[str, Any],
    notes: Sequence[str],
    folder: Path,
) -> None:
    """Store what the network's page is drawn from, besides the record."""
    from pipeline.reports.store import write_report_data

    row = find_network(config.network)
    values = {
        "settings": config.model_dump(mode="json"),
        "is_alexnet": row.family == "alexnet",
        "has_fidelities": bool(getattr(row, "fidelities", ())),
        "signals": {name: asdict(signal) for name, signal in signals.items()},
        "finding": finding,
        "notes": notes,
    }
    write_report_data(folder, values)
