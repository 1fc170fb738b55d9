"""Where images come from and how they are kept: the only file that imports TensorFlow Datasets."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.config.data import DataConfig
from pipeline.config.recipes import suggest_spelling
from pipeline.data.listing import at, kind_of, list_folder, list_manifest
from pipeline.data.splits import (
    SPLITS,
    class_order,
    deal,
    known_classes,
    remember_classes,
    require_classes,
    split_images,
)
from pipeline.errors import DatasetError

if TYPE_CHECKING:
    from pipeline.data.audit import Checked

Progress = Callable[[int, int, str], None]
_NAME_FEATURES = ("key", "file_name", "image/filename", "id")
_WINDOW = 256
_SHOWN_COPIES = 24
_PARALLEL_FILES = 16


class SourceImage(NamedTuple):
    """One image for the shards: how it is called, its class id, EXIF orientation 1-8, SHA-256 (or nothing), and how to get its bytes."""

    key: str
    label: int
    orientation: int
    sha256: bytes
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Prepared:
    """A dataset in shards, not measured yet.

    `found` = images in the shards + quarantined + aside (copies left out because another split has
    their group) + the sum of excluded. `copies` names the images of each group of equal or nearly
    equal ones, `conflicts` equal ones under different labels; `thumbnails` are uint8 [64, 64, 3],
    of the first two of some groups.
    """

    name: str
    builder_directory: Path
    class_names: tuple[str, ...]
    reads: Mapping[str, str]
    image_key: str
    label_key: str
    found: int | None = None
    quarantined: Sequence[tuple[str, str]] = ()
    excluded: Mapping[str, int] = field(default_factory=dict)
    empty_folders: int = 0
    how_split: str = ""
    aside: Sequence[str] = ()
    copies: Sequence[tuple[str, ...]] = ()
    copies_in_several_splits: int = 0
    conflicts: Sequence[tuple[str, ...]] = ()
    thumbnails: Sequence[Sequence[Any]] = ()


def prepare(config: DataConfig, directory: Path, progress: Progress) -> Prepared:
    """Bring the dataset into shards.

    Args:
        config: which dataset, and how it is split.
        directory: the stage's own folder, `<workdir>/stages/<name>`; what we write lands in
            `shards` below it.
        progress: called with files done, files in all and what is going on.

    Raises:
        DatasetError: the dataset cannot be had, or is not one of labeled images.
    """
    kind = kind_of(config.dataset)
    if kind == "digits":
        return _prepare_digits(config, directory, progress)
    if kind == "tfds":
        data_directory = Path(
            os.environ.get("TFDS_DATA_DIR") or directory.parents[1] / "datasets"
        ).expanduser()
        progress(0, 1, f"TFDS prepares {config.dataset} in {data_directory}")
        return prepare_tfds(config, data_directory)
    return _prepare_files(config, directory, progress)


# -- our own shards: digits, folders and manifests -------------------------------------------------


def _prepare_digits(config: DataConfig, directory: Path, progress: Progress) -> Prepared:
    """Store scikit-learn's 1,797 scanned digits as PNG files of 8 x 8 pixels, uint8 grayscale [8, 8, 1] in [0, 255]."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = np.rint(digits.images * 255 / 16).astype(np.uint8)[..., np.newaxis]
    splits: dict[str, list[SourceImage]] = {split: [] for split in SPLITS}
    for index, (scan, label) in enumerate(zip(scans, digits.target, strict=True)):
        # Dealt by pixels: another PNG writer does not move an image.
        split = deal(hashlib.sha256(scan.tobytes()).digest(), "", frozenset(), config)
        splits[split].append(
            SourceImage(f"{index:04d}.png", int(label), 1, b"", functools.partial(_png, scan))
        )
    names = tuple(str(name) for name in digits.target_names)
    where = write_shards(directory / "shards", splits, len(names), len(scans), progress)
    how = "every split dealt by the SHA-256 of the pixels"
    return Prepared(
        "digits",
        where,
        names,
        {split: split for split in splits},
        "image",
        "label",
        found=len(scans),
        how_split=how,
    )


