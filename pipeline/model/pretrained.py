"""Weights from somewhere else: a `.keras` file, torchvision's AlexNet, Caffe's AlexNet.

No code in a file is run to read it.

| file                   | layout                                 | what is converted
|
|------------------------|----------------------------------------|----------------------------------------------------------------|
| `.keras`               | this project's networks                | nothing: the network must be the
same, but for the classifier  |
| `.pth`, `.safetensors` | a state dict of torchvision's AlexNet  | kernels to height, width, in,
out; fc6 from channel-first maps |
| `.npy`, `.npz`         | Caffe's `bvlc_alexnet` or its CaffeNet | the same, and the first kernel
from blue-green-red             |

The pixels' mean and scale that the weights were trained with come along, inside the network.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import keras
import numpy as np

from pipeline.config.model import ModelConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model.alexnet import build_network
from pipeline.model.weights import load_model

Array = np.ndarray[Any, Any]
Triple = tuple[float, float, float]
# torchvision's ImageNet preprocessing, on 0-255: 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225.
_TORCHVISION_MEAN, _TORCHVISION_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# The mean of Caffe's imagenet_mean.binaryproto, red first.
_CAFFE_MEAN = (122.67891434, 116.66876762, 104.00698793)
_IMAGENET_CLASSES = 1000
_TORCHVISION_LAYERS = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}
_CAFFE_NAME = re.compile(r"(conv[1-5]|fc[678])(?![0-9])")
# What may differ between a file's network and the one that starts from it: how its weights began,
# and chance.
_MAY_DIFFER = frozenset(
    {"kernel_initializer", "bias_initializer", "seed", "rate", "dtype", "trainable", "mean", "std"}
)


@dataclass(frozen=True)
class Pretrained:
    """Weights in this project's layout.

    `layers` holds each layer's arrays in the order of Keras's weights. `mean` and `std` are those
    of the pixels, RGB, 0-255. `class_names` are known of networks that were trained here.
    """

    kind: str
    layers: Mapping[str, list[Array]]
    mean: Triple
    std: Triple
    class_names: tuple[str, ...] | None = None
    network: Any = None

    @property
    def classifier(self) -> str:
        """Name of the last layer."""
        return list(self.layers)[-1]


def network_from(config: ModelConfig, class_names: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    """Return a network with the weights of `config.weights`, and the names of the layers that start afresh.

    Raises:
        ConfigError: the file cannot be read, or holds another network than the settings describe.
    """
    path = Path(config.weights).expanduser()
    pretrained = read_weights(path)
    if pretrained.kind == "torchvision" and config.variant != "owt":
        raise ConfigError(
            f"{path} holds torchvision's AlexNet, which is --variant owt. Received variant"
            f" {config.variant}."
        )
    if pretrained.kind == "caffe" and config.variant not in ("paper", "caffenet"):
        raise ConfigError(
            f"{path} holds Caffe's AlexNet (--variant paper) or CaffeNet (--variant caffenet)."
            f" Received variant {config.variant}."
        )
    # A network of ours brings its own mean and deviation, which are 0 and 255, or 1, where it was
    # not made with `unit`.
    scale = "levels" if pretrained.kind == "caffe" else "unit"
    if pretrained.network is None and config.input_scale not in ("auto", scale):
        raise ConfigError(
            f"The weights in {path} were trained with model.input_scale={scale}. Received"
            f" {config.input_scale}; leave the setting out."
        )
    network = build_network(
        config.model_copy(update={"input_scale": scale}),
        num_classes=len(class_names),
        channel_mean=pretrained.mean,
        channel_std=pretrained.std,
        caffe_weights=pretrained.kind == "caffe",
    )
    if pretrained.network is not None:
        _require_same(network, pretrained.network, path)
    keep = _keeps_classifier(pretrained, config, class_names, path)
    fresh = []
    for layer in network.layers:
        if not layer.weights or isinstance(layer, keras.layers.Dropout):
            continue
        if layer is network.layers[-1] and not keep:
            fresh.append(layer.name)
            continue
        _assign(layer, pretrained.layers.get(layer.name), path)
    return network, tuple(fresh)


def read_weights(path: Path) -> Pretrained:
    """Read a file of weights, of whichever kind its name says.

    Raises:
        ConfigError: there is no such file, it is damaged, or it holds something else than an
            AlexNet's tensors.
    """
    readers: dict[str, Callable[[Path], Pretrained]] = {
        ".keras": _from_keras,
        ".pth": lambda file: _from_torchvision(_torch_tensors(file)),
        ".pt": lambda file: _from_torchvision(_torch_tensors(file)),
        ".safetensors": lambda file: _from_torchvision(_safetensors(file)),
        ".npy": lambda file: _from_caffe(_numpy_objects(file)),
        ".npz": lambda file: _from_caffe(_numpy_arrays(file)),
    }
    if path.suffix not in readers:
        raise ConfigError(f"model.weights must be a file of {', '.join(readers)}. Received {path}.")
    if not path.is_file():
        raise ConfigError(
            f"There is no file {path}. Expected weights to start from: mend model.weights, or leave"
            " it out."
        )
    try:
        return readers[path.suffix](path)
    except (
        CheckpointError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        EOFError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"The weights in {path} cannot be read as an AlexNet ({type(error).__name__}: {why})."
            " Expected a .keras file of this project, a state dict of torchvision's AlexNet (.pth,"
            " .safetensors), or Caffe's layers (.npy, .npz)."
        ) from error


def _keeps_classifier(
    pretrained: Pretrained, config: ModelConfig, class_names: tuple[str, ...], path: Path
) -> bool:
    """Say whether the last layer's weights are taken."""
    known, classes = (
        pretrained.class_names,
        int(pretrained.layers[pretrained.classifier][-1].shape[0]),
    )
    same = (
        known == class_names
        if known is not None
        else classes == len(class_names) == _IMAGENET_CLASSES
    )
    if config.classifier == "keep" and classes != len(class_names):
        raise ConfigError(
            f"model.classifier=keep needs as many classes as {path} has. Expected {classes},"
            f" received {len(class_names)}; leave the setting out and the last layer starts afresh."
        )
    return config.classifier == "keep" or (config.classifier == "auto" and same)


