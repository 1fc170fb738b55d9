"""The page of a network: drawing, layers, parameters and work, memory, and the signal check."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from pipeline.artifacts import LayerRecord, ModelArtifact
from pipeline.config.model import ModelConfig
from pipeline.config.recipes import flatten
from pipeline.files import write_text
from pipeline.image_size import describe_image_size
from pipeline.reports.html import PageImage, PageSection, Table, render_page
from pipeline.reports.layer_blocks import group_layers
from pipeline.reports.store import read_report_data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BATCHES = (1, 32, 64, 128, 256, 512, 1024)
_KIND_COLORS = {
    "convolution": "#2f6fde",
    "pool": "#9db7e4",
    "fully connected": "#e08a1e",
    "pixels": "#8a8a8a",
    "of each map": "#9db7e4",
    "layers": "#2f6fde",
}
# Of a drawing of blocks: fractions of so much are written, and names have so many letters.
_LABELED_FRACTION, _LONGEST_NAME = 0.02, 24
_NAMED_LAYERS = 24  # below a curve
_DRAWN_BLOCKS = 20  # side by side
_ACTIVATION_COLORS = {
    "relu": "#2f6fde",
    "tanh": "#3a9d5d",
    "sigmoid": "#d1495b",
    "this network": "#222222",
}
_LAYER_NOTE = "MACs (multiplications with a weight) and memory are those of one image."
_DRAWING_NOTE = (
    "Each block is a layer's output: its height that of the map, its depth the number of"
    " channels, both by their logarithm. Below: each layer's fraction of parameters and MACs."
)
_TOWERS_NOTE = " Two rows are two towers, which meet at conv3 and in the fully connected layers."
_BLOCKS_NOTE = (
    "Each box is a block of layers, or several that give maps of one size, named after the last:"
    " its height is that of the map, its depth the number of channels, both by their logarithm."
    " Below: each box's fraction of parameters and MACs."
)
_SIGNAL_NOTE = (
    "How much of the error's gradient arrives at each layer's output, from the logits on the right"
    " back to the first layer, and how far the outputs differ between images."
)
_ACTIVATIONS_NOTE = (
    " In the same network with each activation: sigmoid loses a factor at every layer, ReLU does"
    " not: that let the networks of 2012 be deep."
)


def draw_network_pages(record: ModelArtifact, folder: Path) -> None:
    """Write network.html, network.json and the page's images, from what the build stage stored."""
    values, _ = read_report_data(record.directory)
    signals: dict[str, dict[str, Any]] = values["signals"]
    facts = {
        "network": record.network,
        "fidelity": record.fidelity,
        "parameters": record.parameters,
        "macs": record.macs,
        "layers": [layer.model_dump() for layer in record.layers],
        "signal": signals,
    }
    write_text(folder / "network.json", json.dumps(facts, indent=1))
    drawn = PageImage(folder / "network.png", _describe_drawing(record.layers))
    draw_network(record.layers).savefig(drawn.path, dpi=130, metadata={"Software": None})
    sections = [
        PageSection("The network", text=" ".join(values.get("notes", ())), images=[drawn]),
        *_layer_sections(record.layers),
        PageSection(
            "Memory of the activations", text=_MEMORY, tables=[_memory_table(record.layers)]
        ),
        _signal_section(signals, values["finding"], folder),
    ]
    if len(group_layers(record.layers)) < len(record.layers):
        every = [_layer_table(record.layers)]
        sections.append(PageSection("Every layer", text=_LAYER_NOTE, tables=every))
    summary = (
        f"{record.parameters:,} parameters and {record.macs / 1e6:,.1f} million MACs per"
        f" image of {describe_image_size(record.image_size)} pixels."
    )
    fidelity = f", as the {record.fidelity} of 2012" if values["has_fidelities"] else ""
    family = "AlexNet, network" if values["is_alexnet"] else "Network"
    title = f"{family} {record.network}{fidelity}"
    page = render_page(title, summary, sections, footer=_footer(values["settings"]))
    write_text(folder / "network.html", page)


