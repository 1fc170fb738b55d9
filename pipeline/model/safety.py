"""A `.keras` file is looked into before Keras opens it.

One from elsewhere must run no code, read no other file and take no undue memory.

Keras's own safe mode refuses Python bytecode and little else. Here it is the other way round: what
is not known to be harmless is refused.

* The archive holds the three members that Keras writes, uncompressed as Keras writes them, so that
  nothing is larger than it looks. Each
  byte is read once and compared with its CRC.
* The description names nothing but layers and other objects of Keras that neither run code nor read
  files, and layers of this package.
* The weights are numbers that lie in the file itself, in one piece an array, and are no larger
  together than it is. That is found out in a
  process of its own, as damaged HDF5 can end the process that opens it.

Not seen here: a harmless network that is enormous, in its activations or in layers for which the
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
from typing import Any, BinaryIO

from pipeline.errors import CheckpointError

_DESCRIPTION, _WEIGHTS = "config.json", "model.weights.h5"
_MEMBERS = [_DESCRIPTION, "metadata.json", _WEIGHTS]
_LONGEST_DESCRIPTION = (
    16 << 20
)  # bytes; Keras's largest networks need 2 MB, and Python takes twenty times as much for what JSON can hold
_LONGEST_LIST = (
    1 << 20
)  # bytes; of the archive's members, for each of which Python takes ten times as much
_MAX_ARRAYS = 100_000  # ten times what Keras's deepest network has, optimizer and all
_MAX_MEMORY, _MAX_SECONDS = (
    1 << 30,
    60,
)  # for finding out what the weights are, which takes 0.1 GB and a fifth of a second
_APART = f"from {__name__} import look_apart; look_apart()"

# Not there: Lambda, TFSMLayer, TorchModuleWrapper, JaxLayer and FlaxLayer, which run what a file
# holds or names; StringLookup, IntegerLookup and TextVectorization, which read files. A layer that
# a later Keras brings is refused until it stands here.
_KEPT = re.compile(
    r"""keras\.layers\.(
    InputLayer | Identity | Masking | Dense | EinsumDense | Embedding | ReversibleEmbedding | Activation | (P|Leaky)?ReLU | ELU | Softmax
  | (Depthwise|Separable)Conv[12]D | Conv[123]D(Transpose)? | (Global|Adaptive)?(Average|Max)Pooling[123]D
  | (Batch|Group|Layer|RMS|Spectral|Unit)?Normalization | (Alpha|Gaussian)?Dropout | SpatialDropout[123]D | GaussianNoise
  | ActivityRegularization | Flatten | Permute | RepeatVector | Reshape | (Cropping|UpSampling|ZeroPadding)[123]D
  | Add | Average | Concatenate | Dot | Maximum | Minimum | Multiply | Subtract | (Additive|GroupQuery|MultiHead)?Attention
  | ConvLSTM[123]D | (GRU|LSTM|SimpleRNN)(Cell)? | RNN | StackedRNNCells | Bidirectional | TimeDistributed | Pipeline
  | Rescaling | Resizing | CenterCrop | Random[A-Z][A-Za-z]+ | RandAugment | AugMix | CutMix | MixUp | AutoContrast | Equalization
  | ContrastLimitedAdaptiveHistogramEqualization | Solarization | MaxNumBoundingBoxes | CategoryEncoding | Discretization | Hashing
  | HashedCrossing | MelSpectrogram | STFTSpectrogram )
  | keras\.( Sequential | DTypePolicy | src\.models\.functional\.Functional | random\.SeedGenerator
           | dtype_policies\.[A-Za-z0-9]*DTypePolicy(Map)? | quantizers\.(AbsMaxQuantizer | (Int4|Int8|Float8)QuantizationConfig)
           | (initializers | regularizers | constraints | losses | metrics | optimizers(\.schedules)?)\.[A-Z][A-Za-z0-9]* )
  | keras\.src\.ops\.( (image | math | nn | numpy)\.[A-Z][A-Za-z0-9]* | linalg\.Norm
                     | core\.((Saturate)?Cast | ConvertToTensor | StopGradient | Unstack | Slice) )
  | keras\.src\.applications\.( convnext\.(LayerScale | StochasticDepth) | inception_resnet_v2\.CustomScaleLayer )
    """,
    re.VERBOSE,
)
_OURS = re.compile(r"pipeline\.model\.layers\.[A-Z][A-Za-z0-9]*")
_FUNCTION = re.compile(
    r"(?!(get|serialize|deserialize)$)[a-z][a-z0-9_]*"
)  # an activation, loss or metric; not what makes objects of names
_DTYPE = re.compile(
    r"bool|bfloat16|float(16|32|64)|u?int(8|16|32|64)"
)  # not U999999999, which takes that much for each number
# What the readers of archives, JSON and HDF5 raise for damaged ones; too deep a nesting and an
# unknown kind of archive are RuntimeErrors.
_DAMAGED = (
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
    """What is wrong with the file, as the rest of a sentence that begins with "one that"."""


def require_safe(path: Path) -> None:
    """Return if Keras can open a `.keras` file without running code, reading other files or unpacking more than the file holds.

    Imports neither TensorFlow nor Keras, holds no weights in memory, and takes half a second for
    250 MB, a fifth of one for a small file.

    Raises:
        CheckpointError: it is no such file, it is damaged, or it holds more than layers and their
            weights.
    """
    try:
        _look_into(path)
    except _DAMAGED as error:
        raise CheckpointError(
            f"The model file {path} cannot be read safely. Expected a .keras file as this pipeline"
            f" or Keras 3 writes it, without code of its own. Received one that {_what(error)}."
            " Name another one, or save it again with model.save() of Keras."
        ) from error


def _look_into(path: Path) -> None:
    if path.suffix != ".keras" or not path.is_file():
        raise _UnsafeError("is no file, or has another suffix, by which Keras chooses the format")
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        with zipfile.ZipFile(_Part(file, 0, size)) as archive:
            _require_plain_members(archive.infolist(), size)
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():
                raise _UnsafeError(f"is damaged (the CRC of {damaged} is another one)")
            _require_known_objects(json.loads(archive.read(_DESCRIPTION)))
            _require_plain_arrays(path, _stored(file, archive.getinfo(_WEIGHTS)))


def _what(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (
        text
        if isinstance(error, _UnsafeError)
        else f"is damaged ({type(error).__name__}: {_shown(text)})"
    )


def _shown(value: object) -> str:
    """Return what a file says of itself, short and without control characters."""
    return ascii(value)[:150]


# -- the archive -----------------------------------------------------------------------------------


class _Part(io.RawIOBase):
    """`size` bytes of a file from `start` on, as a file of its own.

    What is stored uncompressed need not be copied to be looked into.
    """

    def __init__(self, file: BinaryIO, start: int, size: int):
        super().__init__()
        self.start, self.size = start, size
        self._file, self._at = file, 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read at any place."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte, counted from the beginning, from here or from the end."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, as far as there are bytes, and return how many there were."""
        self._file.seek(self.start + self._at)
        content = self._file.read(min(len(buffer), max(0, self.size - self._at)))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def read(self, size: int = -1) -> bytes:
        """Return bytes; zipfile asks for the whole list of members at once, and one of millions is refused before it is read."""
        if size > _LONGEST_LIST:
            raise _UnsafeError(f"lists its members in {size} bytes")
        return super().read(size) or b""


