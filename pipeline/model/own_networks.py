"""Networks that others wrote: a `.keras` file, a user's function, a preset of KerasHub.

Each becomes what the rest of the pipeline expects (`adopt_network`): one flat graph from uint8
pixels to logits, which ends with a Dense without activation.

    image         uint8, of the size that the settings ask for
    normalize     where the network does not scale its pixels itself
    its layers    submodels in one graph, without the classifier and its softmax
    global mean   where they end with maps
    classifier    the network's own where its classes are meant, else a fresh one behind dropout,
                  the network's own where it has one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from pipeline.config.model import ModelConfig
from pipeline.errors import ConfigError
from pipeline.image_size import ImageSize, sides_of, write_image_size
from pipeline.model.graph import copy_layers, find_producer, inline_submodels, seed_python
from pipeline.model.layers import PixelNormalization
from pipeline.model.network_row import NetworkRow
from pipeline.model.own_sources import Sources, fresh_sources, import_sources, list_sources
from pipeline.model.weights import load_model, read_class_names
from pipeline.random_streams import derive_layer_seed

if TYPE_CHECKING:
    from pipeline.arrays import Layer, Network, Tensor

# Mean and standard deviation of pixels that a network scales itself.
_AS_THEY_ARE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_SCALING = (keras.layers.Rescaling, keras.layers.Normalization, PixelNormalization)
# Operations of keras.ops, by the names of their classes.
_ARITHMETIC = frozenset(
    {"Add", "Subtract", "Multiply", "Divide", "TrueDivide", "FloorDivide", "DivideNoNan"}
)
_OWN_NAMES = ("image", "normalize", "dropout", "logits")
_PROBABILITIES = ("softmax", "sigmoid")


def build_family_network(
    row: NetworkRow,
    config: ModelConfig,
    *,
    num_classes: int,
    channel_mean: Sequence[float],
    channel_std: Sequence[float],
    weights_layout: str = "",  # noqa: ARG001 - there is none
) -> Network:
    """Return an uncompiled network; arguments as of `build_network`, errors of `adopt_network`."""
    pixels = (channel_mean, channel_std)
    return adopt_network(row, config, num_classes=num_classes, pixels=pixels).network


@dataclass(frozen=True)
class AdoptedNetwork:
    """A network of elsewhere as the pipeline wants it.

    Attributes:
        network: uncompiled, from uint8 pixels to logits.
        keeps_classifier: whether its own classifier stayed.
        replaced_classes: of the classifier that a fresh one replaced; 0 where none was.
    """

    network: Network
    keeps_classifier: bool
    replaced_classes: int


def adopt_network(
    row: NetworkRow,
    config: ModelConfig,
    *,
    num_classes: int,
    pixels: tuple[Sequence[float], Sequence[float]],
) -> AdoptedNetwork:
    """Return what becomes of a network.

    That of a file keeps its weights, but for the classifier.

    Args:
        row: the network.
        config: the settings.
        num_classes: number of logits.
        pixels: RGB mean and standard deviation of the training pixels, 0-255.

    Raises:
        ConfigError: it cannot be made, or is no classifier of images.
    """
    pixels = (pixels[0], [max(value, 1.0) for value in pixels[1]])
    plan = _Plan(row, config, num_classes)
    if row.family == "file":
        return plan.adopt(load_model(Path(row.name)), None, keeps_classifier=False)
    if row.family == "hub":
        return plan.adopt(*_make_preset(row.name, pixels), keeps_classifier=False)
    return plan.adopt(_call_function(row.name, config, num_classes), pixels, keeps_classifier=True)


def describe_family_start(
    row: NetworkRow,  # noqa: ARG001 - nothing can be chosen
    config: ModelConfig,  # noqa: ARG001
) -> dict[str, str]:
    """Return what decides whether a signal passes through fresh weights: nothing to choose."""
    return {}


def load_own_network(
    row: NetworkRow, config: ModelConfig, class_names: Sequence[str]
) -> tuple[Network, bool]:
    """Return the network in a file, and whether its classifier is kept.

    `model.classifier: auto` keeps it where the record beside the file names the same classes.

    Raises:
        ConfigError: it is no classifier of images, or `model.classifier=keep` asks for another
            number of classes.
        CheckpointError: the file cannot be read safely.
    """
    path, plan = Path(row.name), _Plan(row, config, len(class_names))
    known = read_class_names(path)
    keeps = config.classifier == "keep" or (
        config.classifier == "auto" and known == tuple(class_names)
    )
    return plan.adopt(load_model(path), None, keeps_classifier=keeps).network, keeps


@dataclass(frozen=True)
class _Plan:
    """What a network is to become."""

    row: NetworkRow
    config: ModelConfig
    num_classes: int

    def adopt(
        self,
        given: Network,
        pixels: tuple[Sequence[float], Sequence[float]] | None,
        *,
        keeps_classifier: bool,
    ) -> AdoptedNetwork:
        """Return a given network from uint8 pixels to logits.

        Args:
            given: a functional or sequential model of one image.
            pixels: mean and standard deviation for one that does not scale its pixels itself; None
                where these are unknown.
            keeps_classifier: its own classifier stays where it has as many classes.
        """
        graph = inline_submodels(given)
        if len(graph.inputs[0].shape) != 4 or graph.inputs[0].shape[-1] != 3:
            raise ConfigError(
                f"The network {self.row.name} takes {tuple(graph.inputs[0].shape[1:])}",
                expected="color images, [height, width, 3]",
            )
        features, classifier = _cut_classifier(graph)
        keeps = self._keeps(classifier, keeps_classifier)
        size = self.config.image_size
        image = keras.Input((*sides_of(size), 3), dtype="uint8", name="image")
        x = self._scale(image, graph, pixels)
        try:
            x = copy_layers(keras.Model(graph.inputs[0], features), x, taken=_OWN_NAMES)
        except ValueError as error:  # that is what Keras raises for shapes that do not fit
            raise ConfigError(
                f"The network {self.row.name} cannot take images of {write_image_size(size)} pixels"
                f" ({' '.join(str(error).split())[:150]})",
                expected=f"the size it was made for, {tuple(graph.inputs[0].shape[1:3])}",
                received=f"model.image_size={write_image_size(size)}",
            ) from error
        if len(x.shape) == 4:
            x = keras.layers.GlobalAveragePooling2D(name="features")(x)
        if len(x.shape) != 2:
            raise ConfigError(
                f"The network {self.row.name} ends with an output of {tuple(x.shape[1:])}",
                expected="logits, features, or maps of [height, width, channels]",
            )
        if not keeps and not isinstance(find_producer(graph, features), keras.layers.Dropout):
            x = keras.layers.Dropout(self.config.dropout, seed=0, name="dropout")(x)
        logits = self._classify(x, classifier if keeps else None)
        replaced = 0 if classifier is None or keeps else classifier.units
        return AdoptedNetwork(keras.Model(image, logits, name="network"), keeps, replaced)

    def _keeps(self, classifier: Layer | None, wanted: bool) -> bool:
        """Return whether a network's own classifier stays."""
        classes = 0 if classifier is None else classifier.units
        if self.row.family == "file" and wanted and classes != self.num_classes:
            raise ConfigError(
                f"model.classifier=keep needs as many classes as {self.row.name} has",
                expected=f"{classes} classes",
                received=str(self.num_classes),
                hint="Leave the setting out and the last layer starts afresh",
            )
        return wanted and classes == self.num_classes

    def _scale(
        self,
        image: Tensor,
        graph: Network,
        pixels: tuple[Sequence[float], Sequence[float]] | None,
    ) -> Tensor:
        """Return the pixels as the network wants them: normalized, or as they are."""
        if _scales_pixels(graph):
            if graph.inputs[0].dtype == "uint8":
                return image
            pixels = _AS_THEY_ARE
        if pixels is None:
            shape = tuple(graph.inputs[0].shape[1:])
            raise ConfigError(
                f"The network {self.row.name} does not say on which scale it wants its pixels",
                expected="one that takes levels of 0-255 and begins with a layer that scales them",
                hint=f"Save it as keras.Sequential([keras.Input({shape}), keras.layers.Rescaling("
                "1 / 127.5, offset=-1), model]), with the scale that it was trained on",
            )
        return PixelNormalization(*pixels, name="normalize")(image)

    def _classify(self, features: Tensor, kept: Layer | None) -> Tensor:
        """Return the logits, by a fresh classifier or a kept one."""
        start = keras.initializers.GlorotUniform(seed=derive_layer_seed(self.config.seed, "logits"))
        dense = keras.layers.Dense(
            self.num_classes,
            use_bias=kept is None or kept.use_bias,
            kernel_initializer=start,
            name="logits",
        )
        logits = dense(features)
        if kept is not None:
            dense.set_weights(kept.get_weights())
        return logits


