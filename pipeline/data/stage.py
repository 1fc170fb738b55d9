"""The ingest stage."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import DatasetArtifact
from pipeline.config.data import DataConfig
from pipeline.data.manifests import read_attributes
from pipeline.data.reference import detect_dataset_kind, expand_home
from pipeline.data.source_stamp import stamp_source
from pipeline.engine.stage import Context, stage


def _draw_card(record: DatasetArtifact, folder: Path) -> None:
    """Draw the dataset card; matplotlib is loaded only then."""
    from pipeline.reports.dataset import draw_dataset_pages

    draw_dataset_pages(record, folder)


@stage(source=stamp_source, draw=_draw_card)
def ingest(config: DataConfig, context: Context) -> DatasetArtifact:
    """Prepare the images: read, check, split and store them."""
    import numpy as np

    from pipeline.data.card import write_card_data
    from pipeline.data.class_ids import require_trainable_classes
    from pipeline.data.fit import MAX_CUT_FRACTION, choose_fit
    from pipeline.data.source import prepare_dataset
    from pipeline.data.statistics import (
        measure_dataset,
        write_attributes,
        write_groups,
        write_sample,
    )
    from pipeline.reports.fit import describe_fit

    def progress(done: int, total: int, detail: str) -> None:
        context.progress(done, total, "images", detail)

    prepared = prepare_dataset(config, context.directory, progress)
    fit = choose_fit(prepared) if config.fit == "auto" else config.fit
    statistics = measure_dataset(
        prepared,
        config.short_side,
        context.directory,
        progress,
        fit=fit,
        store_pixels=config.store == "pixels",
    )
    loses = fit == "crop" and statistics.cut_fraction > MAX_CUT_FRACTION
    if config.fit == "auto" or loses:
        context.notify(describe_fit(fit, config.fit, statistics.cut_fraction))
    require_trainable_classes(prepared.class_names, statistics.class_counts)
    write_card_data(prepared, statistics, config, fit, context.directory)
    write_sample(statistics.examples, context.directory)
    if detect_dataset_kind(config.dataset) == "manifest":
        names, rows = read_attributes(expand_home(config.dataset))
        if names:
            write_attributes(names, rows, context.directory / DatasetArtifact.ATTRIBUTES_FILE)
    groups_sha256 = write_groups(prepared.groups, context.directory / DatasetArtifact.GROUPS_FILE)
    sizes = {f"{split}_images": sum(counts) for split, counts in statistics.class_counts.items()}
    left_out = {
        "quarantined": len(prepared.quarantined),
        "excluded_duplicates": len(prepared.excluded_duplicates),
    }
    context.run.log_metrics(
        {**sizes, **left_out, "classes": len(prepared.class_names)}, summary=True
    )
    context.run.set_tags({"fit": fit, "cut_fraction": f"{statistics.cut_fraction:.4f}"})
    shards = prepared.builder_directory
    return DatasetArtifact(
        directory=context.directory,
        name=prepared.name,
        digest=statistics.digest,
        class_names=prepared.class_names,
        class_counts=dict(statistics.class_counts),
        reads=dict(prepared.reads),
        image_key=prepared.image_key,
        label_key=prepared.label_key,
        short_side=config.short_side,
        fit=fit,
        channel_mean=statistics.channel_mean,
        channel_covariance=statistics.channel_covariance,
        upright_jpeg=statistics.upright_jpeg,
        largest_short_side=int(np.minimum(statistics.heights, statistics.widths).max()),
        store=config.store,
        groups_sha256=groups_sha256,
        **left_out,
        # The stage's folder is renamed when it is finished, so shards inside it are named from
        # there.
        builder_directory=(
            shards.relative_to(context.directory)
            if shards.is_relative_to(context.directory)
            else shards
        ),
    )