def _require_plain_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse other members than Keras's, and any whose size is not what it takes in the file of `size` bytes."""
    if (names := sorted(member.filename for member in members)) != _MEMBERS:
        raise _UnsafeError(f"holds the members {_shown(names)} instead of {', '.join(_MEMBERS)}")
    for member in members:
        name, inside, outside = member.filename, member.compress_size, member.file_size
        if member.flag_bits & 1:
            raise _UnsafeError(f"holds {name} encrypted")
        if member.compress_type != zipfile.ZIP_STORED or inside != outside:
            raise _UnsafeError(
                f"holds {name} compressed, {inside} bytes for {outside}, where Keras stores it as"
                " it is"
            )
        if name != _WEIGHTS and outside > _LONGEST_DESCRIPTION:
            raise _UnsafeError(f"has {outside} bytes of {name}, more than {_LONGEST_DESCRIPTION}")
    if (declared := sum(member.file_size for member in members)) > size:
        raise _UnsafeError(f"has {size} bytes and declares {declared}")


def _stored(file: BinaryIO, member: zipfile.ZipInfo) -> _Part:
    """Return an uncompressed member as a file."""
    file.seek(
        member.header_offset + 26
    )  # where its header has the lengths of two fields that stand before the content
    return _Part(
        file, member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))), member.file_size
    )


