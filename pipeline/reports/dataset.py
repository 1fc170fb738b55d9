"""The dataset card: a page that shows what was prepared, its numbers as JSON, and its images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import DatasetArtifact
from pipeline.files import write_text
from pipeline.reports import dataset_figures
from pipeline.reports.fit import describe_fit
from pipeline.reports.html import PageImage, PageSection, Table, render_page
from pipeline.reports.numbers import format_count, format_percent
from pipeline.reports.store import read_report_data

_ROWS_SHOWN = 50
_GROUPS_SHOWN = 12  # the image says more; dataset_card.json has them all

_COLOR_NOTE = (
    "Left: the mean training image. Right: its mean color, moved by -3 to +3 standard deviations"
    " along each principal direction of the training colors, the directions of the color noise of"
    " 2012."
)
_DUPLICATES = (
    "Images that are equal, or that look the same when they are made small or mirrored. An image in"
    " two splits would let a model be tested on what it was trained with, so each group stays in"
    " one split; duplicates in other splits are excluded unless data.duplicates is `report`."
)
_DUPLICATES_NOTE = "Two images of some groups side by side, squeezed to squares."


def draw_dataset_pages(record: DatasetArtifact, folder: Path) -> None:
    """Write dataset_card.html, dataset_card.json and the card's PNG images into a folder."""
    values, arrays = read_report_data(record.directory)
    card = values["card"]
    names = card["class_names"]
    write_text(folder / "dataset_card.json", json.dumps(card, indent=1))
    figures = {
        "samples": (
            dataset_figures.draw_samples(arrays["examples"], arrays["example_labels"], names),
            "Training images as the network sees them, one class per row.",
        ),
        "classes": (
            dataset_figures.draw_class_balance(card["class_counts"], names),
            "Images per class, for each split.",
        ),
        "augmentation": (
            dataset_figures.draw_preview(arrays["preview"], values["preview_columns"]),
            _describe_preview(values),
        ),
        "mean_image": (
            dataset_figures.draw_mean_and_colors(
                arrays["mean_image"],
                card["channel_mean"],
                values["principal_std"],
                arrays["principal_directions"],
            ),
            _COLOR_NOTE,
        ),
    }
    if len(arrays["duplicates"]):
        figures["duplicates"] = (
            dataset_figures.draw_duplicates(arrays["duplicates"]),
            _DUPLICATES_NOTE,
        )
    images = {
        name: PageImage(dataset_figures.save_tight(figure, folder / f"{name}.png"), caption)
        for name, (figure, caption) in figures.items()
    }
    page = _render_card(card, images, values["measured_images"])
    write_text(folder / "dataset_card.html", page)


def _describe_preview(values: Mapping[str, Any]) -> str:
    return (
        "Left: training images as evaluation sees them. Then random crops of"
        f" {values['crop_fraction']} of the side, some mirrored, and the same crops with the color"
        " noise of 2012 (train.crop, train.flip,"
        f" train.color_noise={values['color_noise']:g}), drawn by the functions that training uses."
    )


def _render_card(card: Mapping[str, Any], images: Mapping[str, PageImage], measured: int) -> str:
    """Return the page; `measured` training images at most are in the statistics of pixels."""
    counts = card["class_counts"]
    verdict = f"{card['accepted']:,} images of {len(card['class_names'])} classes: " + ", ".join(
        f"{sum(values):,} {split}" for split, values in counts.items()
    )
    sections = [
        PageSection("Images", text=_describe_squares(card), images=[images["samples"]]),
        PageSection("Files", tables=[Table(("files", "number"), _list_files(card))]),
        PageSection("Splits", text=f"{card['how_split']}.", tables=[_tabulate_splits(card)]),
        PageSection("Classes", tables=[_tabulate_classes(card)], images=[images["classes"]]),
        PageSection(
            "Pixels", tables=[_tabulate_pixels(card, measured)], images=[images["mean_image"]]
        ),
    ]
    sections.append(PageSection("Augmentation", images=[images["augmentation"]]))
    if card["duplicates"]["groups"]:
        shown = [images["duplicates"]] if "duplicates" in images else []
        sections.insert(
            2,
            PageSection(
                "Duplicates", text=_DUPLICATES, tables=_tabulate_duplicates(card), images=shown
            ),
        )
    if card["quarantined"]:
        sections.insert(
            2,
            PageSection(
                "Left out", text="These files cannot be used.", tables=[_tabulate_quarantined(card)]
            ),
        )
    footer = (
        f"SHA-256 over every key, label and image: {card['digest']}. The same numbers are in"
        " dataset_card.json."
    )
    return render_page(f"Dataset {card['name']}", f"{verdict}.", sections, footer=footer)


