"""The networks of the registry, and how fast they are on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.model.network_list import (
    MEASURED_BATCH,
    ListedNetwork,
    build_listed_network,
    list_networks,
)
from pipeline.workspace.workspace import Workspace


def list_known_networks(
    workspace: Workspace, names: Sequence[str], *, measure: bool
) -> list[ListedNetwork]:
    """Return the networks of the registry; `measure` times each, forward, in its natural size.

    Raises:
        ConfigError: there is no network of a name.
    """
    found = list_networks(names)
    return [_measure_network(workspace, one) for one in found] if measure else found


def _measure_network(workspace: Workspace, listed: ListedNetwork) -> ListedNetwork:
    from pipeline.evaluate.speed import measure_speed

    known, network = build_listed_network(listed)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        file.write_bytes(b"")  # its size is not asked for
        speed = measure_speed(network, file, batches=(MEASURED_BATCH,))
    rate = speed.batches[0].images_per_second
    workspace.observer.notified(f"{listed.row.name}: {rate:,.1f} images/s")
    return replace(known, images_per_second=round(rate, 2))
