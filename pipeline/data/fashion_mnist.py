"""Fashion-MNIST without the network, from Debian's package `dataset-fashion-mnist` (MIT license).

Debian strips the name and the time from the head of each gzip file, so that its package can be
built twice with the same bytes. The head is put back here; then the files are, to the last bit,
those that TensorFlow Datasets (TFDS) has checksums of and takes instead of a download.

    apt-get install dataset-fashion-mnist
    python -m pipeline.data.fashion_mnist
    alexnet run --dataset fashion_mnist
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path

from pipeline.errors import DatasetError, PipelineError
from pipeline.files import write_bytes

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# SHA-256 of the published files, as TFDS registers them in url_checksums/fashion_mnist.txt.
SHA256 = {
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    "train-images-idx3-ubyte.gz": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
    ),
    "train-labels-idx1-ubyte.gz": (
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
    ),
}
# When the authors compressed the files, in seconds since 1970.
_MODIFIED = {"t10k": 1504176627, "train": 1504176606}


def restore_files(source: Path, manual: Path) -> list[Path]:
    """Write the four published files, byte for byte, and return their paths.

    Args:
        source: folder of Debian's files; only read.
        manual: TFDS's folder for files fetched by hand, `<data_dir>/downloads/manual`; made if need
            be.

    Raises:
        DatasetError: the package is not installed, is another edition, or the folder cannot be
            written.
    """
    try:
        return [
            _restore_file(source / name, manual / name, sha256) for name, sha256 in SHA256.items()
        ]
    except FileNotFoundError as error:
        raise DatasetError(
            f"There is no {error.filename}",
            expected="the files of Debian's package",
            received="a path that does not exist",
            hint="Type: apt-get install dataset-fashion-mnist",
        ) from error
    except OSError as error:
        raise DatasetError(
            f"{error.filename} cannot be read or written ({error.strerror})",
            expected="files that you may read and a folder that you may write",
            hint="Check its permissions and the room on the disk",
        ) from error


def _restore_file(source: Path, target: Path, sha256: str) -> Path:
    published = add_header(source.read_bytes(), target.name)
    if hashlib.sha256(published).hexdigest() != sha256:
        raise DatasetError(
            f"{source} is not the file that was published",
            expected=f"Debian's edition, which gives SHA-256 {sha256}",
            received="another",
            hint="Type: apt-get install --reinstall dataset-fashion-mnist",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, published)
    return target


def add_header(stripped: bytes, name: str) -> bytes:
    """Return a gzip file with the time and the name in its head again (RFC 1952, section 2.3).

    Args:
        stripped: the file with a plain head of ten bytes.
        name: what the published file is called, such as `train-labels-idx1-ubyte.gz`.
    """
    modified = _MODIFIED[name.partition("-")[0]].to_bytes(4, "little")
    # Magic number, deflate, "a name follows"; the time; compression level and system as they were;
    # the name.
    return (
        b"\x1f\x8b\x08\x08"
        + modified
        + stripped[8:10]
        + name.removesuffix(".gz").encode()
        + b"\0"
        + stripped[10:]
    )


def restore_from_arguments() -> str:
    """Restore the files as the command line asks, and return a sentence for the terminal."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.data.fashion_mnist",
        description="Fashion-MNIST from Debian's package.",
    )
    parser.add_argument(
        "source",
        nargs="?",
        type=Path,
        default=DEBIAN,
        help="folder of the package's files [%(default)s]",
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        default=Path("mlruns"),
        help="as for alexnet [%(default)s]; TFDS_DATA_DIR comes first",
    )
    options = parser.parse_args()
    data_directory = Path(
        os.environ.get("TFDS_DATA_DIR") or options.workdir / "datasets"
    ).expanduser()
    restored = restore_files(options.source, data_directory / "downloads" / "manual")
    return (
        f"Fashion-MNIST: {len(restored)} files in {restored[0].parent}. Next: alexnet run --dataset"
        " fashion_mnist\n"
    )


if __name__ == "__main__":
    try:
        sys.stdout.write(restore_from_arguments())
    except PipelineError as error:
        sys.exit(f"Error: {error}")
