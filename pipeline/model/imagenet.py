"""The classes of ImageNet, which networks with its weights answer with."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

# Logits of a network with ImageNet's own classifier.
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class _Classes:
    """ImageNet's classes in the order of the logits."""

    wordnet_ids: tuple[str, ...]
    names: tuple[str, ...]


def imagenet_class_names() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes in the order of the logits."""
    return _read_classes().names


def are_imagenet_classes(class_names: tuple[str, ...]) -> bool:
    """Return whether classes are ImageNet's in its order, by name or by WordNet id."""
    return class_names in (_read_classes().names, _read_classes().wordnet_ids)


@functools.cache
def _read_classes() -> _Classes:
    text = resources.files("pipeline.model").joinpath("imagenet_classes.tsv").read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return _Classes(tuple(row[0] for row in rows), tuple(row[1] for row in rows))
