"""The network's own page: its layers, their shapes and where the parameters are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import ModelConfig
from pipeline.page import Section, Table, render


def write_card(layers: Sequence[dict[str, Any]], config: ModelConfig, directory: Path) -> None:
    """Write network.html and network.json: one row a layer with its output shape and parameters."""
    total = sum(layer["parameters"] for layer in layers)
    (directory / "network.json").write_text(
        json.dumps({"variant": config.variant, "parameters": total, "layers": list(layers)}, indent=1), encoding="utf-8"
    )
    rows = [
        (
            layer["layer"],
            " x ".join(str(side) for side in layer["output"]),
            f"{layer['parameters']:,}",
            f"{layer['parameters'] / total:.1%}",
        )
        for layer in layers
    ]
    page = render(
        f"AlexNet, variant {config.variant}",
        f"{total:,} parameters for {config.image_size} x {config.image_size} pixels.",
        [Section("Layers", tables=[Table(("layer", "output", "parameters", "share"), rows)])],
        footer=f"Width {config.width_multiplier:g}, dropout {config.dropout:g}, seed {config.seed}. Input: uint8 RGB, output: logits.",
    )
    (directory / "network.html").write_text(page, encoding="utf-8")
