"""Batches that other hosts prepare, each with an input service (`pipeline.data.input_service`).

Each host has a tf.data service of its own with one worker, and takes every n-th batch. So batches
come in the same order and with the same bytes as without hosts, which a service that hands out work
as it likes could not promise. Hosts must see the shards under the same path.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from pipeline.data.shards import make_deterministic_options
from pipeline.errors import ConfigError


def distribute_batches(
    addresses: Sequence[str], places: Any, batches_of: Callable[[Any, tuple[int, int]], Any]
) -> Any:
    """Return batches that hosts prepare in turn, as a tf.data.Dataset in the order of `places`.

    Args:
        addresses: `host:port` of each.
        places: int64 [batches, batch], of an epoch's order.
        batches_of: makes the batches of some rows of `places`, given whose turn they are.

    Raises:
        ConfigError: a host does not answer.
    """
    count = len(addresses)
    for address in addresses:
        _require_answer(address)
    service = tf.data.experimental.service
    parts = [
        # Not compressed: pixels hardly shrink.
        batches_of(places[index::count], (index, count)).apply(
            service.distribute(
                processing_mode=service.ShardingPolicy.OFF,
                service=f"grpc://{address}",
                compression=None,
            )
        )
        for index, address in enumerate(addresses)
    ]
    turns = tf.data.Dataset.range(len(places)).map(lambda number: number % count)
    return (
        tf.data.Dataset.choose_from_datasets(parts, turns, stop_on_empty_dataset=False)
        .prefetch(count)
        .with_options(make_deterministic_options())
    )


def _require_answer(address: str) -> None:
    """Raise a ConfigError where nobody listens; TensorFlow would go on trying."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConfigError(
            f"Nobody answers at {address} of train.data_services ({error}). Expected an input"
            f" service. Type there: python -m pipeline.data.input_service --port {port}"
        ) from error
