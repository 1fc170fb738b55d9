"""A model file from elsewhere is opened safely, or refused with a sentence.

Where a comment says what Keras does with a file, that was seen with Keras 3.15.1 and
`safe_mode=True`; it refuses the others.
"""

import io
import json
import struct
import subprocess
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import CheckpointError
from pipeline.evaluate.external_model import find_external_model
from pipeline.model import weights
from pipeline.model.networks import build_network
from pipeline.model.safety import require_safe
from pipeline.model.weights import load_model, save_model
from tests.model.refusals import CONFIG, METADATA, WEIGHTS, refused
from tests.networks import model_config


def layer(name, config=None, module="keras.layers", **more):
    return {
        "module": module,
        "class_name": name,
        "config": {"name": "poison"} | (config or {}),
        "registered_name": None,
    } | more


def function(module, name):
    return {
        "module": module,
        "class_name": "function",
        "config": name,
        "registered_name": "function",
    }


# -- what must pass --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        *({"network": name} for name in ("small", "paper", "owt", "cifar")),
        *(
            pytest.param({"network": name}, marks=pytest.mark.slow)
            for name in ("caffenet", "ungrouped", "single_tower")
        ),
        {
            "normalization": "batch",
            "activation": "leaky_relu",
            "initialization": "glorot",
            "overlapping_pooling": False,
        },
        {
            "network": "paper",
            "fidelity": "paper",
            "sixth_layer": True,
            "dropout_position": "before",
            "remove_layer": "conv3",
        },
        {
            "network": "cifar",
            "normalization": "lrn",
            "input_scale": "fraction",
            "activation": "gelu",
        },
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_network_of_this_package_passes(settings, tmp_path):
    size = 32 if settings.get("network", "small") in ("small", "cifar") else 64
    config = model_config(image_size=size, width_multiplier=0.05, **settings)
    save_model(
        build_network(config, num_classes=3, channel_mean=(1, 2, 3), channel_std=(4, 5, 6)),
        tmp_path / "built.keras",
    )
    kept = load_model(tmp_path / "built.keras")
    kept.set_weights([array + 1 for array in kept.get_weights()])  # as training ends
    save_model(kept, tmp_path / "trained.keras")
    require_safe(tmp_path / "trained.keras")


def stock_network():
    """What Keras's own users build: preparation in the network, a network in a network, arithmetic
    between layers, compiled, trained."""
    layers = keras.layers
    image = keras.Input((16, 16, 3))
    x = layers.RandomFlip("horizontal")(layers.Rescaling(1 / 255)(image))
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(x)
    seed = keras.random.SeedGenerator(3)
    block = keras.Sequential(
        [
            layers.Conv2D(
                4,
                3,
                kernel_regularizer="l2",
                kernel_constraint="max_norm",
                kernel_initializer=keras.initializers.HeNormal(seed),
            ),
            layers.BatchNormalization(),
            layers.Activation(keras.activations.gelu),
            layers.PReLU(),
        ]
    )
    inner = keras.Model(image, block(image))
    x = keras.ops.relu(inner(x) * 2.0 + np.ones(4, "float32"))[:, 1:, ...]
    x = layers.Dense(3, dtype="mixed_bfloat16")(
        layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    )
    network = keras.Model(image, layers.Dense(3, dtype="bfloat16")(x))
    network.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, 10)),
        loss=keras.losses.sparse_categorical_crossentropy,
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)],
    )
    network.optimizer.build(network.trainable_variables)
    return network


def test_a_stock_network_of_keras_passes_and_is_read(tmp_path):
    network = stock_network()
    network.save(tmp_path / "stock.keras")
    again, images = (
        load_model(tmp_path / "stock.keras"),
        np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)),
    )
    assert np.array_equal(
        keras.ops.convert_to_numpy(again(images, training=False)),
        keras.ops.convert_to_numpy(network(images, training=False)),
    )


def test_a_network_of_keras_applications_passes(tmp_path):
    keras.applications.MobileNetV3Small(
        weights=None, classes=3, input_shape=(32, 32, 3), alpha=0.35
    ).save(tmp_path / "stock.keras")
    require_safe(tmp_path / "stock.keras")