def _cut_classifier(graph: Network) -> tuple[Tensor, Layer | None]:
    """Return what a network's classifier reads, and the classifier; None where it has none.

    A softmax or sigmoid at the end falls away. A Dense with another activation is a hidden layer.
    """
    tensor = graph.outputs[0]
    last = find_producer(graph, tensor)
    activation = getattr(getattr(last, "activation", None), "__name__", "linear")
    ends = isinstance(last, keras.layers.Softmax) or (
        isinstance(last, keras.layers.Activation) and activation in _PROBABILITIES
    )
    if ends:
        tensor = last.input
        last = find_producer(graph, tensor)
        activation = getattr(getattr(last, "activation", None), "__name__", "linear")
    if isinstance(last, keras.layers.Dense) and activation in ("linear", *_PROBABILITIES):
        return last.input, last
    return tensor, None


def _scales_pixels(graph: Network) -> bool:
    """Return whether a network scales its pixels itself, before the first layer with a kernel.

    By a layer made for it or by arithmetic, such as x / 255; padding or cropping scales nothing.
    """
    for operation in graph.operations[1:]:
        is_layer = isinstance(operation, keras.layers.Layer)
        computes = not is_layer and type(operation).__name__ in _ARITHMETIC
        if isinstance(operation, _SCALING) or computes:
            return True
        if any(len(weight.shape) > 1 for weight in getattr(operation, "weights", ())):
            return False
    return False


