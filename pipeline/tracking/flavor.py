"""A `.keras` file as the folder of an MLflow Keras model, with signature and input example."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.image_size import ImageSize, sides_of

# MLflow's own loader does not know our layers.
_LOADER = "pipeline.tracking.pyfunc_loader"


def save_keras_flavor(
    file: Path, directory: Path, image_size: ImageSize, known: Mapping[str, Any]
) -> None:
    """Write a `.keras` file as the folder of an MLflow Keras model.

    Args:
        file: the network; takes uint8 [batch, height, width, 3].
        directory: made here.
        image_size: height and width of the input, in pixels.
        known: what MLflow's description holds besides; `class_names`, in the order of the logits,
            among it.
    """
    write_flavor(file, directory, describe_flavor(image_size, known))


def describe_flavor(image_size: ImageSize, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by which MLflow describes a network.

    The requirements are named, since guessing them takes 13 s.
    """
    import numpy as np
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape = (*sides_of(image_size), 3)
    inputs = TensorSpec(np.dtype("uint8"), (-1, *shape), "image")
    outputs = TensorSpec(np.dtype("float32"), (-1, len(known["class_names"])), "logits")
    return {
        "signature": ModelSignature(Schema([inputs]), Schema([outputs])),
        "input_example": np.zeros((1, *shape), dtype=np.uint8),
        "pip_requirements": [
            f"{name}=={metadata.version(name)}" for name in ("tensorflow", "keras", "numpy")
        ],
        "metadata": dict(known),
    }


def write_flavor(file: Path, directory: Path, arguments: Mapping[str, Any]) -> None:
    """Write the folder of an MLflow Keras model by the arguments of `describe_flavor`."""
    import mlflow.keras

    from pipeline.model.weights import load_model

    # MLflow's Keras flavor writes the example before it makes the folder.
    directory.mkdir(parents=True)
    mlflow.keras.save_model(load_model(file), str(directory), **arguments)
    # The very file, so that its digest is the recorded one.
    shutil.copyfile(file, directory / "data" / "model.keras")
    described = directory / "MLmodel"
    model = mlflow.models.Model.load(str(described))
    for known in filter(None, (model, arguments.get("mlflow_model"))):
        known.flavors["python_function"]["loader_module"] = _LOADER
    model.save(str(described))
