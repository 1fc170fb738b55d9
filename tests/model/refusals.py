"""Names of the members of a `.keras` file, and the reason for which a file is refused."""

import tracemalloc

import pytest

from pipeline.errors import CheckpointError
from pipeline.model.safety import require_safe

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


def refused(path):
    """Return why a file is refused; no memory to speak of is taken."""
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        require_safe(path)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 20 << 20
    sentence = str(caught.value)
    assert sentence.startswith(
        f"The model file {path} cannot be read safely. Expected a .keras file"
    )
    assert (
        "Received one that" in sentence
        and sentence.endswith("model.save() of Keras.")
        and "\n" not in sentence
    )
    return sentence.partition("Received one that ")[2]
