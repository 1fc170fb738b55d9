"""The dataset card: a page that shows what was prepared, its numbers as JSON, and the images on the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from pipeline.config.data import DataConfig
from pipeline.data.augment import (
    compute_color_scale,
    draw_color_shifts,
    principal_colors,
    shift_colors,
)
from pipeline.data.crops import center_crops, cut_squares, draw_crops
from pipeline.data.prepared import PreparedDataset
from pipeline.data.statistics import MEASURED_IMAGES, DatasetStatistics
from pipeline.reports.html import PageImage, PageSection, Table, render_page

_ROWS_SHOWN = 50
_GROUPS_SHOWN = 12  # the image says more; dataset_card.json has them all
_COLORS = {"train": "#2f6fde", "validation": "#e08a1e", "test": "#3a9d5d"}


def write_card(
    prepared: PreparedDataset, statistics: DatasetStatistics, config: DataConfig, directory: Path
) -> None:
    """Write dataset_card.html, dataset_card.json and the card's PNG images into a folder."""
    facts = card_facts(prepared, statistics, config)
    (directory / "dataset_card.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    names = prepared.class_names
    figures = {
        "samples": (
            sample_grid(statistics.examples, names, config.short_side),
            "Training images, one class a row.",
        ),
        "classes": (
            class_balance(statistics.class_counts, names),
            "Images a class, for each split.",
        ),
        "augmentation": (augmentation_preview(statistics, config.short_side), _AUGMENTATION),
        "mean_image": (mean_and_colors(statistics), _COLOR_NOTE),
    }
    if prepared.thumbnails:
        figures["copies"] = (copies_grid(prepared.thumbnails), _COPIES_NOTE)
    images = {
        name: _saved(figure, directory / f"{name}.png", caption)
        for name, (figure, caption) in figures.items()
    }
    (directory / "dataset_card.html").write_text(_page(facts, images), encoding="utf-8")


def card_facts(
    prepared: PreparedDataset, statistics: DatasetStatistics, config: DataConfig
) -> dict[str, Any]:
    """Return everything the card says, as values that JSON can hold.

    `found` = `accepted` + `quarantined` + `excluded_duplicates` + the sum of `excluded`.
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
        "excluded_duplicates": list(prepared.aside),
        "copies": {
            "groups": [list(group) for group in prepared.copies],
            "groups_in_several_splits": prepared.copies_in_several_splits,
            "equal_images_with_several_labels": [list(group) for group in prepared.conflicts],
        },
        "excluded": excluded,
        "empty_folders": prepared.empty_folders,
        "how_split": prepared.how_split,
        "reads": dict(prepared.reads),
        "class_names": list(prepared.class_names),
        "class_counts": {split: list(counts) for split, counts in statistics.class_counts.items()},
        "original_pixels": {
            name: [int(np.min(v)), int(np.median(v)), int(np.max(v))] for name, v in sides.items()
        },
        "short_side": config.short_side,
        "channel_mean": list(statistics.channel_mean),
        "channel_std": [
            math.sqrt(statistics.channel_covariance[channel][channel]) for channel in range(3)
        ],
        "channel_covariance": [list(row) for row in statistics.channel_covariance],
        "contents_in_several_splits": statistics.shared,
        "contents_with_several_labels": statistics.ambiguous,
    }


def _page(facts: Mapping[str, Any], images: Mapping[str, PageImage]) -> str:
    counts = facts["class_counts"]
    verdict = f"{facts['accepted']:,} images of {len(facts['class_names'])} classes: " + ", ".join(
        f"{sum(values):,} {split}" for split, values in counts.items()
    )
    sections = [
        PageSection("Images", images=[images["samples"]]),
        PageSection("Files", tables=[Table(("files", "number"), _file_rows(facts))]),
        PageSection("Splits", text=f"{facts['how_split']}.", tables=[_split_table(facts)]),
        PageSection("Classes", tables=[_class_table(facts)], images=[images["classes"]]),
        PageSection("Pixels", tables=[_pixel_table(facts)], images=[images["mean_image"]]),
    ]
    sections.append(PageSection("Augmentation", images=[images["augmentation"]]))
    if facts["copies"]["groups"]:
        shown = [images["copies"]] if "copies" in images else []
        sections.insert(
            2, PageSection("Copies", text=_COPIES, tables=_copy_tables(facts), images=shown)
        )
    if facts["quarantined"]:
        sections.insert(
            2,
            PageSection(
                "Left out", text="These files cannot be used.", tables=[_quarantine_table(facts)]
            ),
        )
    footer = (
        f"SHA-256 over every key, label and image: {facts['digest']}. The same numbers are in"
        " dataset_card.json."
    )
    return render_page(f"Dataset {facts['name']}", f"{verdict}.", sections, footer=footer)


def _file_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("found", facts["found"]),
        ("accepted", facts["accepted"]),
        ("quarantined: cannot be used", len(facts["quarantined"])),
    ]
    rows += (
        [("copies set aside", len(facts["excluded_duplicates"]))]
        if facts["excluded_duplicates"]
        else []
    )
    rows += [(f"excluded: {reason}", count) for reason, count in facts["excluded"].items()]
    if facts["empty_folders"]:
        rows.append(("class folders without images", facts["empty_folders"]))
    return [(name, f"{count:,}") for name, count in rows]


def _split_table(facts: Mapping[str, Any]) -> Table:
    rows = [
        (split, f"{sum(counts):,}", f"{sum(counts) / facts['accepted']:.1%}")
        for split, counts in facts["class_counts"].items()
    ]
    rows.append(
        ("same file in more than one split", f"{facts['contents_in_several_splits']:,}", "")
    )
    rows.append(
        ("same file under more than one label", f"{facts['contents_with_several_labels']:,}", "")
    )
    return Table(("split", "images", "share"), rows)


def _class_table(facts: Mapping[str, Any]) -> Table:
    rows = [
        (_short(name, 60), *(f"{counts[index]:,}" for counts in facts["class_counts"].values()))
        for index, name in enumerate(facts["class_names"][:_ROWS_SHOWN])
    ]
    return Table(("class", *facts["class_counts"]), _with_rest(rows, len(facts["class_names"])))


def _quarantine_table(facts: Mapping[str, Any]) -> Table:
    rows = [
        (_short(item["file"], 120), _short(item["reason"], 120))
        for item in facts["quarantined"][:_ROWS_SHOWN]
    ]
    return Table(("file", "reason"), _with_rest(rows, len(facts["quarantined"])))


def _copy_tables(facts: Mapping[str, Any]) -> list[Table]:
    groups, disputed = (
        facts["copies"]["groups"],
        facts["copies"]["equal_images_with_several_labels"],
    )
    numbers = [
        ("groups of equal or nearly equal images", f"{len(groups):,}"),
        ("images in them", f"{sum(map(len, groups)):,}"),
        ("groups in more than one split", f"{facts['copies']['groups_in_several_splits']:,}"),
        ("copies set aside", f"{len(facts['excluded_duplicates']):,}"),
        ("equal images under different labels", f"{len(disputed):,}"),
    ]
    tables = [Table(("copies", "number"), numbers)]
    for heading, names in (("equal images under different labels", disputed), ("group", groups)):
        rows = [(_short(" = ".join(group), 160),) for group in names[:_GROUPS_SHOWN]]
        tables += [Table((heading,), _with_rest(rows, len(names)))] if rows else []
    return tables


def _with_rest(rows: Sequence[tuple[str, ...]], total: int) -> Sequence[tuple[str, ...]]:
    """Add a row that says how many more there are; dataset_card.json has them all."""
    return (
        rows
        if len(rows) == total
        else [*rows, (f"and {total - len(rows):,} more", *("" for _ in rows[0][1:]))]
    )


def _pixel_table(facts: Mapping[str, Any]) -> Table:
    rows = [
        (f"{side} of the files, pixels", *(f"{value:,}" for value in values))
        for side, values in facts["original_pixels"].items()
    ]
    rows += [
        (
            f"{word} of red, green, blue (0-255)",
            *(f"{value:.2f}" for value in facts[f"channel_{key}"]),
        )
        for word, key in (("mean", "mean"), ("standard deviation", "std"))
    ]
    rows.append(
        (
            f"measured at {facts['short_side']} x {facts['short_side']}, training images at most",
            f"{MEASURED_IMAGES:,}",
            "",
            "",
        )
    )
    return Table(("", "least / red", "median / green", "largest / blue"), rows)


# -- images ----------------------------------------------------------------------------------------

_AUGMENTATION = (
    "Left: training images as evaluation sees them. Then random crops of 7/8 of the side, some"
    " mirrored, and the same crops with the color noise of 2012 (train.crop, train.flip,"
    " train.color_noise=0.1), drawn by the functions that training uses."
)
_COLOR_NOTE = (
    "Left: the mean training image. Right: its mean color, moved by -3 to +3 standard deviations"
    " along each principal direction of the training colors, the directions of the color noise of"
    " 2012."
)
_COPIES = (
    "Images that are equal, or that look the same when they are made small or mirrored. An image"
    " that stands in two splits would let a model be tested on what it was trained with, so each"
    " group stays in one split; copies elsewhere are set aside unless data.duplicates is `report`."
)
_COPIES_NOTE = "Two images of some groups side by side, squeezed to squares."


def _saved(figure: Figure, path: Path, caption: str) -> PageImage:
    # Without the library's version in it, the same dataset gives the same file.
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    return PageImage(path, caption)


def _short(name: str, most: int) -> str:
    """Return a name on one line, shortened in the middle."""
    line = " ".join(name.split()) or repr(name)
    return line if len(line) <= most else f"{line[: most // 2]}...{line[-most // 3 :]}"


def _label(name: str) -> str:
    """Return a name as matplotlib can write it.

    `$` would start a formula, and signs that its own font lacks become `?`.
    """
    font = get_font(findfont("DejaVu Sans"))
    written = "".join(sign if font.get_char_index(ord(sign)) else "?" for sign in _short(name, 22))
    return written.replace("$", r"\$")


def _mosaic(rows: Sequence[Sequence[Any]], side: int) -> Any:
    """Put images into rows and columns with white between them.

    One drawing is much faster than one for each.

    Args:
        rows: uint8 [side, side, 3] images; rows may be of different lengths.
        side: height and width of each image.

    Returns:
        uint8 [rows * cell, columns * cell, 3], small images enlarged with their pixels as they are.
    """
    enlarged = max(1, 96 // side)
    cell = side * enlarged + 8
    sheet = np.full((len(rows) * cell, max(map(len, rows)) * cell, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, pixels in enumerate(row):
            image = np.repeat(np.repeat(pixels, enlarged, axis=0), enlarged, axis=1)
            sheet[i * cell : i * cell + side * enlarged, j * cell : j * cell + side * enlarged] = (
                image
            )
    return sheet


def _sheet(
    rows: Sequence[Sequence[Any]], side: int
) -> tuple[Figure, Any, list[float], list[float]]:
    """Draw images in rows; return the figure, its axes, and the middles of the rows and of the columns."""
    columns = max(map(len, rows))
    sheet = _mosaic(rows, side)
    figure = Figure(figsize=(9, 0.4 + 8 / columns * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="antialiased")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10, labeltop=True, labelbottom=False)
    axes.set(xticks=[], yticks=[])
    middles = [
        [(place + 0.5) * length / count for place in range(count)]
        for length, count in zip(sheet.shape, (len(rows), columns), strict=False)
    ]
    return figure, axes, middles[0], middles[1]


def sample_grid(
    examples: Mapping[int, Sequence[Any]], class_names: Sequence[str], short_side: int
) -> Figure:
    """Draw some training images of some classes, one class a row."""
    labels = sorted(examples)
    figure, axes, middles, _ = _sheet([examples[label] for label in labels], short_side)
    axes.set_yticks(middles, [_label(class_names[label]) for label in labels])
    return figure


def copies_grid(thumbnails: Sequence[Sequence[Any]], pairs: int = 3) -> Figure:
    """Draw two images of some groups of copies, a few pairs a row.

    Thumbnails are uint8 [64, 64, 3].
    """
    blank = np.full((64, 64, 3), 255, np.uint8)
    cells = [[*pair, blank] for pair in thumbnails]
    rows = [
        [cell for pair in cells[start : start + pairs] for cell in pair]
        for start in range(0, len(cells), pairs)
    ]
    return _sheet([[*row, *[blank] * (3 * pairs - len(row))][:-1] for row in rows], 64)[0]


def mean_and_colors(statistics: DatasetStatistics, steps: int = 7) -> Figure:
    """Draw the mean training image, and its mean color moved along each principal direction of the colors."""
    deviations, directions = principal_colors(statistics.channel_covariance)
    figure = Figure(figsize=(9, 3), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    left.imshow(np.rint(statistics.mean_image).astype(np.uint8))
    left.set_title("mean image", fontsize=11)
    offsets = np.linspace(-3, 3, steps)
    colors = [
        [np.asarray(statistics.channel_mean) + offset * deviation * way for offset in offsets]
        for deviation, way in zip(deviations, directions, strict=True)
    ]
    right.imshow(np.clip(np.rint(colors), 0, 255).astype(np.uint8), aspect="auto")
    right.set_title("principal color directions", fontsize=11)
    right.set_yticks(range(3), [f"{deviation:.1f}" for deviation in deviations])
    right.set_ylabel("standard deviation, levels")
    right.set_xticks(range(steps), [f"{offset:+g}" if offset else "mean" for offset in offsets])
    left.set(xticks=[], yticks=[])
    return figure


def class_balance(class_counts: Mapping[str, Sequence[int]], class_names: Sequence[str]) -> Figure:
    """Draw the number of images of each class, one panel a split.

    Many classes are drawn from the commonest to the rarest.
    """
    classes, many = len(class_names), len(class_names) > 30
    figure = Figure(
        figsize=(9, 3.2 if many else 1.2 + 0.28 * classes), dpi=100, layout="constrained"
    )
    panels = figure.subplots(1, len(class_counts), sharey=not many, squeeze=False)[0]
    for axes, (split, counts) in zip(panels, class_counts.items(), strict=True):
        axes.set_title(f"{split}: {sum(counts):,}", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        if many:
            axes.fill_between(
                range(classes), sorted(counts, reverse=True), color=_COLORS[split], step="mid"
            )
            axes.set_xlabel("classes by size")
            axes.set_ylim(bottom=0)
        else:
            axes.barh(range(classes), counts, color=_COLORS[split])
            axes.set_xlabel("images")
    if not many:
        panels[0].set_yticks(range(classes), [_label(name) for name in class_names])
        panels[0].invert_yaxis()
    return figure


def augmentation_preview(
    statistics: DatasetStatistics, short_side: int, rows: int = 4, crops: int = 3
) -> Figure:
    """Draw some images as evaluation sees them beside random crops, without and with color noise, made by training's own functions."""
    pixels = np.stack(
        [statistics.examples[label][0] for label in sorted(statistics.examples)[:rows]]
    )
    count, size, noise = (
        len(pixels),
        short_side * 7 // 8,
        0.1,
    )  # 224 of 256, and the noise: paper, section 4.1
    columns = {"center": center_crops(count, short_side - size)}
    columns |= {
        f"crop {epoch + 1}": draw_crops(
            count, short_side - size, seed=0, epoch=epoch, random_crop=True, flip=True
        )
        for epoch in range(crops)
    }
    places = np.arange(count)
    shown = {
        name: cut_squares(pixels, places, cuts.top, cuts.left, cuts.mirrored, size)
        for name, cuts in columns.items()
    }
    for epoch in range(crops):
        shifts = draw_color_shifts(
            count, statistics.channel_covariance, seed=0, epoch=epoch, noise=noise, mode="code"
        )
        scale = compute_color_scale(noise, "code")
        shown[f"and color {epoch + 1}"] = shift_colors(
            shown[f"crop {epoch + 1}"], shifts, statistics.channel_mean, scale
        ).numpy()
    figure, axes, _, middles = _sheet(
        [[column[row] for column in shown.values()] for row in range(count)], size
    )
    axes.set_xticks(middles, list(shown))
    return figure
