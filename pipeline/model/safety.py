"""Checking a `.keras` file before Keras opens it: no code, no other files, no undue memory.

Keras's own safe mode refuses Python bytecode and little else. Here it is the other way round:
objects that are not known to be harmless are refused.

* The archive holds the three members that Keras writes, uncompressed as Keras writes them, so that
  nothing is larger than it looks. Each byte is read once and compared with its CRC.
* The description names only layers and other objects of Keras that neither run code nor read
  files, and layers of this package.
* The weights are numbers that lie in the file itself, each array in one piece, and are together no
  larger than the file. A process of its own finds that out, as damaged HDF5 can end the process
  that opens it.

Not detected: a harmless network that is enormous, in its activations or in layers for which the
file has no weights; and bytes that were exchanged together with their CRC, for which the record
beside a file has its digest (`pipeline.evaluate.external_model`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.errors import CheckpointError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from h5py import Dataset, Group

_DESCRIPTION, _WEIGHTS = "config.json", "model.weights.h5"
_MEMBERS = [_DESCRIPTION, "metadata.json", _WEIGHTS]
# Bytes. Keras's largest networks need 2 MB, and Python takes twenty times as much for parsed JSON.
_MAX_DESCRIPTION_BYTES = 16 << 20
# Bytes of the archive's list of members, for each of which Python takes ten times as much.
_MAX_LIST_BYTES = 1 << 20
_MAX_ARRAYS = 100_000  # ten times as many as Keras's deepest network has, optimizer and all
# Bytes and seconds for checking the weights, which takes 0.1 GB and a fifth of a second.
_MAX_MEMORY, _MAX_SECONDS = 1 << 30, 60
_CHECK_WEIGHTS_CODE = f"from {__name__} import check_weights_in_process; check_weights_in_process()"

# Not there: Lambda, TFSMLayer, TorchModuleWrapper, JaxLayer and FlaxLayer, which run what a file
# holds or names; StringLookup, IntegerLookup and TextVectorization, which read files. A layer that
# a later Keras brings is refused until it stands here.
_HARMLESS = re.compile(
    r"""keras\.layers\.(
    InputLayer | Identity | Masking | Dense | EinsumDense | Embedding | ReversibleEmbedding
  | Activation | (P|Leaky)?ReLU | ELU | Softmax
  | (Depthwise|Separable)Conv[12]D | Conv[123]D(Transpose)?
  | (Global|Adaptive)?(Average|Max)Pooling[123]D
  | (Batch|Group|Layer|RMS|Spectral|Unit)?Normalization
  | (Alpha|Gaussian)?Dropout | SpatialDropout[123]D | GaussianNoise
  | ActivityRegularization | Flatten | Permute | RepeatVector | Reshape
  | (Cropping|UpSampling|ZeroPadding)[123]D
  | Add | Average | Concatenate | Dot | Maximum | Minimum | Multiply | Subtract
  | (Additive|GroupQuery|MultiHead)?Attention
  | ConvLSTM[123]D | (GRU|LSTM|SimpleRNN)(Cell)? | RNN | StackedRNNCells | Bidirectional
  | TimeDistributed | Pipeline
  | Rescaling | Resizing | CenterCrop | Random[A-Z][A-Za-z]+ | RandAugment | AugMix | CutMix
  | MixUp | AutoContrast | Equalization
  | ContrastLimitedAdaptiveHistogramEqualization | Solarization | MaxNumBoundingBoxes
  | CategoryEncoding | Discretization | Hashing
  | HashedCrossing | MelSpectrogram | STFTSpectrogram )
  | keras\.( Sequential | DTypePolicy | src\.models\.functional\.Functional
           | random\.SeedGenerator
           | dtype_policies\.[A-Za-z0-9]*DTypePolicy(Map)?
           | quantizers\.(AbsMaxQuantizer | (Int4|Int8|Float8)QuantizationConfig)
           | (initializers | regularizers | constraints | losses | metrics
             | optimizers(\.schedules)?)\.[A-Z][A-Za-z0-9]* )
  | keras\.src\.ops\.( (image | math | nn | numpy)\.[A-Z][A-Za-z0-9]* | linalg\.Norm
        | core\.((Saturate)?Cast | ConvertToTensor | StopGradient | Unstack | Slice) )
  | keras\.src\.applications\.( convnext\.(LayerScale | StochasticDepth)
        | inception_resnet_v2\.CustomScaleLayer )
    """,
    re.VERBOSE,
)
_OUR_LAYERS = re.compile(r"pipeline\.model\.layers\.[A-Z][A-Za-z0-9]*")
# An activation, loss or metric; not the functions that make objects of names.
_FUNCTION = re.compile(r"(?!(get|serialize|deserialize)$)[a-z][a-z0-9_]*")
# Not U999999999, which takes as many bytes for each number.
_DTYPE = re.compile(r"bool|bfloat16|float(16|32|64)|u?int(8|16|32|64)")
# Raised for damaged archives, JSON and HDF5; too deep a nesting and an unknown kind of archive are
# RuntimeErrors.
_DAMAGE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)


class _UnsafeError(ValueError):
    """A fault of the file, as the rest of a sentence that begins with "one that"."""


def require_safe(path: Path) -> None:
    """Check that Keras can open a `.keras` file without risk.

    Opening it runs no code, reads no other file and unpacks no more than the file holds.

    Imports neither TensorFlow nor Keras, holds no weights in memory, and takes half a second for
    250 MB, a fifth of one for a small file.

    Raises:
        CheckpointError: it is no such file, it is damaged, or it holds more than layers and their
            weights.
    """
    try:
        _check_file(path)
    except _DAMAGE_ERRORS as error:
        raise CheckpointError(
            f"The model file {path} cannot be read safely",
            expected="a .keras file as this pipeline or Keras 3 writes it, without code of its own",
            received=f"one that {_describe_fault(error)}",
            hint="Name another one, or save it again with model.save() of Keras",
        ) from error


def _check_file(path: Path) -> None:
    if path.suffix != ".keras" or not path.is_file():
        raise _UnsafeError("is no file, or has another suffix, by which Keras chooses the format")
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        with zipfile.ZipFile(_FilePart(file, 0, size)) as archive:
            _require_plain_members(archive.infolist(), size)
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():
                raise _UnsafeError(f"is damaged (the CRC of {damaged} is another one)")
            _require_known_objects(json.loads(archive.read(_DESCRIPTION)))
            _require_plain_arrays(path, _open_member(file, archive.getinfo(_WEIGHTS)))


def _describe_fault(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (
        text
        if isinstance(error, _UnsafeError)
        else f"is damaged ({type(error).__name__}: {_quote(text)})"
    )


def _quote(value: object) -> str:
    """Return a text from the file, short and without control characters."""
    return ascii(value)[:150]


# -- the archive -----------------------------------------------------------------------------------


class _FilePart(io.RawIOBase):
    """A part of a file as a file of its own: `size` bytes from `start` on.

    Uncompressed members need not be copied to be checked.
    """

    def __init__(self, file: BinaryIO, start: int, size: int):
        super().__init__()
        self.start, self.size = start, size
        self._file, self._at = file, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte, counted from the beginning, from here or from the end, and return it."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer as far as there are bytes, and return their number."""
        self._file.seek(self.start + self._at)
        view = memoryview(buffer)
        content = self._file.read(min(len(view), max(0, self.size - self._at)))
        view[: len(content)] = content
        self._at += len(content)
        return len(content)

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes; more than a list of members has are refused before they are read.

        zipfile asks for the whole list at once.
        """
        if size > _MAX_LIST_BYTES:
            raise _UnsafeError(f"lists its members in {size} bytes")
        return super().read(size) or b""


def _require_plain_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse members that Keras does not write, or that do not fit a file of `size` bytes."""
    if (names := sorted(member.filename for member in members)) != _MEMBERS:
        raise _UnsafeError(f"holds the members {_quote(names)} instead of {', '.join(_MEMBERS)}")
    for member in members:
        name, inside, outside = member.filename, member.compress_size, member.file_size
        if member.flag_bits & 1:
            raise _UnsafeError(f"holds {name} encrypted")
        if member.compress_type != zipfile.ZIP_STORED or inside != outside:
            raise _UnsafeError(
                f"holds {name} compressed, {inside} bytes for {outside}, where Keras stores it as"
                " it is"
            )
        if name != _WEIGHTS and outside > _MAX_DESCRIPTION_BYTES:
            raise _UnsafeError(f"has {outside} bytes of {name}, more than {_MAX_DESCRIPTION_BYTES}")
    if (declared := sum(member.file_size for member in members)) > size:
        raise _UnsafeError(f"has {size} bytes and declares {declared}")


