"""The parity report of an export: a page and one-line summaries, drawn from its parity.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.image_size import describe_image_size, read_image_size
from pipeline.reports.html import PageSection, Table, render_page
from pipeline.reports.numbers import (
    format_bytes,
    format_count,
    format_magnitude,
    format_milliseconds,
    format_percent,
    format_percent_interval,
    format_points,
    format_points_interval,
)

_PARITY_TEXT = (
    "The export was opened by its own runtime, in a process without Keras and without this program,"
    " and classified real images. The allowed difference is float32 rounding: 0.00001 of the"
    " largest logit, or of 1 where none is larger."
)
_COST_TEXT = (
    "8-bit integers cannot give the logits of float32, so they are measured by their errors on test"
    " images, which both networks classified. Times are medians on this machine, the two in turn;"
    " a processor may take longer with integers than with float32."
)


def describe_kind(parity: Mapping[str, Any]) -> str:
    """Return `onnx`, or `litert in 8-bit integers`."""
    return f"{parity['format']} in 8-bit integers" if parity["int8"] else str(parity["format"])


def describe_export(parity: Mapping[str, Any]) -> str:
    """Return a sentence, without its full stop, of what was exported and how it compares."""
    made = f"{parity['model']} as {describe_kind(parity)}, {format_bytes(parity['bytes'])}"
    if parity["cost"]:
        return f"{made}: {describe_cost(parity['cost'])}"
    checks = parity["checks"]
    worst = max(check["difference"] for check in checks)
    return (
        f"{made}: {parity['runtime']} {parity['version']} classifies"
        f" {format_count(checks[0]['images'], 'image')} as the released model does (largest logit"
        f" difference {format_magnitude(worst)}, allowed {format_magnitude(checks[0]['allowed'])})"
    )


def describe_cost(cost: Mapping[str, Any]) -> str:
    """Return the errors of 8-bit integers beside those of float32, and the rise."""
    return (
        f"top-1 error {format_percent(cost['int8_top1_error'])} in place of"
        f" {format_percent(cost['float_top1_error'])} on"
        f" {format_count(cost['images'], 'test image')}, a rise of {format_points(cost['rise'])}"
        f" (95 % interval {format_points_interval(cost['rise_interval'])})"
    )


def render_export_page(parity: Mapping[str, Any]) -> str:
    """Return the parity report as HTML.

    Args:
        parity: what parity.json holds, as `ExportRecord.as_dict` gives it.
    """
    sections = [
        PageSection("Export", _describe_pixels(parity), [_export_table(parity)]),
        PageSection("Compared with the released model", _PARITY_TEXT, [_parity_table(parity)]),
    ]
    if parity["cost"]:
        sections.append(PageSection("Cost of 8-bit integers", _COST_TEXT, [_cost_table(parity)]))
    return render_page(
        f"{parity['model']} as {describe_kind(parity)}",
        f"{describe_export(parity)}.",
        sections,
        f"Model {parity['model_sha256'][:12]}.",
    )


def _export_table(parity: Mapping[str, Any]) -> Table:
    runtime = f"{parity['runtime']} {parity['version']}"
    whole_folder = parity["file"] == parity["directory"]
    rows = [
        ("model", parity["model"]),
        ("SHA-256 of the released model", parity["model_sha256"]),
        ("format", describe_kind(parity)),
        ("path for the runtime", "this folder" if whole_folder else Path(parity["file"]).name),
        ("size", format_bytes(parity["bytes"])),
        ("time per image here", f"{format_milliseconds(parity['seconds'])}, {runtime}"),
        ("input", f"{describe_image_size(read_image_size(parity['image_size']))} x 3, uint8"),
        ("classes", format_count(parity["classes"])),
        ("temperature of the probabilities", f"{parity['temperature']:.4g}"),
    ]
    return Table(("", ""), rows)


def _parity_table(parity: Mapping[str, Any]) -> Table:
    rows = [
        (
            check["endpoint"],
            f"{parity['runtime']} {parity['version']}",
            format_count(check["images"]),
            format_magnitude(check["difference"]),
            "see below" if check["allowed"] is None else format_magnitude(check["allowed"]),
            format_magnitude(check["probability_difference"]),
            format_count(check["same_top5"]),
        )
        for check in parity["checks"]
    ]
    headings = (
        "endpoint",
        "runtime",
        "images",
        "largest logit difference",
        "allowed",
        "largest probability difference",
        "images with the same top five",
    )
    return Table(headings, rows)


def _cost_table(parity: Mapping[str, Any]) -> Table:
    cost = parity["cost"]
    rows = [
        (
            "top-1 error",
            format_percent(cost["float_top1_error"]),
            format_percent(cost["int8_top1_error"]),
        ),
        (
            "95 % interval",
            format_percent_interval(cost["float_interval"]),
            format_percent_interval(cost["int8_interval"]),
        ),
        ("size", format_bytes(cost["float_bytes"]), format_bytes(parity["bytes"])),
        (
            "time per image here",
            format_milliseconds(cost["float_seconds"]),
            format_milliseconds(parity["seconds"]),
        ),
    ]
    return Table((format_count(cost["images"], "test image"), "float32", "int8"), rows)


def describe_square(fit: str) -> str:
    """Return how an image becomes a square, up to the word before the square's size."""
    if fit == "pad":
        return (
            "the whole upright image, its longer side resized to 7/8 of the square's, in the middle"
            " of the mean color of its four edges, in a square of"
        )
    return "the upright image's central square, resized to"


def _describe_pixels(parity: Mapping[str, Any]) -> str:
    short_side, square = parity["short_side"], describe_square(parity.get("fit", "crop"))
    return (
        "The input is RGB levels 0-255: the central"
        f" {describe_image_size(read_image_size(parity['image_size']))} of {square}"
        f" {short_side} x {short_side}. It needs no other preprocessing: the mean is subtracted"
        " inside the model. A SavedModel's endpoint `jpeg` does all of this from a file's bytes; so"
        " does pixels.py, which is beside the other formats."
    )