def _assign(layer: Any, arrays: list[Array] | None, path: Path) -> None:
    """Give a layer its weights, or say that they are another network's."""
    expected = [tuple(weight.shape) for weight in layer.weights]
    found = None if arrays is None else [array.shape for array in arrays]
    if found != expected:
        raise ConfigError(
            f"The weights in {path} are of another network: layer {layer.name} expects arrays of"
            f" {expected}, received {found}. Choose the variant, image_size and width_multiplier"
            " that they were trained with."
        )
    layer.set_weights(arrays)


def _require_same(network: Any, other: Any, path: Path) -> None:
    """Refuse a file whose network computes something else than the settings say, such as another activation."""
    mine, theirs = (
        {layer.name: layer.get_config() for layer in model.layers} for model in (network, other)
    )
    for name in [*mine, *theirs]:
        if name not in mine or name not in theirs:
            which = (
                "lacks one that the settings make"
                if name in mine
                else "has one that the settings do not make"
            )
            raise ConfigError(
                f"The network in {path} is another one: it {which}: layer {name}. Give the settings"
                " that it was made with."
            )
    for name, config in mine.items():
        for key in sorted(config.keys() - _MAY_DIFFER):
            if config[key] != theirs[name].get(key) and not (
                key == "units" and name == network.layers[-1].name
            ):
                raise ConfigError(
                    f"The network in {path} is another one: its layer {name} has"
                    f" {key}={theirs[name].get(key)}, the settings make {config[key]}. Give the"
                    " settings that it was made with."
                )


# -- each kind of file -----------------------------------------------------------------------------


def _from_keras(path: Path) -> Pretrained:
    network = load_model(path)
    normalize = network.get_layer("normalize").get_config()
    record = path.with_name("artifact.json")
    names = (
        json.loads(record.read_text(encoding="utf-8")).get("class_names")
        if record.is_file()
        else None
    )
    return Pretrained(
        kind="keras",
        layers={
            layer.name: layer.get_weights()
            for layer in network.layers
            if layer.weights and not isinstance(layer, keras.layers.Dropout)
        },
        mean=tuple(normalize["mean"]),
        std=tuple(normalize["std"]),
        class_names=None if names is None else tuple(names),
        network=network,
    )


def _from_torchvision(tensors: Mapping[str, Array]) -> Pretrained:
    tensors = {
        name.removeprefix("module."): value for name, value in tensors.items()
    }  # DataParallel's prefix
    layers = {}
    for theirs, ours in _TORCHVISION_LAYERS.items():
        kernel, bias = tensors[f"{theirs}.weight"], tensors[f"{theirs}.bias"]
        layers[ours] = [_channel_last(ours, kernel), bias.astype(np.float32)]
    return Pretrained("torchvision", layers, _TORCHVISION_MEAN, _TORCHVISION_STD)


def _from_caffe(arrays: Mapping[str, Array]) -> Pretrained:
    """`arrays` by any name that begins with the layer's, such as `conv1_w`.

    A bias is what has one dimension.
    """
    found: dict[str, dict[bool, Array]] = {}
    for name, array in arrays.items():
        match = _CAFFE_NAME.match(name)
        if match is not None:
            found.setdefault(match.group(1), {})[array.squeeze().ndim == 1] = array.squeeze()
    layers = {}
    # Caffe's own blobs have the output first; files converted for TensorFlow have it last, with the
    # maps' channels last as well.
    output_first = found["conv1"][False].shape[-1] == found["conv1"][False].shape[-2]
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        kernel = found[name][False]
        kernel = _channel_last(name, kernel) if output_first else kernel.astype(np.float32)
        layers[name] = [
            kernel[:, :, ::-1] if name == "conv1" else kernel,
            found[name][True].astype(np.float32),
        ]
    return Pretrained("caffe", layers, _CAFFE_MEAN, (1.0, 1.0, 1.0))