def test_quantized_networks_pass(tmp_path):
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with warnings.catch_warnings(
        action="ignore"
    ):  # the input layer has nothing to quantize, says Keras
        network.quantize("int8")
    network.save(tmp_path / "model.keras")
    require_safe(tmp_path / "model.keras")


RUN_CODE, READ_FILES = (
    {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"},
    {"StringLookup", "IntegerLookup", "TextVectorization"},
)
NOT_SAVED = {"Layer", "Wrapper", "InputSpec"}  # what layers are made of


def test_of_keras_own_layers_those_that_run_code_or_read_files_are_refused(with_layer):
    """A layer that a new Keras brings fails here, so that somebody thinks about it."""
    known = {
        name
        for name, value in vars(keras.layers).items()
        if isinstance(value, type) and name == value.__name__
    }
    no = RUN_CODE | READ_FILES | NOT_SAVED
    assert len(known - no) > 120
    require_safe(with_layer(*(layer(name) for name in known - no)))
    for name in no:
        assert f"'{name}'" in refused(with_layer(layer(name)))


def test_neither_tensorflow_nor_keras_is_imported(written):
    code = (
        "import sys; from pathlib import Path; from pipeline.model.safety import require_safe; "
        "before = set(sys.modules); require_safe(Path(sys.argv[1])); "
        "print({'h5py', 'numpy'} & before, {'tensorflow', 'keras'} & sys.modules.keys())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, written()], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set() set()"


# -- code ------------------------------------------------------------------------------------------


@pytest.fixture
def lambda_file(tmp_path):
    """A network whose Lambda layer makes a file, and the file that it makes."""
    marker, path = tmp_path / "marker", tmp_path / "lambda.keras"
    touch = eval(f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]")  # noqa: S307 - a lambda with a path in it
    keras.Sequential([keras.Input((4,)), keras.layers.Lambda(touch), keras.layers.Dense(3)]).save(
        path
    )
    marker.unlink()
    return path, marker


def test_a_lambda_layer_is_refused(lambda_file):
    path, marker = lambda_file
    keras.saving.load_model(path, safe_mode=False)
    assert marker.exists()  # the poison is one
    marker.unlink()
    assert "'keras.layers' 'Lambda', which is not known to be harmless" in refused(path)
    with pytest.raises(CheckpointError, match="harmless"):
        load_model(path)
    assert not marker.exists()


def test_keras_safe_mode_is_on_whatever_was_called_before(lambda_file, monkeypatch):
    path, marker = lambda_file
    monkeypatch.setattr(
        weights, "require_safe", lambda _path: None
    )  # the second line of defence alone

    def after_enabling():
        keras.config.enable_unsafe_deserialization()
        keras.saving.load_model(path, safe_mode=True)
        defeated = marker.exists()
        marker.unlink()
        with pytest.raises(ValueError, match="Lambda"):
            load_model(path)
        return defeated, marker.exists()

    with ThreadPoolExecutor(
        1
    ) as thread:  # Keras keeps the switch by thread, so that no other test sees it
        assert thread.submit(after_enabling).result() == (True, False)


def saved_model(folder):
    """Write a SavedModel that makes a file when it is called, and return where it is."""

    class Poison(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 3))])
        def serve(self, x):
            tf.io.write_file(str(folder / "marker"), "run")
            return x

    module = Poison()
    tf.saved_model.save(module, folder / "saved", signatures=module.serve)
    return folder / "saved"


def test_a_saved_model_beside_is_not_loaded(with_layer, tmp_path):
    config = {
        "filepath": str(saved_model(tmp_path)),
        "call_endpoint": "serve",
        "call_training_endpoint": None,
        "trainable": True,
    }
    path = with_layer(layer("TFSMLayer", config))
    keras.saving.load_model(path, safe_mode=False)(np.zeros((1, 4, 4, 3)))
    assert (tmp_path / "marker").exists()
    (tmp_path / "marker").unlink()
    assert "TFSMLayer" in refused(path)
    assert not (tmp_path / "marker").exists()