# -- a function of the user's own ------------------------------------------------------------------


def _call_function(name: str, config: ModelConfig, num_classes: int) -> Network:
    """Return the network that `package.module:function` makes.

    It is called with the size, an int for squares and else (height, width), and the number of
    classes. Chance in it is that of `model.seed`: what Keras draws where it is given no seed.

    Raises:
        ConfigError: it cannot be imported, fails, or returns something else.
    """
    sources = list_sources(name)
    size, sides = config.image_size, sides_of(config.image_size)
    with fresh_sources(sources):
        function = _import_function(name, sources)
        try:
            with seed_python(derive_layer_seed(config.seed, name)):
                made = function(size, num_classes)
                if isinstance(made, Sequence):
                    made = keras.Sequential([keras.Input((*sides, 3)), *made])
                if isinstance(made, keras.Sequential) and not made.built:
                    made.build((None, *sides, 3))
        except Exception as error:  # of the user's code
            raise ConfigError(
                f"The function {name} failed ({type(error).__name__}:"
                f" {' '.join(str(error).split())[:200]})",
                expected="it to return a keras.Model, or a list of layers, for"
                f" image_size={size} and classes={num_classes}",
            ) from error
    if not isinstance(made, keras.Model):
        raise ConfigError(
            f"The function {name} returned an object of class {type(made).__name__}",
            expected="a keras.Model, or a list of layers",
        )
    return made


def _import_function(name: str, sources: Sources) -> Callable[[ImageSize, int], Any]:
    module_name, _, function_name = name.partition(":")
    try:
        module = import_sources(name, sources)
    except ConfigError:
        raise
    except Exception as error:  # of the user's code
        raise ConfigError(
            f"The module {module_name} cannot be imported ({type(error).__name__}:"
            f" {' '.join(str(error).split())[:200]})",
            expected=f"a module with a function {function_name}(image_size, classes)",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(
            f"The module {module_name} has no function {function_name}",
            expected=f"def {function_name}(image_size, classes)",
        )
    return function


# -- KerasHub --------------------------------------------------------------------------------------


def _make_preset(
    name: str, pixels: tuple[Sequence[float], Sequence[float]]
) -> tuple[Network, tuple[Sequence[float], Sequence[float]]]:
    """Return the backbone of a preset with fresh weights, and mean and std of its pixels.

    Raises:
        ConfigError: KerasHub does not know it, or its code is not that of this Keras.
    """
    preset = name.partition("/")[2]
    try:
        import keras_hub

        backbone = keras_hub.models.Backbone.from_preset(preset, load_weights=False)
    except Exception as error:  # whatever KerasHub raises for a preset that is not there
        raise ConfigError(
            f"KerasHub cannot make {preset} ({type(error).__name__}:"
            f" {' '.join(str(error).split())[:200]})",
            expected="hub/ and the name of an image preset, such as hub/resnet_18_imagenet",
        ) from error
    return backbone, pixels
