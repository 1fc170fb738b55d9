"""Files of weights from elsewhere, read without running code that they carry.

.keras               this project's networks; nothing is converted
.pth, .safetensors   a state dict of torchvision's AlexNet; kernels become height, width, in,
                     out, and fc6 is reordered from channel-first maps
.npy, .npz           Caffe's `bvlc_alexnet` or its CaffeNet; the same, and the first kernel is
                     turned from blue-green-red
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import keras
import numpy as np

from pipeline.errors import CheckpointError, ConfigError
from pipeline.model.layers import PixelNormalization
from pipeline.model.torch_files import TensorUnpickler, read_torch_tensors
from pipeline.model.weights import load_model, read_class_names

if TYPE_CHECKING:
    from pipeline.arrays import Array, Network

_Content = TypeVar("_Content")
Triple: TypeAlias = tuple[float, float, float]
# torchvision's ImageNet preprocessing, on 0-255: 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225.
_TORCHVISION_MEAN, _TORCHVISION_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# The mean of Caffe's imagenet_mean.binaryproto, red first.
_CAFFE_MEAN = (122.67891434, 116.66876762, 104.00698793)
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


@dataclass(frozen=True)
class ForeignWeights:
    """Weights in this project's arrangement of axes.

    Attributes:
        layout: where they are from: `keras` (this project), `torchvision` or `caffe`.
        layers: each layer's arrays, in the order of Keras's weights.
        mean: RGB mean of the pixels that they were trained with, 0-255.
        std: what these pixels were divided by, 0-255.
        class_names: known of networks that were trained here.
        network: of this project, the network that was read.
    """

    layout: str
    layers: Mapping[str, list[Array]]
    mean: Triple
    std: Triple
    class_names: tuple[str, ...] | None = None
    network: Network | None = None

    @property
    def classifier(self) -> str:
        """Name of the last layer."""
        return list(self.layers)[-1]


def read_weights_file(path: Path) -> ForeignWeights:
    """Return the weights in a file; its suffix names the format.

    Raises:
        ConfigError: there is no such file, it is damaged, or it does not hold an AlexNet's
            tensors.
    """
    readers: dict[str, Callable[[Path], ForeignWeights]] = {
        ".keras": _from_keras,
        ".pth": lambda file: _from_torchvision(read_torch_tensors(file)),
        ".pt": lambda file: _from_torchvision(read_torch_tensors(file)),
        ".safetensors": lambda file: _from_torchvision(_safetensors(file)),
        ".npy": lambda file: _from_caffe(_numpy_objects(file)),
        ".npz": lambda file: _from_caffe(_numpy_arrays(file)),
    }
    return _read_file(
        path,
        readers,
        "an AlexNet",
        "a .keras file of this project, a state dict of torchvision's AlexNet (.pth,"
        " .safetensors), or Caffe's layers (.npy, .npz)",
    )


def read_tensors_file(path: Path) -> Mapping[str, Array]:
    """Return the tensors of a state dict of PyTorch, by name.

    Raises:
        ConfigError: there is no such file, it is damaged, or it holds anything else.
    """
    readers: dict[str, Callable[[Path], Mapping[str, Array]]] = {
        ".pth": read_torch_tensors,
        ".pt": read_torch_tensors,
        ".safetensors": _safetensors,
    }
    return _read_file(
        path, readers, "a state dict", "tensors as PyTorch saves them (.pth, .safetensors)"
    )


def _read_file(
    path: Path, readers: Mapping[str, Callable[[Path], _Content]], what: str, expected: str
) -> _Content:
    """Return what the reader of a file's suffix makes of it; arguments after it are for errors."""
    if path.suffix not in readers:
        raise ConfigError(
            f"model.weights must be a file of {', '.join(readers)}", received=str(path)
        )
    if not path.is_file():
        raise ConfigError(
            f"There is no file {path}",
            expected="weights to start from",
            hint="Correct model.weights, or leave it out",
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
            f"The weights in {path} cannot be read as {what} ({type(error).__name__}: {why})",
            expected=expected,
        ) from error


def _from_keras(path: Path) -> ForeignWeights:
    network = load_model(path)
    # One that scales its pixels otherwise has no such layer; it is made again as it was.
    normalize = next(
        (layer for layer in network.layers if isinstance(layer, PixelNormalization)), None
    )
    return ForeignWeights(
        layout="keras",
        layers={
            layer.name: layer.get_weights()
            for layer in network.layers
            if layer.weights and not isinstance(layer, keras.layers.Dropout)
        },
        mean=(0.0, 0.0, 0.0) if normalize is None else _as_triple(normalize.mean),
        std=(1.0, 1.0, 1.0) if normalize is None else _as_triple(normalize.std),
        class_names=read_class_names(path),
        network=network,
    )


def _as_triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return red, green, blue


def _from_torchvision(tensors: Mapping[str, Array]) -> ForeignWeights:
    tensors = {
        name.removeprefix("module."): value for name, value in tensors.items()
    }  # DataParallel's prefix
    layers = {}
    for theirs, ours in _TORCHVISION_LAYERS.items():
        kernel, bias = tensors[f"{theirs}.weight"], tensors[f"{theirs}.bias"]
        layers[ours] = [_channel_last(ours, kernel), bias.astype(np.float32)]
    return ForeignWeights("torchvision", layers, _TORCHVISION_MEAN, _TORCHVISION_STD)


def _from_caffe(arrays: Mapping[str, Array]) -> ForeignWeights:
    """Return the weights in arrays whose names begin with the layer's, such as `conv1_w`.

    An array of one dimension is a bias.
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
    return ForeignWeights("caffe", layers, _CAFFE_MEAN, (1.0, 1.0, 1.0))


def _channel_last(name: str, kernel: Array) -> Array:
    """Return a kernel [out, in, height, width] as [height, width, in, out], [out, in] as [in, out].

    fc6 reads maps of 6 x 6 x 256.
    """
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
        content = TensorUnpickler(file, encoding="latin1").load().item()
    arrays: dict[str, Array] = {}
    for name, layer in content.items():
        items = layer.items() if isinstance(layer, dict) else enumerate(layer)
        arrays |= {f"{name}/{key}": np.asarray(value) for key, value in items}
    return arrays