def _png(scan: Any) -> bytes:
    """Return the PNG file of an image, uint8 [height, width, channels] in [0, 255]."""
    import tensorflow as tf

    return bytes(tf.io.encode_png(scan).numpy())


def _prepare_files(config: DataConfig, directory: Path, progress: Progress) -> Prepared:
    """Check the images of a folder or a manifest, split them, and store copies of the usable ones, bytes as they are."""
    from pipeline.data.audit import audit, require_few, thumbnail_of

    path, workdir = at(config.dataset), directory.parents[1]
    listing = list_folder(path) if kind_of(config.dataset) == "folder" else list_manifest(path)
    source = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    checked = audit(listing.entries, workdir / "audits" / f"{source}.sqlite", config, progress)
    require_few(checked, config)
    good = [item for item in checked if not item.problem]
    memory = workdir / "classes" / f"{source}.json"
    names = class_order(
        {item.entry.label for item in good}, known_classes(memory), config.renamed_classes
    )
    numbers = {name: number for number, name in enumerate(names)}
    placed, copies = split_images(good, config)
    require_classes(names, _counts(good, placed, numbers))
    splits = {split: _images(good, placed, split, numbers) for split in SPLITS}
    shards = write_shards(
        directory / "shards", splits, len(names), sum(map(bool, placed)), progress, config.beam
    )
    remember_classes(memory, names)
    return Prepared(
        name=path.resolve().name,
        builder_directory=shards,
        class_names=names,
        reads={split: split for split in SPLITS},
        image_key="image",
        label_key="label",
        found=listing.found,
        quarantined=[(item.entry.key, item.problem) for item in checked if item.problem],
        excluded=listing.excluded,
        empty_folders=listing.empty_folders,
        how_split=_how_split(frozenset(item.entry.split for item in good)),
        copies=[tuple(good[index].entry.key for index in group) for group in copies.groups],
        copies_in_several_splits=copies.straddling,
        conflicts=[tuple(good[index].entry.key for index in group) for group in copies.conflicts],
        thumbnails=[
            [thumbnail_of(good[index]) for index in group[:2]]
            for group in copies.groups[:_SHOWN_COPIES]
        ],
        aside=[item.entry.key for item, split in zip(good, placed, strict=True) if not split],
    )


def _read_file(path: str) -> bytes:
    return Path(path).read_bytes()


def _images(
    good: Sequence[Checked], placed: Sequence[str], split: str, numbers: Mapping[str, int]
) -> Iterator[SourceImage]:
    """Yield the images of a split one by one, so that a million need not be there at a time."""
    for item, where in zip(good, placed, strict=True):
        if where == split:
            entry, facts = item.entry, item.facts
            read = functools.partial(_read_file, entry.path)
            yield SourceImage(
                entry.key, numbers[entry.label], facts.orientation, facts.sha256, read
            )