def _describe_drawing(layers: Sequence[LayerRecord]) -> str:
    if len(group_layers(layers)) < len(layers):
        return _BLOCKS_NOTE
    towers = any("two towers" in layer.kind for layer in layers)
    return _DRAWING_NOTE + (_TOWERS_NOTE if towers else "")


def _layer_sections(layers: Sequence[LayerRecord]) -> list[PageSection]:
    """Return the table of the layers; of many layers that of their blocks."""
    rows = group_layers(layers)
    if len(rows) == len(layers):
        return [PageSection("Layers", text=_LAYER_NOTE, tables=[_layer_table(layers)])]
    text = (
        f"The {len(layers)} layers in {len(rows)} blocks, each named after its last layer. One"
        f" tensor leads from block to block, so that the network can be frozen up to any of them."
        f" {_LAYER_NOTE}"
    )
    return [PageSection("Blocks", text=text, tables=[_layer_table(rows, "block")])]


def _signal_section(
    signals: Mapping[str, Mapping[str, Any]], finding: Mapping[str, Any], folder: Path
) -> PageSection:
    if not signals:
        return PageSection("Signal", text=describe_signal(finding))
    note = _SIGNAL_NOTE + (_ACTIVATIONS_NOTE if len(signals) > 1 else "")
    curves = PageImage(folder / "signal.png", note)
    draw_signals(signals).savefig(curves.path, dpi=130, metadata={"Software": None})
    return PageSection(
        "Signal",
        text=describe_signal(finding),
        tables=[_signal_table(signals["this network"]["layers"])],
        images=[curves],
    )


def _footer(settings: Mapping[str, Any]) -> str:
    """Return a line with the settings of the network that differ from the defaults."""
    defaults = flatten(ModelConfig().model_dump(mode="json"), ModelConfig)
    differing = [
        f"{name}={value}"
        for name, value in flatten(settings, ModelConfig).items()
        if name != "network" and value != defaults.get(name)
    ]
    return "Input: uint8 RGB; output: logits. " + (
        f"Settings: {', '.join(differing)}" if differing else "Every other setting is the default."
    )


def describe_signal(finding: Mapping[str, Any]) -> str:
    """Return what the signal check found, and what to type where something is wrong.

    Args:
        finding: `skipped`, with the reason; or the fields of `Signal.to_finding`; `start`, the
            settings that decide whether a signal passes, none of a network that has none; and
            whether its weights are `fresh`.
    """
    if reason := finding.get("skipped"):
        return {
            "off": "Not checked: model.signal_check=off.",
            "alike": "Not checked: the images of the sample are all alike.",
        }[reason]
    guess = math.log(finding["num_classes"])
    found = (
        f"The logits differ between images by {finding['spread']:.1e} (standard deviation), the"
        f" loss of a batch is {finding['loss']:.3g} nats (guessing: {guess:.2f}), a step at rate"
        f" {finding['learning_rate']:g} changes the first layer by {finding['update_ratio']:.1e} of"
        " its weights."
    )
    if finding["state"] == "alive":
        return found
    words, expected = {
        "exploded": ("explodes", f"a loss of at most {finding['max_loss']:.1f}"),
        "vanished": ("vanishes", f"logits that differ by {finding['min_spread']:g} or more"),
        "weak": ("is weak", f"logits that differ by {finding['min_spread']:g} or more"),
    }[finding["state"]]
    pair = ", ".join(
        f"{name.rpartition('.')[2]}={value}"
        for name, value in finding["start"].items()
        if not name.endswith("normalization")
    )
    return (
        f"The signal {words} on its way through the network{f' ({pair})' if pair else ''}. {found}"
        f" Expected {expected}. {_remedies(finding['start']) if finding.get('fresh', True) else ''}"
    ).rstrip()


# Settings with which a signal passes through an AlexNet: each line is one remedy.
_REMEDIES = (
    {"model.alexnet.initialization": "he", "model.alexnet.input_scale": "unit"},
    {"model.alexnet.initialization": "code", "model.alexnet.input_scale": "levels"},
    {"model.alexnet.activation": "relu"},
    {"model.alexnet.normalization": "batch"},
)
_REMEDY_WITHOUT_SETTINGS = (
    "Choose another network; in one of your own, normalize between the layers, or change their"
    " initial weights."
)