def _channel_last(name: str, kernel: Array) -> Array:
    """Return a kernel [out, in, height, width] as [height, width, in, out], [out, in] as [in, out]; fc6 reads maps 6 x 6 x 256."""
    kernel = kernel.astype(np.float32)
    if kernel.ndim == 4:
        return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))
    if name == "fc6":
        outputs, inputs = kernel.shape
        side = 6
        return np.ascontiguousarray(
            kernel.reshape(outputs, inputs // side**2, side, side)
            .transpose(2, 3, 1, 0)
            .reshape(inputs, outputs)
        )
    return np.ascontiguousarray(kernel.T)


def _safetensors(path: Path) -> Mapping[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _numpy_arrays(path: Path) -> Mapping[str, Array]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _numpy_objects(path: Path) -> Mapping[str, Array]:
    """Read the dictionary of a `.npy` file: layer -> [kernel, bias], or layer -> {name: array}."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        if dtype != np.dtype(object) or shape not in ((), (1,)):
            raise ValueError(
                f"expected a dictionary of layers, received an array of {dtype} {shape}"
            )
        content = _Tensors(file, encoding="latin1").load().item()
    arrays: dict[str, Array] = {}
    for name, layer in content.items():
        items = layer.items() if isinstance(layer, dict) else enumerate(layer)
        arrays |= {f"{name}/{key}": np.asarray(value) for key, value in items}
    return arrays


# -- PyTorch's files, without PyTorch --------------------------------------------------------------

_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),  # the upper half of a float32
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


def _torch_tensors(path: Path) -> Mapping[str, Array]:
    """Read a state dict in either of PyTorch's formats."""
    if not zipfile.is_zipfile(path):
        return _torch_tensors_before_1_6(path)
    with zipfile.ZipFile(path) as archive:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = index.removesuffix("data.pkl")
        unpickler = _Tensors(
            io.BytesIO(archive.read(index)), storage=lambda key: archive.read(f"{folder}data/{key}")
        )
        return _state_dict(unpickler.load())


def _torch_tensors_before_1_6(path: Path) -> Mapping[str, Array]:
    """Read four pickles - magic number, protocol, machine, object -, the storages' names, and the storages."""
    magic = 0x1950A86A20F9469CFC6C  # PyTorch's own number
    waiting: dict[str, bytearray] = {}

    def later(key: str) -> bytearray:
        return waiting.setdefault(key, bytearray())

    with path.open("rb") as file:
        if _Tensors(file).load() != magic:
            raise ValueError("this is not a file of PyTorch")
        for _ in range(2):
            _Tensors(file).load()
        position = file.tell()
        first = _Tensors(file, storage=later)
        first.load()  # learns the types of the storages, which stand behind the object
        for key in _Tensors(file).load():
            count = int(np.frombuffer(file.read(8), "<i8")[0])
            waiting[key] = bytearray(file.read(count * first.types[key].itemsize))
        file.seek(position)
        return _state_dict(_Tensors(file, storage=later).load())


def _state_dict(content: Any) -> Mapping[str, Array]:
    """Return the tensors by name, also of a checkpoint that holds them under `state_dict` or `model`."""
    if isinstance(content, dict):
        for key in ("state_dict", "model"):
            content = content[key] if isinstance(content.get(key), dict) else content
        return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    raise ValueError(f"expected a state dict, received {type(content).__name__}")


class _Tensors(pickle.Unpickler):
    """Unpickles tensors and containers.

    Anything else that a pickle could call is refused by name.
    """

    def __init__(
        self, file: IO[bytes], *, storage: Callable[[str], Any] = lambda _: b"", **words: Any
    ):
        super().__init__(file, **words)
        self._storage = storage
        self.types: dict[str, np.dtype[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what may be called: a dictionary, a storage's type, and the making of a tensor or an array."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) not in _CALLABLE:
            raise pickle.UnpicklingError(
                f"the file holds {module}.{name} besides tensors; save its state_dict() alone"
            )
        return _CALLABLE[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Return a storage as an array of one dimension."""
        _, dtype, key, _, count, *_ = pid
        self.types[key] = dtype
        content = np.frombuffer(bytes(self._storage(key)), dtype)
        if len(content) not in (0, count):
            raise ValueError(f"storage {key} holds {len(content)} numbers instead of {count}")
        return content


def _rebuilt_tensor(
    storage: Array, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Any:
    """Return the tensor that is a view of a storage, as float32 where it is bfloat16."""
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


def _empty_array(*_: Any) -> Array:
    """Return what NumPy's pickles fill."""
    return np.ndarray.__new__(np.ndarray, (0,), np.int8)


# Everything that a pickle may call.
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
