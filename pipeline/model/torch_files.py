"""PyTorch's files of tensors, read without PyTorch and without running code that they carry."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pipeline.arrays import Array

_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),  # the upper half of a float32
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


def read_torch_tensors(path: Path) -> Mapping[str, Array]:
    """Return the tensors of a state dict, in either of PyTorch's formats, by name.

    Raises:
        ValueError: the file is none of PyTorch's, or is damaged.
        pickle.UnpicklingError: it holds something else besides tensors.
    """
    if not zipfile.is_zipfile(path):
        return _read_tensors_before_1_6(path)
    with zipfile.ZipFile(path) as archive:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = index.removesuffix("data.pkl")
        unpickler = TensorUnpickler(
            io.BytesIO(archive.read(index)), storage=lambda key: archive.read(f"{folder}data/{key}")
        )
        return _state_dict(unpickler.load())


def _read_tensors_before_1_6(path: Path) -> Mapping[str, Array]:
    """Read the older format: four pickles, then the storages' names, then the storages.

    The pickles are a magic number, the protocol, the machine and the object.
    """
    magic = 0x1950A86A20F9469CFC6C  # PyTorch's own number
    waiting: dict[str, bytearray] = {}

    def later(key: str) -> bytearray:
        return waiting.setdefault(key, bytearray())

    with path.open("rb") as file:
        if TensorUnpickler(file).load() != magic:
            raise ValueError("this is not a file of PyTorch")
        for _ in range(2):
            TensorUnpickler(file).load()
        position = file.tell()
        first = TensorUnpickler(file, storage=later)
        first.load()  # learns the types of the storages, which stand behind the object
        for key in TensorUnpickler(file).load():
            count = int(np.frombuffer(file.read(8), "<i8")[0])
            waiting[key] = bytearray(file.read(count * first.types[key].itemsize))
        file.seek(position)
        return _state_dict(TensorUnpickler(file, storage=later).load())


def _state_dict(content: object) -> Mapping[str, Array]:
    """Return the tensors by name, also those under `state_dict` or `model` of a checkpoint."""
    if isinstance(content, dict):
        for key in ("state_dict", "model"):
            content = content[key] if isinstance(content.get(key), dict) else content
        return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    raise ValueError(f"expected a state dict, received {type(content).__name__}")


class TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors and containers.

    Anything else that a pickle could call is refused by name.
    """

    def __init__(
        self,
        file: IO[bytes],
        *,
        storage: Callable[[str], bytes | bytearray] = lambda _: b"",
        encoding: str = "ASCII",
    ):
        super().__init__(file, encoding=encoding)
        self._storage = storage
        self.types: dict[str, np.dtype[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return a function that may be called: it makes a dictionary, tensor or array."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) not in _CALLABLE:
            raise pickle.UnpicklingError(
                f"the file holds {module}.{name} besides tensors; save its state_dict() alone"
            )
        return _CALLABLE[module, name]

    def persistent_load(self, pid: Sequence[Any]) -> Array:
        """Return a storage as an array of one dimension."""
        _, dtype, key, _, count, *_ = pid
        self.types[key] = dtype
        content = np.frombuffer(bytes(self._storage(key)), dtype)
        if len(content) not in (0, count):
            raise ValueError(f"storage {key} holds {len(content)} numbers instead of {count}")
        return content


def _rebuilt_tensor(
    storage: Array, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Array | None:
    """Return the tensor in a storage, as float32 where it is bfloat16; None without a storage."""
    if not len(storage):
        return None  # the first look at an old file
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if (
        offset < 0
        or min(stride, default=0) < 0
        or min(shape, default=1) < 1
        or last >= len(storage)
    ):
        raise ValueError(
            f"a tensor of {shape} does not lie within its storage of {len(storage)} numbers"
        )
    size = storage.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [step * size for step in stride], writeable=False
    )
    return (
        (view.astype(np.uint32) << 16).view(np.float32)
        if storage.dtype == np.dtype("<u2")
        else view.copy()
    )


def _empty_array(*_: object) -> Array:
    """Return the array that NumPy's pickles fill."""
    return np.ndarray.__new__(np.ndarray, (0,), np.int8)


# All that a pickle may call.
_CALLABLE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, _encoding: text.encode("latin1"),
}
