"""Names of the arrays and networks that flow between functions: for annotations alone.

Import it under `if TYPE_CHECKING:`, so that nothing heavy is loaded for a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import keras
    import numpy as np
    import tensorflow as tf
    from numpy.typing import NDArray

    # uint8 [images, height, width, 3] in [0, 255], RGB.
    Images: TypeAlias = NDArray[np.uint8]
    # uint8 [height, width, 3] in [0, 255], RGB.
    Image: TypeAlias = NDArray[np.uint8]
    # Integers [images] in [0, classes): class ids.
    Labels: TypeAlias = NDArray[np.integer[Any]]
    # float32 [images, classes].
    Logits: TypeAlias = NDArray[np.floating[Any]]
    # Any shape; the docstring says which, and in what unit.
    Floats: TypeAlias = NDArray[np.floating[Any]]
    Integers: TypeAlias = NDArray[np.integer[Any]]
    Booleans: TypeAlias = NDArray[np.bool_]
    # An array of any type, where a function does not care.
    Array: TypeAlias = NDArray[Any]
    # A network from uint8 images to logits.
    Network: TypeAlias = keras.Model
    Layer: TypeAlias = keras.layers.Layer
    Optimizer: TypeAlias = keras.optimizers.Optimizer
    # A variable of Keras or TensorFlow.
    Variable: TypeAlias = keras.Variable | tf.Variable
    # A symbolic or eager tensor of TensorFlow.
    Tensor: TypeAlias = tf.Tensor
    Dataset: TypeAlias = tf.data.Dataset
    # How a step is distributed over devices.
    Strategy: TypeAlias = tf.distribute.Strategy