def _counts(
    good: Sequence[Checked], placed: Sequence[str], numbers: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Return how many images of each class each split has."""
    counts = {split: [0] * len(numbers) for split in SPLITS}
    for item, split in zip(good, placed, strict=True):
        if split:
            counts[split][numbers[item.entry.label]] += 1
    return {split: tuple(found) for split, found in counts.items()}


def _how_split(present: frozenset[str]) -> str:
    cut = [split for split in ("validation", "test") if split not in present]
    given = [split for split in SPLITS if split in present]
    words = [f"{', '.join(given)} as the source names them"] if given else []
    return "; ".join(
        words + ([f"{' and '.join(cut)} dealt by the SHA-256 of each file"] if cut else [])
    )


def write_shards(
    directory: Path,
    splits: Mapping[str, Iterable[SourceImage]],
    classes: int,
    total: int,
    progress: Progress,
    beam_options: str = "",
) -> Path:
    """Write images into TFDS shards and return the folder that `tfds.builder_from_directory` takes.

    The order in the shards is that of a hash of the names, so that neighbors are of different
    classes.

    Args:
        directory: where the shards go.
        splits: for each split its images.
        classes: number of classes.
        total: images in all splits.
        progress: called with images written and images in all.
        beam_options: if given, Apache Beam reads, sorts and writes the images on the runner that
            they name; it tells no progress.

    Raises:
        DatasetError: a file is not what it was when it was looked at, or Apache Beam is missing.
    """
    import numpy as np
    import tensorflow_datasets as tfds

    done, out = 0, sys.stdout

    def examples(images: Iterable[SourceImage]) -> Iterator[tuple[str, dict[str, Any]]]:
        nonlocal done
        for image in images:
            yield _example(image)
            done += 1
            if done % _WINDOW == 0 or done == total:
                with contextlib.redirect_stdout(out):
                    progress(done, total, "storing images")

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            # By number: TFDS keeps names one a line, and a folder's name may hold a line break. The
            # names are in the stage's record.
            "label": tfds.features.ClassLabel(num_classes=classes),
            "key": tfds.features.Text(),
            # As the file's EXIF says; 1 is upright. The decoder turns the image, once.
            "orientation": np.int64,
        }
    )
    with _quiet(tfds):
        builder = tfds.dataset_builders.AdhocBuilder(
            name="images",
            version="1.0.0",
            features=features,
            split_datasets={
                split: _on_beam(images) if beam_options else examples(images)
                for split, images in splits.items()
            },
            data_dir=directory,
            description="Images with their encoded bytes as they were found.",
        )
        builder.download_and_prepare(download_config=_download_config(tfds, beam_options))
    shutil.rmtree(directory / "downloads", ignore_errors=True)  # made by TFDS, and empty
    return Path(builder.data_dir)


def _example(image: SourceImage) -> tuple[str, dict[str, Any]]:
    """Read an image; return its key and what the shards hold of it."""
    example = {
        "image": _unchanged(image),
        "label": image.label,
        "key": image.key,
        "orientation": image.orientation,
    }
    return image.key, example


def _on_beam(images: Iterable[SourceImage]) -> Any:
    """Return Beam's transformation from nothing to examples.

    The workers read the files, which they must be able to see.
    """
    beam = _beam()
    return beam.Create(list(images)) | beam.Reshuffle() | beam.Map(_example)


def _beam() -> Any:
    try:
        import apache_beam
    except ImportError as error:
        raise DatasetError(
            "data.beam needs the package apache-beam, which is not installed. Expected the extra"
            ' `beam`. Type pip install "alexnet-pipeline[beam]", or leave data.beam empty.'
        ) from error
    return apache_beam


def _download_config(tfds: Any, beam_options: str) -> Any:
    """Return TFDS's settings of a preparation, with Beam's options where there are any."""
    if not beam_options:
        return tfds.download.DownloadConfig()
    options = _beam().options.pipeline_options.PipelineOptions(
        shlex.split(beam_options), save_main_session=False
    )
    return tfds.download.DownloadConfig(beam_options=options)


def _unchanged(image: SourceImage) -> bytes:
    """Return an image's bytes after comparing them with those that were checked."""
    try:
        encoded = image.read()
    except OSError as error:
        raise DatasetError(
            f"{image.key!r} cannot be read any more ({error.strerror}). Expected a folder at"
            " rest. Type the same command again."
        ) from error
    if image.sha256 and hashlib.sha256(encoded).digest() != image.sha256:
        raise DatasetError(
            f"{image.key!r} changed while it was being read. Expected a folder at rest. Type the"
            " same command again."
        )
    return encoded


# -- TFDS's own datasets ---------------------------------------------------------------------------


def prepare_tfds(config: DataConfig, data_directory: Path) -> Prepared:
    """Let TFDS download and prepare a dataset by name, and find its image, its label and its splits.

    Raises:
        DatasetError: the name is unknown, the download failed, or the dataset has no image or no
            single label.
    """
    import tensorflow_datasets as tfds

    builder = _prepared_builder(tfds, config.dataset, data_directory, config.beam)
    image_key = _feature(builder, "image", tfds.features.Image)
    label_key = _feature(builder, "label", tfds.features.ClassLabel)
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    reads = _tfds_reads(config, sizes)
    return Prepared(
        name=config.dataset,
        builder_directory=Path(builder.data_dir).resolve(),
        class_names=tuple(builder.info.features[label_key].names),
        reads=reads,
        image_key=image_key,
        label_key=label_key,
        how_split="; ".join(f"{split} is TFDS's `{read}`" for split, read in reads.items()),
    )


def require_in_catalog(name: str) -> None:
    """Refuse a name that TFDS does not know.

    Raises:
        DatasetError: it does not.
    """
    import tensorflow_datasets as tfds

    short = name.partition(":")[0].partition("/")[0]
    known = tuple(tfds.list_builders(with_community_datasets=False))
    if short not in known:
        raise DatasetError(
            f"There is neither a folder nor a TFDS dataset `{name}`",
            expected="`digits`, a folder, a CSV file or a name of TFDS's catalog",
            received=repr(name),
            hint=f"{suggest_spelling(short, known)} Type a folder as ./{name}".strip(),
        )


def _prepared_builder(tfds: Any, name: str, data_directory: Path, beam_options: str) -> Any:
    """Return the builder of a dataset that is on the disk, after a download if it must be."""
    require_in_catalog(name)
    try:
        with _quiet(tfds):
            builder = tfds.builder(name, data_dir=data_directory)
            builder.download_and_prepare(download_config=_download_config(tfds, beam_options))
    except DatasetError:
        raise
    except Exception as error:  # TFDS and its downloaders raise whatever they like; every cause has the same remedies
        reason = " ".join(str(error).split())[:300]
        raise DatasetError(
            f"TFDS could not prepare `{name}` ({type(error).__name__}: {reason}). Expected a known"
            " configuration, and the network or files that were fetched by hand. Put those, under"
            f" the names that TFDS asks for, into {data_directory / 'downloads' / 'manual'} and"
            " type the command again; or set TFDS_DATA_DIR to a folder where the dataset is"
            " prepared already."
        ) from error
    return builder


def _feature(builder: Any, wanted: str, kind: Any) -> str:
    """Return the name of the feature that holds the image or the label."""
    found = [name for name, feature in builder.info.features.items() if isinstance(feature, kind)]
    if wanted in found:
        return wanted
    if len(found) != 1:
        raise DatasetError(
            f"`{builder.name}` is not a dataset of images with one label each. Expected one"
            f" {kind.__name__} feature called `{wanted}`. Received"
            f" {', '.join(builder.info.features)}. Choose an image classification dataset of TFDS's"
            " catalog."
        )
    return str(found[0])


def _tfds_reads(config: DataConfig, sizes: Mapping[str, int]) -> dict[str, str]:
    """Return the instruction for each split.

    What TFDS lacks is cut from the end of its training images, in whole images.

    Where there is a validation but no test, as in ImageNet, the public validation is the test: it
    is what papers report.
    """
    if "train" not in sizes:
        raise DatasetError(
            f"`{config.dataset}` has no training split. Expected `train`. Received"
            f" {', '.join(sizes) or 'nothing'}. Choose another dataset."
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


# -- reading ---------------------------------------------------------------------------------------


def read_split(shards: Path, instruction: str, image_key: str, label_key: str) -> Any:
    """Return a tf.data.Dataset of {`image`: encoded bytes, `label`: int64, `key`.

    Name, `orientation`: int64}, in stored order.

    The orientation is 1, upright, where the shards are not ours: the published numbers of TFDS's
    sets turn no image either.

    Args:
        shards: the folder of the TFDS builder.
        instruction: such as `train[:90%]`.
        image_key: feature that holds the image.
        label_key: feature that holds the class id.
    """
    import tensorflow as tf

    records, parse = read_records(shards, instruction, image_key, label_key)

    def named(index: Any, record: Any) -> dict[str, Any]:
        example = parse(record)
        return example if "key" in example else {**example, "key": tf.strings.format("{}", index)}

    return records(None).enumerate().map(named, num_parallel_calls=1)


def read_records(
    shards: Path, instruction: str, image_key: str, label_key: str
) -> tuple[Callable[[int | None], Any], Callable[[Any], dict[str, Any]]]:
    """Return what gives a split's records, string [] each, and what makes of one {`image`, `label`, `orientation`} and perhaps `key`.

    Apart, so that training parses records where it decodes the images: in parallel, without handing
    each from thread to thread again. The first takes None for the stored order, or a number that
    shards are shuffled by; then some records of each of 16 come in turn.

    Args:
        shards: the folder of the TFDS builder.
        instruction: such as `train[:90%]`.
        image_key: feature that holds the image.
        label_key: feature that holds the class id.
    """
    import numpy as np
    import tensorflow as tf
    import tensorflow_datasets as tfds

    with _quiet_log():
        builder = tfds.builder_from_directory(shards)
        if builder.info.file_format.value != "tfrecord":
            raise DatasetError(
                f"The dataset in {shards} is kept as {builder.info.file_format.value}. Expected"
                " TFRecord, TFDS's default. Type `tfds build --file_format=tfrecord` for it, or"
                " name another folder in TFDS_DATA_DIR."
            )
        files = builder.info.splits[instruction].file_instructions
        texts = {
            name
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Text)
        }
        name_key = next((name for name in _NAME_FEATURES if name in texts), None)
        turned = "orientation" if "orientation" in builder.info.features else None
        wanted = tfds.decode.PartialDecoding(
            {name: True for name in (image_key, label_key, name_key, turned) if name}
        )
        features = wanted.extract_features(builder.info.features)

    def records(seed: int | None) -> Any:
        order = (
            range(len(files))
            if seed is None
            else np.random.default_rng(seed).permutation(len(files))
        )
        names = [os.fspath(files[place].filename) for place in order]
        bounds = np.asarray([(files[place].skip, files[place].take) for place in order], np.int64)
        slices = tf.data.Dataset.from_tensor_slices((names, bounds))
        at_a_time = 1 if seed is None else min(_PARALLEL_FILES, len(names))
        read = slices.interleave(
            lambda file, bound: tf.data.TFRecordDataset(file).skip(bound[0]).take(bound[1]),
            cycle_length=at_a_time,
            block_length=_PARALLEL_FILES,
            num_parallel_calls=at_a_time if at_a_time > 1 else None,
        )
        return read.apply(tf.data.experimental.assert_cardinality(sum(file.take for file in files)))

    def parse(record: Any) -> dict[str, Any]:
        with _quiet_log():
            example = features.deserialize_example(
                record, decoders={image_key: tfds.decode.SkipDecoding()}
            )
        orientation = example[turned] if turned else tf.constant(1, tf.int64)
        named = {"key": example[name_key]} if name_key else {}
        return {
            "image": example[image_key],
            "label": example[label_key],
            "orientation": orientation,
            **named,
        }

    return records, parse


def fixed_options() -> Any:
    """Return tf.data options under which the same dataset gives the same elements on any machine, without stalls."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    # Deleting an autotuned iterator can wait for seconds at the end of every epoch.
    options.autotune.enabled = False
    # Images are worked on in parallel; spreading each small operation over the processors as well
    # only costs.
    options.threading.max_intra_op_parallelism = 1
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Keep TFDS from writing to the terminal, which is the command line's."""
    tfds.disable_progress_bar()
    with _quiet_log(), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _quiet_log() -> Iterator[None]:
    """Keep TFDS from logging; unlike the output, which is the whole program's, that may be done in the background."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