def _remedies(start: Mapping[str, str]) -> str:
    """Return what to do so that a signal passes, empty where nothing is known to help."""
    if not start:
        return _REMEDY_WITHOUT_SETTINGS
    typed = [
        " ".join(f"--set {name}={value}" for name, value in remedy.items())
        for remedy in _REMEDIES
        if remedy.keys() <= start.keys() and any(start[name] != remedy[name] for name in remedy)
    ]
    return f"Type {', or '.join(typed)}." if typed else ""


_MEMORY = (
    "What the outputs of all layers take for a batch, in float32; their gradients take as much"
    " again while training."
)


def _layer_table(layers: Sequence[LayerRecord], heading: str = "layer") -> Table:
    total, work = sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers)
    rows = [
        (
            layer.layer,
            layer.kind,
            " x ".join(str(side) for side in layer.output),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.macs / 1e6:,.1f} M" if layer.macs else "",
            f"{layer.bytes / 1e3:,.0f} kB",
        )
        for layer in layers
    ]
    summed = (
        "total",
        "",
        "",
        f"{total:,}",
        f"{work / 1e6:,.1f} M",
        f"{sum(layer.bytes for layer in layers) / 1e3:,.0f} kB",
    )
    return Table((heading, "what", "output", "parameters", "MACs", "memory"), [*rows, summed])


def _memory_table(layers: Sequence[LayerRecord]) -> Table:
    image = sum(layer.bytes for layer in layers)
    return Table(
        ("images per step and device", "memory"),
        [(f"{batch:,}", f"{batch * image / 1e6:,.1f} MB") for batch in _BATCHES],
    )


def _signal_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            layer["layer"],
            f"{layer['spread']:.1e}",
            f"{layer['gradient']:.1e}",
            f"{layer['update_ratio']:.1e}",
            f"{layer['idle']:.1%}",
        )
        for layer in layers
    ]
    return Table(
        (
            "layer",
            "spread of the outputs between images",
            "gradient norm",
            "update / weight",
            "dead or saturated",
        ),
        rows,
    )


def draw_network(layers: Sequence[LayerRecord]) -> Figure:
    """Return a figure of the network as blocks, with parameters and MACs below."""
    grouped = len(group_layers(layers)) < len(layers)
    shown = [layer for layer in group_layers(layers, _DRAWN_BLOCKS) if _color(layer)]
    figure = Figure(figsize=(14, 6.6), layout="constrained")
    image, parameters, work = figure.subplots(3, 1, sharex=True, height_ratios=[5, 1, 1])
    before: Sequence[float] = ()
    for index, layer in enumerate(shown):
        rows = (0.55, -0.55) if _in_towers(shown, index) else (0.0,)
        joined = len(rows) != len(before) or (
            len(rows) == 2 and layer.kind.startswith("convolution") and "towers" not in layer.kind
        )
        for start in before:
            for end in rows:
                if joined or start == end:
                    image.plot(
                        [index - 0.68, index - 0.36],
                        [start, end],
                        color="0.75",
                        linewidth=1,
                        zorder=0,
                    )
        _draw_block(image, index, layer, rows)
        _label_block(image, index, layer, grouped=grouped)
        before = rows
    image.set_ylim(-1.65, 1.15)
    image.set_axis_off()
    for axes, name in ((parameters, "parameters"), (work, "macs")):
        values = [getattr(layer, name) for layer in shown]
        fractions = [value / max(sum(values), 1) for value in values]
        axes.bar(range(len(shown)), fractions, color=[_color(layer) for layer in shown], width=0.6)
        for index, fraction in enumerate(fractions):
            if fraction >= (_LABELED_FRACTION if grouped else 1e-9):
                axes.annotate(
                    f"{fraction:.1%}", (index, fraction), ha="center", va="bottom", fontsize=9
                )
        axes.set_ylabel({"macs": "MACs"}.get(name, name), fontsize=9)
        axes.set_ylim(0, 1.3 * max(fractions))
        axes.set_yticks([])
        names = [_shorten(layer.layer) if grouped else layer.layer for layer in shown]
        turned = {"rotation": 90, "fontsize": 8} if grouped else {"fontsize": 10}
        axes.set_xticks(range(len(shown)), names, **turned)
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _in_towers(shown: Sequence[LayerRecord], index: int) -> bool:
    """Return whether towers made a layer's maps, or read them."""
    convolutions = [
        number for number, layer in enumerate(shown) if layer.kind.startswith("convolution")
    ]
    made = [number for number in convolutions if number <= index]
    read = [number for number in convolutions if number > index]
    if len(shown[index].output) == 1 or not made:
        return False
    return "towers" in shown[made[-1]].kind or bool(read and "towers" in shown[read[0]].kind)


