"""The loader by which MLflow itself opens one of our models, as its own does not know our layers.

`mlflow models serve` and `mlflow.pyfunc.load_model` use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.model.weights import load_model

if TYPE_CHECKING:
    from pipeline.arrays import Images, Logits, Network

_PYFUNC_BATCH = 64


class PyfuncModel:
    """A network as MLflow calls it."""

    def __init__(self, network: Network):
        self._network = network

    def predict(
        self,
        data: Images | dict[str, Images],
        params: object = None,  # noqa: ARG002 - MLflow passes it
    ) -> Logits:
        """Return float32 [images, classes] logits of uint8 [images, side, side, 3] in [0, 255].

        Args:
            data: the images, bare or by the name in the signature.
            params: not used.
        """
        (images,) = data.values() if isinstance(data, dict) else (data,)
        batches = [
            images[start : start + _PYFUNC_BATCH] for start in range(0, len(images), _PYFUNC_BATCH)
        ]
        return np.concatenate(
            [np.asarray(self._network(batch, training=False)) for batch in batches]
        )


def _load_pyfunc(path: str) -> PyfuncModel:  # the name is MLflow's
    """Open the model in the folder that MLflow names; code that the file carries is not run."""
    folder = Path(path)
    data = folder if folder.name == "data" else folder / "data"
    return PyfuncModel(load_model(data / "model.keras"))
