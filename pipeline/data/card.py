"""The dataset card: a page that shows what was prepared, its numbers as JSON, and the pictures on the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from pipeline.config import DataConfig
from pipeline.data.loader import centre_cuts, cut, random_cuts
from pipeline.data.pictures import decode_and_resize
from pipeline.data.source import Prepared
from pipeline.data.statistics import MEASURED_IMAGES, Statistics
from pipeline.page import Picture, Section, Table, render

_ROWS_SHOWN = 50
_COLOURS = {"train": "#2f6fde", "validation": "#e08a1e", "test": "#3a9d5d"}


def write_card(prepared: Prepared, statistics: Statistics, config: DataConfig, directory: Path) -> None:
    """Write dataset_card.html, dataset_card.json and the card's PNG pictures into a folder."""
    facts = card_facts(prepared, statistics, config)
    (directory / "dataset_card.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    pictures = [
        _saved(
            sample_grid(statistics.examples, prepared.class_names, config.short_side),
            directory / "samples.png",
            "Training images, one class a row.",
        ),
        _saved(class_balance(statistics.class_counts, prepared.class_names), directory / "classes.png", "Images a class, for each split."),
        _saved(crop_preview(statistics.examples, config.short_side), directory / "crops.png", _CROPS),
    ]
    (directory / "dataset_card.html").write_text(_page(facts, pictures), encoding="utf-8")


def card_facts(prepared: Prepared, statistics: Statistics, config: DataConfig) -> dict[str, Any]:
    """Return everything the card says, as values that JSON can hold.

    `found` = `accepted` + `quarantined` + the sum of `excluded`.
    """
    accepted = sum(sum(counts) for counts in statistics.class_counts.values())
    excluded = dict(prepared.excluded)
    quarantined = [{"file": key, "reason": reason} for key, reason in prepared.quarantined]
    found = prepared.found if prepared.found is not None else accepted
    sides = {"height": statistics.heights, "width": statistics.widths}
    return {
        "name": prepared.name,
        "digest": statistics.digest,
        "found": found,
        "accepted": accepted,
        "quarantined": quarantined,
        "excluded": excluded,
        "empty_folders": prepared.empty_folders,
        "how_split": prepared.how_split,
        "reads": dict(prepared.reads),
        "class_names": list(prepared.class_names),
        "class_counts": {split: list(counts) for split, counts in statistics.class_counts.items()},
        "original_pixels": {name: [int(np.min(v)), int(np.median(v)), int(np.max(v))] for name, v in sides.items()},
        "short_side": config.short_side,
        "channel_mean": list(statistics.channel_mean),
        "channel_std": list(statistics.channel_std),
        "contents_in_several_splits": statistics.shared,
        "contents_with_several_labels": statistics.ambiguous,
    }


def _page(facts: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    counts = facts["class_counts"]
    verdict = f"{facts['accepted']:,} images of {len(facts['class_names'])} classes: " + ", ".join(
        f"{sum(values):,} {split}" for split, values in counts.items()
    )
    sections = [
        Section("Pictures", pictures=pictures[:1]),
        Section("Files", tables=[Table(("files", "number"), _file_rows(facts))]),
        Section("Splits", text=f"{facts['how_split']}.", tables=[_split_table(facts)]),
        Section("Classes", tables=[_class_table(facts)], pictures=pictures[1:2]),
        Section("Pixels", tables=[_pixel_table(facts)], pictures=pictures[2:]),
    ]
    if facts["quarantined"]:
        sections.insert(2, Section("Left out", text="These files cannot be decoded.", tables=[_quarantine_table(facts)]))
    footer = f"SHA-256 over every key, label and picture: {facts['digest']}. The same numbers are in dataset_card.json."
    return render(f"Dataset {facts['name']}", f"{verdict}.", sections, footer=footer)


def _file_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("found", facts["found"]), ("accepted", facts["accepted"]), ("quarantined: cannot be decoded", len(facts["quarantined"]))]
    rows += [(f"excluded: {reason}", count) for reason, count in facts["excluded"].items()]
    if facts["empty_folders"]:
        rows.append(("class folders without pictures", facts["empty_folders"]))
    return [(name, f"{count:,}") for name, count in rows]


def _split_table(facts: Mapping[str, Any]) -> Table:
    rows = [(split, f"{sum(counts):,}", f"{sum(counts) / facts['accepted']:.1%}") for split, counts in facts["class_counts"].items()]
    rows.append(("same file in more than one split", f"{facts['contents_in_several_splits']:,}", ""))
    rows.append(("same file under more than one label", f"{facts['contents_with_several_labels']:,}", ""))
    return Table(("split", "images", "share"), rows)


def _class_table(facts: Mapping[str, Any]) -> Table:
    rows = [
        (_short(name, 60), *(f"{counts[index]:,}" for counts in facts["class_counts"].values()))
        for index, name in enumerate(facts["class_names"][:_ROWS_SHOWN])
    ]
    return Table(("class", *facts["class_counts"]), _with_rest(rows, len(facts["class_names"])))


def _quarantine_table(facts: Mapping[str, Any]) -> Table:
    rows = [(_short(item["file"], 120), _short(item["reason"], 120)) for item in facts["quarantined"][:_ROWS_SHOWN]]
    return Table(("file", "reason"), _with_rest(rows, len(facts["quarantined"])))


def _with_rest(rows: Sequence[tuple[str, ...]], total: int) -> Sequence[tuple[str, ...]]:
    """Add a row that says how many more there are; dataset_card.json has them all."""
    return rows if len(rows) == total else [*rows, (f"and {total - len(rows):,} more", *("" for _ in rows[0][1:]))]