def _draw_block(axes: Axes, index: int, layer: LayerRecord, rows: Sequence[float]) -> None:
    """Draw one block, or two above each other."""
    flat = len(layer.output) == 1
    channels = layer.output[-1] / len(rows)
    height = 0.95 * (
        math.log1p(channels) / math.log1p(4096)
        if flat
        else math.log1p(layer.output[0]) / math.log1p(224)
    )
    height = height if len(rows) == 1 else 0.75 * height
    width = 0.14 if flat else 0.1 + 0.38 * math.log1p(channels) / math.log1p(384)
    left, right, over, up = index - width / 2 - 0.08, index + width / 2 - 0.08, 0.16, 0.09
    for middle in rows:
        low, high = middle - height / 2, middle + height / 2
        faces = (
            ([(left, low), (right, low), (right, high), (left, high)], 1.0),
            (
                [(left, high), (right, high), (right + over, high + up), (left + over, high + up)],
                0.55,
            ),
            (
                [(right, low), (right + over, low + up), (right + over, high + up), (right, high)],
                0.75,
            ),
        )
        for corners, strength in faces:
            axes.add_patch(Polygon(corners, facecolor="white", edgecolor="none"))
            axes.add_patch(
                Polygon(corners, facecolor=_color(layer), edgecolor="white", alpha=strength)
            )


def _label_block(axes: Axes, index: int, layer: LayerRecord, *, grouped: bool) -> None:
    """Write a block's shape and kind below it; of many blocks the shape alone, upright."""
    shape = " x ".join(str(number) for number in layer.output)
    if grouped:
        axes.annotate(
            shape, (index, -0.75), ha="center", va="top", fontsize=8, rotation=90, color="0.3"
        )
        return
    axes.annotate(shape, (index, -1.34), ha="center", fontsize=9)
    words = (
        layer.kind.replace("convolution", "conv")
        .replace("fully connected", "dense")
        .replace(", two towers", "")
    )
    axes.annotate(words, (index, -1.55), ha="center", fontsize=8, color="0.4")


def _shorten(name: str) -> str:
    """Return a name that fits below a narrow block: its end, where names differ."""
    return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"


def _color(layer: LayerRecord) -> str:
    return next((color for word, color in _KIND_COLORS.items() if word in layer.kind), "")


def draw_signals(signals: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Return two panels over the layers with weights.

    The gradient that arrives, and the spread of the outputs between images.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    curves = {name: signal for name, signal in signals.items() if name in _ACTIVATION_COLORS}
    for axes, field, title in (
        (panels[0], "arriving", "Gradient norm at each layer's output, per image"),
        (panels[1], "spread", "Standard deviation of the outputs between images"),
    ):
        for name, signal in curves.items():
            values = [max(layer[field], 1e-12) for layer in signal["layers"]]
            style = (
                {"linestyle": ":", "linewidth": 3, "alpha": 0.6}
                if name == "this network" and len(curves) > 1
                else {"linewidth": 1.8, "marker": "o"}
            )
            axes.plot(
                [layer["layer"] for layer in signal["layers"]],
                values,
                label=name,
                color=_ACTIVATION_COLORS[name],
                **style,
            )
        names = [layer["layer"] for layer in curves["this network"]["layers"]]
        every = -(-len(names) // _NAMED_LAYERS)
        if every > 1:  # names of so many layers hide each other
            axes.set_xticks(range(0, len(names), every))
            axes.set_xticklabels([_shorten(name) for name in names[::every]], rotation=90)
            axes.tick_params(axis="x", labelsize=7)
        axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return figure