def _open_member(file: BinaryIO, member: zipfile.ZipInfo) -> _FilePart:
    """Return an uncompressed member as a file."""
    # The header has there the lengths of two fields that stand before the content.
    file.seek(member.header_offset + 26)
    return _FilePart(
        file, member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))), member.file_size
    )


# -- the description -------------------------------------------------------------------------------


def _require_known_objects(description: object) -> None:
    """Refuse objects that Keras would make or call and that are not known to be harmless."""
    rest: list[Any] = [description]
    while rest:
        node = rest.pop()
        if isinstance(node, dict):
            if "class_name" in node and not _is_known(node):
                what = (
                    node.get("config")
                    if node["class_name"] == "function"
                    else node.get("registered_name") or node["class_name"]
                )
                raise _UnsafeError(
                    f"names {_quote(node.get('module'))} {_quote(what)}, which is not known to be"
                    " harmless"
                )
            rest.extend(node.values())
        elif isinstance(node, list):
            rest.extend(node)


def _is_known(node: dict[str, Any]) -> bool:
    """Return whether Keras does nothing but arithmetic with an object."""
    name, module, config, registered = (
        node.get(key) for key in ("class_name", "module", "config", "registered_name")
    )
    if name in ("__keras_tensor__", "__bytes__", "__slice__", "__ellipsis__"):
        return True
    if name in ("__tensor__", "__numpy__"):
        return isinstance(config, dict) and _DTYPE.fullmatch(str(config.get("dtype"))) is not None
    if name == "function":
        return module == "builtins" and _FUNCTION.fullmatch(str(config)) is not None
    if _OUR_LAYERS.fullmatch(f"{module}.{name}"):
        return bool(registered == f"alexnet>{name}")
    # A registered name is looked up before the module is; without a module Keras takes to the ways
    # of its older formats.
    return registered in (None, name) and _HARMLESS.fullmatch(f"{module}.{name}") is not None