def _describe_squares(card: Mapping[str, Any]) -> str:
    """Return how images became squares; nothing for a card from before there was a choice."""
    if "fit" not in card:
        return ""
    return f"{describe_fit(card['fit'], card['asked_fit'], card['cut_fraction'])}.".capitalize()


def _list_files(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("found", card["found"]),
        ("accepted", card["accepted"]),
        ("quarantined: cannot be used", len(card["quarantined"])),
    ]
    rows += (
        [("excluded duplicates", len(card["excluded_duplicates"]))]
        if card["excluded_duplicates"]
        else []
    )
    rows += [(f"excluded: {reason}", count) for reason, count in card["excluded"].items()]
    if card["empty_folders"]:
        rows.append(("class folders without images", card["empty_folders"]))
    return [(name, format_count(count)) for name, count in rows]


def _tabulate_splits(card: Mapping[str, Any]) -> Table:
    rows = [
        (split, format_count(sum(counts)), format_percent(sum(counts) / card["accepted"]))
        for split, counts in card["class_counts"].items()
    ]
    rows.append(("same file in more than one split", f"{card['contents_in_several_splits']:,}", ""))
    rows.append(
        ("same file under more than one label", f"{card['contents_with_several_labels']:,}", "")
    )
    return Table(("split", "images", "fraction"), rows)


def _tabulate_classes(card: Mapping[str, Any]) -> Table:
    rows = [
        (_shorten(name, 60), *(f"{counts[index]:,}" for counts in card["class_counts"].values()))
        for index, name in enumerate(card["class_names"][:_ROWS_SHOWN])
    ]
    return Table(("class", *card["class_counts"]), _add_rest(rows, len(card["class_names"])))


def _tabulate_quarantined(card: Mapping[str, Any]) -> Table:
    rows = [
        (_shorten(item["file"], 120), _shorten(item["reason"], 120))
        for item in card["quarantined"][:_ROWS_SHOWN]
    ]
    return Table(("file", "reason"), _add_rest(rows, len(card["quarantined"])))


def _tabulate_duplicates(card: Mapping[str, Any]) -> list[Table]:
    groups, conflicting = (
        card["duplicates"]["groups"],
        card["duplicates"]["equal_images_with_several_labels"],
    )
    numbers = [
        ("groups of equal or nearly equal images", format_count(len(groups))),
        ("images in them", f"{sum(map(len, groups)):,}"),
        ("groups in more than one split", f"{card['duplicates']['groups_in_several_splits']:,}"),
        ("excluded duplicates", f"{len(card['excluded_duplicates']):,}"),
        ("equal images under different labels", format_count(len(conflicting))),
    ]
    tables = [Table(("duplicates", "number"), numbers)]
    for heading, names in (("equal images under different labels", conflicting), ("group", groups)):
        rows = [(_shorten(" = ".join(group), 160),) for group in names[:_GROUPS_SHOWN]]
        tables += [Table((heading,), _add_rest(rows, len(names)))] if rows else []
    return tables


def _add_rest(rows: Sequence[tuple[str, ...]], total: int) -> Sequence[tuple[str, ...]]:
    """Add a row that says how many more there are; dataset_card.json has them all."""
    return (
        rows
        if len(rows) == total
        else [*rows, (f"and {total - len(rows):,} more", *("" for _ in rows[0][1:]))]
    )


def _tabulate_pixels(card: Mapping[str, Any], measured: int) -> Table:
    rows = [
        (f"{side} of the files, pixels", *(format_count(value) for value in values))
        for side, values in card["original_pixels"].items()
    ]
    rows += [
        (
            f"{word} of red, green, blue (0-255)",
            *(f"{value:.2f}" for value in card[f"channel_{key}"]),
        )
        for word, key in (("mean", "mean"), ("standard deviation", "std"))
    ]
    rows.append(
        (
            f"measured at {card['short_side']} x {card['short_side']}, training images at most",
            f"{measured:,}",
            "",
            "",
        )
    )
    return Table(("", "least / red", "median / green", "largest / blue"), rows)


def _shorten(name: str, max_length: int) -> str:
    """Return a name on one line, shortened in the middle."""
    line = " ".join(name.split()) or repr(name)
    if len(line) <= max_length:
        return line
    return f"{line[: max_length // 2]}...{line[-max_length // 3 :]}"
