"""A network of many layers in few rows: one for each block."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pipeline.artifacts import LayerRecord

# A table of more rows is not read, and a drawing of more layers is not seen.
_MANY_LAYERS = 40
_NAMED_KINDS = 2  # of a block, before `...`


def group_layers(
    layers: Sequence[LayerRecord], at_most: int | None = None
) -> tuple[LayerRecord, ...]:
    """Return the layers themselves where they are few, else a record for each block.

    A block has the name and the output of its last layer, and the sums of its layers' parameters,
    MACs and bytes. The image stays a row of its own.

    Args:
        layers: of a network, in order.
        at_most: join neighboring blocks whose maps have the same size until there are about so
            many; None: join none.
    """
    if len(layers) <= _MANY_LAYERS:
        return tuple(layers)
    first, rest = layers[0], layers[1:]
    groups = [list(group) for _, group in itertools.groupby(rest, key=lambda one: one.block)]
    count = 1 if at_most is None else -(-len(groups) // at_most)
    joined: list[list[LayerRecord]] = []
    for _, alike in itertools.groupby(groups, key=lambda group: _map_size(group[-1])):
        blocks = list(alike)
        parts = (blocks[start : start + count] for start in range(0, len(blocks), count))
        joined += [list(itertools.chain.from_iterable(part)) for part in parts]
    return (first, *(_sum_up(group) for group in joined))


def _map_size(layer: LayerRecord) -> tuple[int, ...] | str:
    """Return height and width of a layer's maps; features and logits are alike with nothing."""
    return layer.output[:-1] or layer.layer


def _sum_up(group: Sequence[LayerRecord]) -> LayerRecord:
    """Return a block as one record."""
    last = group[-1]
    if len(group) == 1:
        return last
    kinds = list(dict.fromkeys(layer.kind for layer in group if layer.macs))
    named = ", ".join([*kinds[:_NAMED_KINDS], *(["..."] if kinds[_NAMED_KINDS:] else [])])
    return last.model_copy(
        update={
            "kind": f"{len(group)} layers" + (f": {named}" if named else ""),
            "parameters": sum(layer.parameters for layer in group),
            "macs": sum(layer.macs for layer in group),
            "bytes": sum(layer.bytes for layer in group),
        }
    )