MARKED = {
    "class_name": "__lambda__",
    "config": {"code": "", "defaults": None, "closure": None, "value": ""},
}
POISONS = {
    "a module of Python": layer("system", {"command": "touch {marker}"}, "os"),
    "a function of Python": layer(
        "Activation", {"activation": function("subprocess", "getoutput")}
    ),
    "a builtin of Python": layer("Activation", {"activation": function("builtins", "__import__")}),
    # Keras opens it, calls the function as it does so, and that fetches a file from the network.
    # Some functions of Keras cannot be named in a file; this one, and many others, can.
    "a function of Keras that downloads": layer(
        "Lambda", {"function": function("keras.applications.imagenet_utils", "decode_predictions")}
    ),
    # Keras opens it, and fetches the file when the network is first asked.
    "the same as an activation": layer(
        "Activation",
        {"activation": function("keras.applications.imagenet_utils", "decode_predictions")},
    ),
    # Keras opens it: a Lambda layer is refused for its bytecode, not for being one.
    "a Lambda layer without bytecode": layer("Lambda", {"function": function("keras.ops", "relu")}),
    # Keras opens it: a class of its own may be named by where it is defined as well.
    "a Lambda layer by its other name": layer(
        "Lambda", {"function": function("keras.ops", "relu")}, "keras.src.layers.core.lambda_layer"
    ),
    # Keras opens it as it reads the files of Keras 2, where any name in its module of layers is
    # taken.
    "an object without a module": {
        "class_name": "Lambda",
        "config": {"name": "poison", "function": function("keras.ops", "relu")},
    },
    "bytecode": layer("Activation", {"activation": MARKED}),
    "bytecode in a layer's arguments": layer(
        "Dense", {"units": 3, "kernel_initializer": {"deep": [{"er": MARKED}]}}
    ),
    "bytecode in the settings of a training": layer(
        "Sequential", {"layers": []}, "keras", compile_config={"loss": MARKED}
    ),
    "a pickle of PyTorch": layer(
        "TorchModuleWrapper", {"module": {"class_name": "__bytes__", "config": {"value": "x"}}}
    ),
    "a function of JAX": layer(
        "JaxLayer",
        {"call_fn": function("keras.ops", "relu"), "init_fn": None, "params": None, "state": None},
    ),
    "a file of words": layer(
        "StringLookup",
        keras.layers.StringLookup(vocabulary=["a"]).get_config() | {"vocabulary": "/etc/hostname"},
    ),
    "a file of text": layer(
        "TextVectorization",
        keras.layers.TextVectorization(vocabulary=["a"]).get_config()
        | {"vocabulary": "/etc/hostname"},
    ),
    # Keras looks such a name up before the layer's own, among all that any library has registered
    # in this process.
    "another's registered class": layer("Dense", {"units": 3}, registered_name="other>Layer"),
    "another package's class under our name": layer(
        "Lambda", module="os", registered_name="alexnet>Lambda"
    ),
    "our module with a name that means something": layer(
        "__lambda__", module="pipeline.model.layers", registered_name="alexnet>__lambda__"
    ),
    # Keras opens it.
    "what makes objects of names": layer(
        "Activation", {"activation": function("builtins", "deserialize")}
    ),
    "what throws Keras's switch": layer("enable_unsafe_deserialization", module="keras.config"),
    "a type of TensorFlow": {
        "class_name": "__typespec__",
        "spec_name": "TensorSpec",
        "module": "os",
        "config": [],
        "registered_name": None,
    },
    # Keras makes it, before it sees that it is no activation.
    "a letter that is four gigabytes long": layer(
        "Activation",
        {
            "activation": {
                "class_name": "__numpy__",
                "config": {"value": ["a"], "dtype": "U999999999"},
            }
        },
    ),
    "a name that is none": layer(["Lambda"]),
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_description_of_anything_but_layers_is_refused(poison, with_layer, tmp_path):
    described = json.dumps(POISONS[poison]).replace("{marker}", str(tmp_path / "marker"))
    assert "which is not known to be harmless" in refused(with_layer(json.loads(described)))
    assert [file.name for file in tmp_path.iterdir()] == ["model.keras"]


def test_the_sentence_names_what_was_found_and_nothing_else(with_layer):
    assert "names 'keras.ops' '\\x1b[31mred\\n'," in refused(
        with_layer(function("keras.ops", "\x1b[31mred\n"))
    )
    assert len(refused(with_layer(layer("A" * 100_000)))) < 400


@pytest.mark.parametrize(
    "content",
    ["", "{", "[" * 200_000, '{"class_name": "A"}', "9" * 10_000, b"\xff\xfe\x00"],
    ids=range(6),
)
def test_a_description_that_is_none_is_refused(content, written):
    refused(written({CONFIG: content}))


def test_a_description_that_is_too_long_is_refused(written):
    assert "more than 16777216" in refused(written({CONFIG: b" " * (17 << 20)}))


# -- the archive -----------------------------------------------------------------------------------


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "model.keras"
    assert "is no file" in refused(path)
    path.write_bytes(b"")
    assert "BadZipFile" in refused(path)
    with h5py.File(path, "w") as file:  # an .h5 file that was renamed
        file["kernel"] = np.zeros(3)
    assert "BadZipFile" in refused(path)
    path.unlink()
    path.mkdir()
    (path / CONFIG).write_text("{}")  # Keras opens a folder as well
    assert "is no file" in refused(path)


def test_an_archive_by_another_name_is_refused(written, tmp_path):
    """Keras would read it as HDF5, in which a file can begin that ends as an archive."""
    other = written().rename(tmp_path / "model.h5")
    assert "another suffix" in refused(other)


@pytest.mark.parametrize("left", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(left, written):
    path = written()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    assert "damaged" in refused(path)


@pytest.mark.parametrize("name", [CONFIG, METADATA, WEIGHTS])
def test_a_flipped_byte_is_found(name, written, harmless):
    path = written()
    content, member = bytearray(path.read_bytes()), harmless[name]
    content[content.index(member) + len(member) - 1] ^= 1
    path.write_bytes(content)
    assert f"CRC of {name}" in refused(path)


def test_weights_that_were_exchanged_are_known_by_the_digest_alone(written, harmless, tmp_path):
    memory = io.BytesIO(harmless[WEIGHTS])
    with h5py.File(memory, "a") as file:
        file["layers/dense/vars/0"][...] = 0
    (tmp_path / "artifact.json").write_text(
        json.dumps({"model_sha256": find_external_model(written()).sha256})
    )
    path = written({WEIGHTS: memory.getvalue()})
    require_safe(path)
    with pytest.raises(CheckpointError, match=r"damaged\. Expected SHA-256"):
        find_external_model(path)


@pytest.mark.parametrize("size", [100_000, 100 << 20])
def test_compressed_members_are_refused(size, written):
    """Keras reads a bomb of up to 4 GiB, and takes twice that."""
    path = written({WEIGHTS: bytes(size)}, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(path)


@pytest.mark.parametrize(
    ("inside", "outside"), [(None, 2**31), (2**31, 2**31), (2**32 - 2, 2**32 - 2), (None, 0)]
)
def test_members_that_lie_about_their_size_are_refused(inside, outside, written, harmless):
    path = written()
    real = len(harmless[WEIGHTS])
    sizes = struct.pack("<LL", real if inside is None else inside, outside)
    path.write_bytes(path.read_bytes().replace(struct.pack("<LL", real, real), sizes))
    assert "compressed" in (why := refused(path)) or "declares" in why


@pytest.mark.parametrize(
    "more",
    [
        "assets/",
        "assets/layers/vocabulary.txt",
        "../evil",
        "/etc/evil",
        "model.weights.npz",
        "Config.json",
        "config.json\0.txt",
        CONFIG,
    ],
)
def test_other_members_are_refused(more, written):
    path = written()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(more), b"x")
    assert "holds the members" in refused(path)


def test_a_missing_member_is_missed(written, harmless):
    path = written()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(CONFIG, harmless[CONFIG])
    assert "holds the members ['config.json'] instead of" in refused(path)


def test_encrypted_members_are_refused(written):
    path = written()
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in refused(path)


def test_a_list_of_very_many_members_is_not_read(tmp_path):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20_000):
            archive.writestr(zipfile.ZipInfo(f"{number:010}"), b"")
    assert "lists its members in 1120000 bytes" in refused(path)
