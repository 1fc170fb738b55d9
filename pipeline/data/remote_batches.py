"""Batches that other hosts prepare, each with an input service (`pipeline.data.input_service`).

Each host has a tf.data service of its own with one worker, and takes every n-th batch. So batches
come in the same order and with the same bytes as without hosts; a service that assigns work to its
workers itself could not promise that. The shards must have the same path on all hosts.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from pipeline.data.shards import as_written, make_deterministic_options
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.arrays import Dataset, Integers


def distribute_batches(
    addresses: Sequence[str],
    positions: Integers,
    make_batches: Callable[[Integers, tuple[int, int]], Dataset],
) -> Dataset:
    """Return batches that hosts prepare in turn, in the order of `positions`.

    Args:
        addresses: `host:port` of each.
        positions: int64 [batches, batch], in an epoch's order.
        make_batches: makes the batches of some rows of `positions`, called with (number, hosts) of
            the host whose turn they are.

    Raises:
        ConfigError: a host does not answer.
    """
    count = len(addresses)
    for address in addresses:
        _require_answer(address)
    service = tf.data.experimental.service
    parts = [
        # Not compressed: pixels hardly shrink.
        make_batches(positions[index::count], (index, count)).apply(
            service.distribute(
                processing_mode=service.ShardingPolicy.OFF,
                service=f"grpc://{address}",
                compression=None,
            )
        )
        for index, address in enumerate(addresses)
    ]
    turns = tf.data.Dataset.range(len(positions)).map(as_written(lambda number: number % count))
    return (
        tf.data.Dataset.choose_from_datasets(parts, turns, stop_on_empty_dataset=False)
        .prefetch(count)
        .with_options(make_deterministic_options())
    )


def _require_answer(address: str) -> None:
    """Raise a ConfigError if nothing listens at an address; TensorFlow would try for ever."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConfigError(
            f"The host {address} of train.data_services does not answer ({error})",
            expected="an input service",
            hint=f"Type there: python -m pipeline.data.input_service --port {port}",
        ) from error