def _pixel_table(facts: Mapping[str, Any]) -> Table:
    rows = [(f"{side} of the files, pixels", *(f"{value:,}" for value in values)) for side, values in facts["original_pixels"].items()]
    rows += [
        (f"{word} of red, green, blue (0-255)", *(f"{value:.2f}" for value in facts[f"channel_{key}"]))
        for word, key in (("mean", "mean"), ("standard deviation", "std"))
    ]
    rows.append((f"measured at {facts['short_side']} x {facts['short_side']}, training images at most", f"{MEASURED_IMAGES:,}", "", ""))
    return Table(("", "least / red", "median / green", "largest / blue"), rows)


# -- pictures -------------------------------------------------------------------------------------------------------------

_CROPS = (
    "Left: the central crop that evaluation sees. Right: random crops of 7/8 of the side, mirrored at random, as training cuts them where "
    "train.random_crop and train.flip are on."
)


def _saved(figure: Figure, path: Path, caption: str) -> Picture:
    # Without the library's version in it, the same dataset gives the same file.
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    return Picture(path, caption)


def _short(name: str, most: int) -> str:
    """Return a name on one line, shortened in the middle."""
    line = " ".join(name.split()) or repr(name)
    return line if len(line) <= most else f"{line[: most // 2]}...{line[-most // 3 :]}"


def _label(name: str) -> str:
    """Return a name as matplotlib can write it: `$` would start a formula, and signs that its own font lacks become `?`."""
    font = get_font(findfont("DejaVu Sans"))
    written = "".join(sign if font.get_char_index(ord(sign)) else "?" for sign in _short(name, 22))
    return written.replace("$", r"\$")


def _mosaic(rows: Sequence[Sequence[Any]], side: int) -> Any:
    """Put pictures into rows and columns with white between them; one drawing is much faster than one for each.

    Args:
        rows: uint8 [side, side, 3] pictures; rows may be of different lengths.
        side: height and width of each picture.

    Returns:
        uint8 [rows * cell, columns * cell, 3], small pictures enlarged with their pixels as they are.
    """
    enlarged = max(1, 96 // side)
    cell = side * enlarged + 8
    sheet = np.full((len(rows) * cell, max(map(len, rows)) * cell, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, pixels in enumerate(row):
            picture = np.repeat(np.repeat(pixels, enlarged, axis=0), enlarged, axis=1)
            sheet[i * cell : i * cell + side * enlarged, j * cell : j * cell + side * enlarged] = picture
    return sheet


def _sheet(rows: Sequence[Sequence[Any]], side: int) -> tuple[Figure, Any, list[float], list[float]]:
    """Draw pictures in rows; return the figure, its axes, and the middles of the rows and of the columns."""
    columns = max(map(len, rows))
    sheet = _mosaic(rows, side)
    figure = Figure(figsize=(9, 0.4 + 8 / columns * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="antialiased")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10, labeltop=True, labelbottom=False)
    axes.set(xticks=[], yticks=[])
    middles = [
        [(place + 0.5) * length / count for place in range(count)] for length, count in zip(sheet.shape, (len(rows), columns), strict=False)
    ]
    return figure, axes, middles[0], middles[1]


def sample_grid(examples: Mapping[int, Sequence[bytes]], class_names: Sequence[str], short_side: int) -> Figure:
    """Draw some training images of some classes, one class a row."""
    labels = sorted(examples)
    rows = [[decode_and_resize(tf.constant(encoded), short_side).numpy() for encoded in examples[label]] for label in labels]
    figure, axes, middles, _ = _sheet(rows, short_side)
    axes.set_yticks(middles, [_label(class_names[label]) for label in labels])
    return figure


def class_balance(class_counts: Mapping[str, Sequence[int]], class_names: Sequence[str]) -> Figure:
    """Draw the number of images of each class, one panel a split; many classes are drawn from the commonest to the rarest."""
    classes, many = len(class_names), len(class_names) > 30
    figure = Figure(figsize=(9, 3.2 if many else 1.2 + 0.28 * classes), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(class_counts), sharey=not many, squeeze=False)[0]
    for axes, (split, counts) in zip(panels, class_counts.items(), strict=True):
        axes.set_title(f"{split}: {sum(counts):,}", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        if many:
            axes.fill_between(range(classes), sorted(counts, reverse=True), color=_COLOURS[split], step="mid")
            axes.set_xlabel("classes by size")
            axes.set_ylim(bottom=0)
        else:
            axes.barh(range(classes), counts, color=_COLOURS[split])
            axes.set_xlabel("images")
    if not many:
        panels[0].set_yticks(range(classes), [_label(name) for name in class_names])
        panels[0].invert_yaxis()
    return figure


def crop_preview(examples: Mapping[int, Sequence[bytes]], short_side: int, rows: int = 4, crops: int = 6) -> Figure:
    """Draw some images as evaluation sees them beside random crops, cut by the function that training uses."""
    encoded = [examples[label][0] for label in sorted(examples)[:rows]]
    size = short_side * 7 // 8  # 224 of 256, paper, section 4.1
    pixels = tf.stack([decode_and_resize(tf.constant(item), short_side) for item in encoded])
    centre = centre_cuts(len(encoded), short_side - size)
    columns = [centre] + [
        random_cuts(len(encoded), short_side - size, seed=0, epoch=column, random_crop=True, flip=True) for column in range(crops)
    ]
    cut_out = [cut(pixels, cuts.top, cuts.left, cuts.mirrored, size).numpy() for cuts in columns]
    figure, axes, _, middles = _sheet([[column[row] for column in cut_out] for row in range(len(encoded))], size)
    axes.set_xticks(middles, ["centre", *(f"epoch {column + 1}" for column in range(crops))])
    return figure
