"""The same networks written in PyTorch compute the same numbers: logits within 1e-4, gradients
within 1e-4 of their size.

PyTorch's graph is written here from the sources named in docs/model.md, with its own LRN, which
divides alpha by the size of the window, and with grouped convolutions where ours has two towers.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.model.networks import build_network
from pipeline.model.signal import make_photo_like_noise
from pipeline.model.weights_files import read_weights_file
from tests.networks import model_config

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
F = torch.nn.functional


def lrn(x, alpha, k, groups=1):
    parts = [
        F.local_response_norm(part, 5, alpha=5 * alpha, beta=0.75, k=k)
        for part in x.chunk(groups, dim=1)
    ]
    return torch.cat(parts, dim=1)


def rnorm(x):
    energy = F.conv2d(
        (x**2).flatten(0, 1)[:, None], torch.ones(1, 1, 5, 5, dtype=x.dtype), padding=2
    )
    return x / (1 + 0.001 / 25 * energy.reshape(x.shape)) ** 0.75


def pool(x):
    return F.max_pool2d(x, 3, 2)


def rest(x, conv, dense, groups):
    x = F.relu(conv("conv3", x, padding=1))
    x = F.relu(conv("conv4", x, padding=1, groups=groups))
    x = pool(F.relu(conv("conv5", x, padding=1, groups=groups)))
    x = F.relu(dense("fc6", x.flatten(1)))
    return dense("fc8", F.relu(dense("fc7", x)))


def owt(x, conv, dense):
    x = pool(F.relu(conv("conv1", x, stride=4, padding=2)))
    x = pool(F.relu(conv("conv2", x, padding=2)))
    return rest(x, conv, dense, 1)


def paper_text(x, conv, dense):
    x = pool(lrn(F.relu(conv("conv1", F.pad(x, (0, 3, 0, 3)), stride=4)), 1e-4, 2))
    x = pool(lrn(F.relu(conv("conv2", x, padding=2, groups=2)), 1e-4, 2))
    return rest(x, conv, dense, 2)


def paper_code(x, conv, dense):
    x = F.relu(pool(lrn(conv("conv1", F.pad(x, (0, 3, 0, 3)), stride=4), 2e-5, 2, groups=2)))
    x = pool(rnorm(lrn(F.relu(conv("conv2", x, padding=2, groups=2)), 2e-5, 2, groups=2)))
    return rest(x, conv, dense, 2)


def caffenet(x, conv, dense):
    x = lrn(pool(F.relu(conv("conv1", F.pad(x, (0, 3, 0, 3)), stride=4))), 2e-5, 1)
    x = lrn(pool(F.relu(conv("conv2", x, padding=2, groups=2))), 2e-5, 1)
    return rest(x, conv, dense, 2)


def single_tower(x, conv, dense):
    x = F.relu(pool(lrn(conv("conv1", F.pad(x, (0, 3, 0, 3)), stride=4), 2e-5, 2)))
    x = pool(rnorm(lrn(F.relu(conv("conv2", x, padding=2)), 2e-5, 2)))
    return rest(x, conv, dense, 1)


def ungrouped(x, conv, dense):
    x = pool(lrn(F.relu(conv("conv1", F.pad(x, (0, 3, 0, 3)), stride=4)), 1e-4, 2))
    x = pool(lrn(F.relu(conv("conv2", x, padding=2)), 1e-4, 2))
    return rest(x, conv, dense, 1)


CASES = {
    "owt": ({"network": "owt"}, owt),
    "paper, text": ({"network": "paper", "fidelity": "paper"}, paper_text),
    "paper, code": ({"network": "paper"}, paper_code),
    "caffenet": ({"network": "caffenet"}, caffenet),
    "ungrouped, text": ({"network": "ungrouped", "fidelity": "paper"}, ungrouped),
    "single_tower": ({"network": "single_tower"}, single_tower),
}


def channel_first(name, kernel):
    if kernel.ndim == 1:
        return kernel
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    if name == "fc6":
        return (
            kernel.reshape(6, 6, -1, kernel.shape[1])
            .transpose(3, 2, 0, 1)
            .reshape(kernel.shape[1], -1)
        )
    return kernel.T


def both(case, dtype):
    """Return logits and the gradients of every weight, ours and PyTorch's, in PyTorch's axes."""
    settings, graph = CASES[case]
    config = model_config(
        image_size=224, dropout=0, initialization="he", input_scale="unit", **settings
    )
    keras.config.set_dtype_policy(dtype)
    try:
        network = build_network(config, num_classes=1000, channel_mean=MEAN, channel_std=STD)
    finally:
        keras.config.set_dtype_policy("float32")
    images, labels = make_photo_like_noise(4, 224), np.arange(4) * 200
    with tf.GradientTape() as tape:
        logits = network(images)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    kernels = [layer for layer in network.layers if hasattr(layer, "kernel")]
    found = tape.gradient(
        loss, [variable for layer in kernels for variable in (layer.kernel, layer.bias)]
    )
    ours = {
        layer.name: [
            channel_first(layer.name, found[2 * place].numpy()),
            found[2 * place + 1].numpy(),
        ]
        for place, layer in enumerate(kernels)
    }

    weights = {
        layer.name: [
            torch.tensor(channel_first(layer.name, array).copy(), requires_grad=True)
            for array in layer.get_weights()
        ]
        for layer in kernels
    }
    pixels = torch.tensor(
        np.asarray(network.get_layer("normalize")(images)).transpose(0, 3, 1, 2).astype(dtype)
    )
    theirs = graph(
        pixels,
        lambda name, x, **how: F.conv2d(x, *weights[name], **how),
        lambda name, x: F.linear(x, *weights[name]),
    )
    F.cross_entropy(theirs, torch.tensor(labels)).backward()
    return (
        logits.numpy(),
        theirs.detach().numpy(),
        ours,
        {name: [tensor.grad.numpy() for tensor in pair] for name, pair in weights.items()},
    )


@pytest.mark.parametrize("case", CASES)
def test_logits(case):
    ours, theirs, *_ = both(case, "float32")
    assert np.abs(ours - theirs).max() <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    """In float64: in float32 two positions of a pool that are equal but for rounding send their
    gradient to different places."""
    ours, theirs, mine, other = both(case, "float64")
    assert np.abs(ours - theirs).max() <= 1e-6
    for name, pair in other.items():
        for array, tensor in zip(mine[name], pair, strict=True):
            assert np.abs(array - tensor).max() <= 1e-6 * np.abs(tensor).max(), name


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_files_of_pytorch_are_read_without_it(zipped, dtype, tmp_path):
    torch.manual_seed(0)
    shapes = {
        "features.0": (8, 3, 11, 11),
        "features.3": (8, 8, 5, 5),
        "features.6": (8, 8, 3, 3),
        "features.8": (8, 8, 3, 3),
    }
    shapes |= {
        "features.10": (8, 8, 3, 3),
        "classifier.1": (16, 288),
        "classifier.4": (16, 16),
        "classifier.6": (5, 16),
    }
    state = {f"{name}.weight": torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    state |= {
        f"{name}.bias": torch.nn.Parameter(torch.randn(shape[0]).to(dtype))
        for name, shape in shapes.items()
    }
    state["features.3.weight"] = (
        torch.randn(8, 5, 5, 8).to(dtype).permute(0, 3, 1, 2)
    )  # not contiguous, with an offset of its own
    torch.save(
        {"epoch": 3, "state_dict": state},
        tmp_path / "alexnet.pth",
        _use_new_zipfile_serialization=zipped,
    )
    layers = read_weights_file(tmp_path / "alexnet.pth").layers
    assert np.array_equal(
        layers["conv2"][0], state["features.3.weight"].float().permute(2, 3, 1, 0).numpy()
    )
    assert np.array_equal(layers["fc8"][1], state["classifier.6.bias"].detach().float().numpy())


def test_the_weights_of_torchvision_give_its_logits(tmp_path):
    """A whole AlexNet through a file: PyTorch's network saves, ours starts from it."""
    from pipeline.model.imagenet import imagenet_class_names
    from pipeline.model.pretrained import load_pretrained_network

    torch.manual_seed(0)
    nn = torch.nn
    features = [
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    ]
    features += [
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
    ]
    features += [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)]
    classifier = [
        nn.Dropout(),
        nn.Linear(9216, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, 1000),
    ]
    alexnet = nn.Module()
    alexnet.features, alexnet.classifier = nn.Sequential(*features), nn.Sequential(*classifier)
    for parameter in alexnet.parameters():
        nn.init.normal_(
            parameter, std=(2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
        )
    alexnet.eval()
    torch.save(alexnet.state_dict(), tmp_path / "alexnet.pth")
    images = make_photo_like_noise(4, 224)
    pixels = torch.tensor(
        (images / 255 - np.array(MEAN) / 255) / (np.array(STD) / 255), dtype=torch.float32
    ).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = alexnet.classifier(alexnet.features(pixels).flatten(1)).numpy()
    config = model_config(network="owt", image_size=224, weights=str(tmp_path / "alexnet.pth"))
    found = load_pretrained_network(config, imagenet_class_names())
    assert found.fresh_layers == ()
    assert np.abs(np.asarray(found.network(images)) - expected).max() <= 1e-4