# -- the description -------------------------------------------------------------------------------


def _require_known_objects(description: Any) -> None:
    """Refuse any object, wherever it stands in the JSON, that Keras would make or call and that is not known to be harmless."""
    rest = [description]
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
                    f"names {_shown(node.get('module'))} {_shown(what)}, which is not known to be"
                    " harmless"
                )
            rest.extend(node.values())
        elif isinstance(node, list):
            rest.extend(node)


def _is_known(node: dict[str, Any]) -> bool:
    """Say whether Keras does nothing but arithmetic with an object."""
    name, module, config, registered = (
        node.get(key) for key in ("class_name", "module", "config", "registered_name")
    )
    if name in ("__keras_tensor__", "__bytes__", "__slice__", "__ellipsis__"):
        return True
    if name in ("__tensor__", "__numpy__"):
        return isinstance(config, dict) and _DTYPE.fullmatch(str(config.get("dtype"))) is not None
    if name == "function":
        return module == "builtins" and _FUNCTION.fullmatch(str(config)) is not None
    if _OURS.fullmatch(f"{module}.{name}"):
        return bool(registered == f"alexnet>{name}")
    # A registered name is looked up before the module is; without a module Keras takes to the ways
    # of its older formats.
    return registered in (None, name) and _KEPT.fullmatch(f"{module}.{name}") is not None


# -- the weights -----------------------------------------------------------------------------------


def _require_plain_arrays(path: Path, weights: _Part) -> None:
    """Refuse what HDF5 can hold besides arrays of numbers.

    Links, other files, virtual and compressed arrays, objects.

    HDF5 is asked in a process of its own: two wrong bytes make it take all the memory there is, or
    end the process that asks.
    """
    words = (sys.executable, "-P", "-c", _APART, path, str(weights.start), str(weights.size))
    surroundings = os.environ | {
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
        done = subprocess.run(words, env=surroundings, timeout=_MAX_SECONDS, check=False, **output)
    except subprocess.TimeoutExpired as error:
        raise _UnsafeError(
            f"has weights that take more than {_MAX_SECONDS} seconds to look at"
        ) from error
    if done.returncode:
        raise _UnsafeError(
            done.stderr.strip().rpartition("\n")[2]
            if done.returncode == 1
            else "has weights on which HDF5 breaks down"
        )


def look_apart() -> None:
    """Be the process that looks at weights.

    End with 0, or with 1 and the reason on the standard error stream.

    The arguments are the file, and where in it the weights are: their first byte, and how many.
    """
    with contextlib.suppress(
        OSError, ValueError
    ):  # a system that has no such limit, or a lower one
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    try:
        with Path(sys.argv[1]).open("rb") as file:
            _look_at_arrays(_Part(file, int(sys.argv[2]), int(sys.argv[3])))
    except _DAMAGED as error:
        sys.exit(_what(error))


def _look_at_arrays(weights: _Part) -> None:
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
                rest.extend(_linked(item))
            else:
                declared += _bytes_of(item)
        if declared > weights.size:
            raise _UnsafeError(f"declares {declared} bytes of weights in {weights.size}")


def _linked(group: Any) -> Iterator[Any]:
    """Yield what is in a group, if it really is."""
    import h5py

    if len(group) > _MAX_ARRAYS:
        raise _UnsafeError(f"has weights in more than {_MAX_ARRAYS} arrays")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise _UnsafeError(f"has weights that are a link to somewhere else ({_shown(name)})")
        yield group[name]


def _bytes_of(item: Any) -> int:
    """Return how much memory an array of numbers takes that lies in the file itself and in one piece."""
    import h5py

    if not isinstance(item, h5py.Dataset) or (
        item.dtype.kind not in "biuf" and item.dtype.str != "|V2"
    ):  # V2: bfloat16
        raise _UnsafeError(f"has weights that are no numbers ({_shown(item.name)})")
    # Before its shape, for which HDF5 would open the files that a virtual array consists of.
    if (
        item.id.get_create_plist().get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
        or item.external
    ):
        raise _UnsafeError(
            f"has weights that are compressed, in pieces or in another file ({_shown(item.name)})"
        )
    item.attrs.get("dtype")  # as Keras does
    return int(item.nbytes)
