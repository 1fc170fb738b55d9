"""What MLflow loads when it serves one of our models itself.

`mlflow models serve`, `mlflow.pyfunc.load_model`.

MLflow's own loader does not know our layers. The name of the function is MLflow's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.model.weights import load_model

_BATCH = 64


class Logits:
    """A network as MLflow calls it."""

    def __init__(self, model: Any):
        self._model = model

    def predict(self, data: Any, params: Any = None) -> Any:  # noqa: ARG002 - MLflow passes it
        """Return float32 [batch, classes] logits of uint8 [batch, image_size, image_size, 3] in [0, 255]."""
        (data,) = (
            data.values() if isinstance(data, dict) else (data,)
        )  # by the name in the signature, or bare
        parts = [data[start : start + _BATCH] for start in range(0, len(data), _BATCH)]
        return np.concatenate([np.asarray(self._model(part, training=False)) for part in parts])


def _load_pyfunc(path: str) -> Logits:
    """Open the model in the folder that MLflow names, without running any code that the file carries."""
    folder = Path(path)
    return Logits(
        load_model(
            folder / "model.keras" if folder.name == "data" else folder / "data" / "model.keras"
        )
    )
