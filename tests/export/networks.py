"""Networks, releases and images for the tests of exports."""

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.artifacts import file_sha256
from pipeline.model.networks import build_network
from pipeline.model.weights import save_model
from pipeline.release.package import Release
from tests.networks import model_config

NAMES = ("cat", "émeu", "two words", "<b>", "line\nbreak", "6")


TEMPERATURE = 1.7


CASES = {
    "paper": {"network": "paper", "image_size": 64},
    "paper, text": {"network": "paper", "fidelity": "paper", "image_size": 64},
    "caffenet": {"network": "caffenet", "image_size": 64},
    "ungrouped": {"network": "ungrouped", "image_size": 64},
    "single_tower": {"network": "single_tower", "image_size": 64},
    "owt": {"network": "owt", "image_size": 64},
    "small": {"network": "small", "image_size": 32},
    "cifar": {"network": "cifar", "image_size": 32},
    "batch normalization": {"network": "small", "image_size": 32, "normalization": "batch"},
    "gelu": {"network": "small", "image_size": 32, "activation": "gelu"},
}


def saved(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def oriented(image, kind, number, order="MM"):
    exif = Image.Exif()
    exif[0x0112] = number
    exif.endian = {"MM": ">", "II": "<"}[order]
    return saved(image, kind, exif=exif)


def photographs(count=12):
    """Pieces of scikit-learn's two photographs, in every format, some larger and some smaller than
    the network's input."""
    rng, images = (
        np.random.default_rng(0),
        [Image.fromarray(pixels) for pixels in load_sample_images().images],
    )
    kinds = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
    found = []
    for place in range(count):
        width, height = rng.integers(20, 400, 2)
        left, top = rng.integers(0, 640 - width), rng.integers(0, 427 - height)
        piece = images[place % 2].crop((left, top, left + width, top + height))
        found.append(
            oriented(piece, "JPEG", place % 8 + 1)
            if place % 3 == 0
            else saved(piece, kinds[place % 5])
        )
    return found


IMAGES = photographs()


def released(model, directory, **known):
    directory.mkdir(parents=True, exist_ok=True)
    save_model(model, directory / "model.keras")
    known = {
        "class_names": NAMES,
        "short_side": model.input_shape[1] + 8,
        "temperature": TEMPERATURE,
        "name": "tiny",
    } | known
    return Release(
        directory=directory,
        model_file="model.keras",
        model_sha256=file_sha256(directory / "model.keras"),
        **known,
    )


def network(case="small", width=0.25):
    config = model_config(width_multiplier=width, **CASES[case])
    return build_network(
        config, num_classes=len(NAMES), channel_mean=(120, 110, 100), channel_std=(60, 50, 40)
    )