# -- the weights -----------------------------------------------------------------------------------


def _require_plain_arrays(path: Path, weights: _FilePart) -> None:
    """Refuse everything that HDF5 can hold besides arrays of numbers.

    That is links, other files, virtual and compressed arrays, and objects.

    HDF5 is asked in a process of its own: two wrong bytes make it take all the memory there is, or
    end the process that asks.
    """
    arguments = (
        sys.executable,
        "-P",
        "-c",
        _CHECK_WEIGHTS_CODE,
        path,
        str(weights.start),
        str(weights.size),
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",
    }  # threads take memory
    output: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "capture_output": True,
        "text": True,
        "errors": "replace",
    }
    try:
        done = subprocess.run(
            arguments, env=environment, timeout=_MAX_SECONDS, check=False, **output
        )
    except subprocess.TimeoutExpired as error:
        raise _UnsafeError(
            f"has weights that take more than {_MAX_SECONDS} seconds to check"
        ) from error
    if done.returncode:
        raise _UnsafeError(
            done.stderr.strip().rpartition("\n")[2]
            if done.returncode == 1
            else "has weights on which HDF5 breaks down"
        )


def check_weights_in_process() -> None:
    """Check weights in a process of their own, whose arguments are the file, first byte and size.

    It ends with 0, or with 1 and the reason on the standard error stream.
    """
    # A system may have no such limit, or a lower one.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    try:
        with Path(sys.argv[1]).open("rb") as file:
            _check_arrays(_FilePart(file, int(sys.argv[2]), int(sys.argv[3])))
    except _DAMAGE_ERRORS as error:
        sys.exit(_describe_fault(error))


def _check_arrays(weights: _FilePart) -> None:
    import h5py

    with h5py.File(weights, "r") as file:
        rest, seen, declared = [file], set[int](), 0
        while rest:
            item = rest.pop()
            address = h5py.h5o.get_info(item.id).addr
            if address in seen or len(seen) + len(rest) > _MAX_ARRAYS:
                raise _UnsafeError(f"has weights in a circle, or in more than {_MAX_ARRAYS} arrays")
            seen.add(address)
            if isinstance(item, h5py.Group):
                rest.extend(_members_of(item))
            else:
                declared += _array_bytes(item)
        if declared > weights.size:
            raise _UnsafeError(f"declares {declared} bytes of weights in {weights.size}")


def _members_of(group: Group) -> Iterator[Group | Dataset]:
    """Yield the members of a group, which must lie in the file itself."""
    import h5py

    if len(group) > _MAX_ARRAYS:
        raise _UnsafeError(f"has weights in more than {_MAX_ARRAYS} arrays")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise _UnsafeError(f"has weights that are a link to somewhere else ({_quote(name)})")
        yield group[name]


def _array_bytes(item: Group | Dataset) -> int:
    """Return the bytes of an array of numbers, which must lie in the file and in one piece."""
    import h5py

    if not isinstance(item, h5py.Dataset) or (
        item.dtype.kind not in "biuf" and item.dtype.str != "|V2"
    ):  # V2: bfloat16
        raise _UnsafeError(f"has weights that are no numbers ({_quote(item.name)})")
    # Before its shape, for which HDF5 would open the files that a virtual array consists of.
    if (
        item.id.get_create_plist().get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
        or item.external
    ):
        raise _UnsafeError(
            f"has weights that are compressed, in pieces or in another file ({_quote(item.name)})"
        )
    item.attrs.get("dtype")  # as Keras does
    return int(item.nbytes)
