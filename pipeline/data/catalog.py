"""TensorFlow Datasets' own datasets, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.config.data import DataConfig
from pipeline.config.recipes import suggest_spelling
from pipeline.data.builders import make_download_config, quiet_builder
from pipeline.data.prepared import PreparedDataset
from pipeline.errors import DatasetError


def require_in_catalog(name: str) -> None:
    """Raise a DatasetError for a name that TFDS does not know."""
    import tensorflow_datasets as tfds

    short = name.partition(":")[0].partition("/")[0]
    known = tuple(tfds.list_builders(with_community_datasets=False))
    if short not in known:
        raise DatasetError(
            f"There is neither a folder nor a TFDS dataset `{name}`",
            expected="`digits`, a folder, a CSV file or a name of TFDS's catalog",
            received=repr(name),
            hint=f"{suggest_spelling(short, known)} Type a folder as ./{name}",
        )


def prepare_tfds(config: DataConfig, data_directory: Path) -> PreparedDataset:
    """Let TFDS download and prepare a dataset, and find its image, its label and its splits.

    Raises:
        DatasetError: the name is unknown, the download failed, or the dataset has no image or no
            single label.
    """
    import tensorflow_datasets as tfds

    builder = _prepare_builder(tfds, config.dataset, data_directory, config.beam)
    image_key = _find_feature(builder, "image", tfds.features.Image)
    label_key = _find_feature(builder, "label", tfds.features.ClassLabel)
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    reads = assign_tfds_splits(config, sizes)
    return PreparedDataset(
        name=config.dataset,
        builder_directory=Path(builder.data_dir).resolve(),
        class_names=tuple(builder.info.features[label_key].names),
        reads=reads,
        image_key=image_key,
        label_key=label_key,
        how_split="; ".join(f"{split} is TFDS's `{read}`" for split, read in reads.items()),
    )


def _prepare_builder(tfds: ModuleType, name: str, data_directory: Path, beam_options: str) -> Any:
    """Return the builder of a dataset, after a download if need be."""
    require_in_catalog(name)
    try:
        with quiet_builder(tfds):
            builder = tfds.builder(name, data_dir=data_directory)
            builder.download_and_prepare(download_config=make_download_config(tfds, beam_options))
    except DatasetError:
        raise
    # TFDS and its downloaders raise any exception; every cause has the same remedies.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DatasetError(
            f"TFDS could not prepare `{name}` ({type(error).__name__}: {reason})",
            expected="a known configuration, and the network or files that were fetched by hand",
            hint=(
                "Put those, under the names that TFDS asks for, into"
                f" {data_directory / 'downloads' / 'manual'} and type the command again; or set"
                " TFDS_DATA_DIR to a folder where the dataset is prepared already"
            ),
        ) from error
    return builder


def _find_feature(builder: Any, wanted: str, kind: type) -> str:
    """Return the name of the feature that holds the image or the label."""
    found = [name for name, feature in builder.info.features.items() if isinstance(feature, kind)]
    if wanted in found:
        return wanted
    if len(found) != 1:
        raise DatasetError(
            f"`{builder.name}` is not a dataset of images with one label each",
            expected=f"one {kind.__name__} feature called `{wanted}`",
            received=", ".join(builder.info.features),
            hint="Choose an image classification dataset of TFDS's catalog",
        )
    return str(found[0])


def assign_tfds_splits(config: DataConfig, sizes: Mapping[str, int]) -> dict[str, str]:
    """Return TFDS's split instruction for each split.

    Missing splits are cut from the end of the training images, in whole images. Where there is a
    validation but no test, as in ImageNet, the public validation is the test, as in papers.

    Args:
        config: the fractions.
        sizes: images in each of TFDS's splits.

    Raises:
        DatasetError: there is no training split.
    """
    if "train" not in sizes:
        raise DatasetError(
            f"`{config.dataset}` has no training split",
            expected="`train`",
            received=", ".join(sizes) or "nothing",
            hint="Choose another dataset",
        )
    reads = {"test": "test"} if "test" in sizes else {}
    if "validation" in sizes:
        reads["validation" if reads else "test"] = "validation"
    end = total = sizes["train"]
    for split, fraction in (
        ("test", config.test_fraction),
        ("validation", config.validation_fraction),
    ):
        if split not in reads:
            start = end - max(1, round(fraction * end))
            reads[split] = f"train[{start}:{end}]" if end < total else f"train[{start}:]"
            end = start
    return {
        "train": "train" if end == total else f"train[:{end}]",
        "validation": reads["validation"],
        "test": reads["test"],
    }
