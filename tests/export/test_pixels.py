"""pixels.py gives the pixels of training without TensorFlow."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.data.decoding import decode_and_resize
from pipeline.data.headers import read_orientation
from pipeline.export import pixels
from tests.export.networks import IMAGES, saved


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_pixels_without_tensorflow_are_those_of_training(tmp_path, fit):
    alpha = Image.fromarray(load_sample_images().images[0][:200, :150])
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    large = [
        saved(Image.fromarray(pixels), kind)
        for pixels in load_sample_images().images
        for kind in ("JPEG", "PNG")
    ]
    thin = [saved(Image.new("RGB", sides, "teal"), "JPEG") for sides in ((900, 2), (1, 700))]
    odd = [saved(alpha, "PNG"), saved(alpha, "WEBP", lossless=True), *thin]
    for encoded in [*IMAGES, *large, *odd]:
        (tmp_path / "image").write_bytes(encoded)
        square = decode_and_resize(encoded, 48, read_orientation(encoded), fit=fit)
        expected = np.asarray(square)[4:44, 4:44]
        found = pixels.read_pixels(tmp_path / "image", short_side=48, image_size=40, fit=fit)
        assert (found.shape, found.dtype) == ((1, 40, 40, 3), np.uint8)
        difference = np.abs(found[0].astype(int) - expected)
        assert difference.mean() < 0.8  # a filter laid over it: 4 to 7
        assert difference.max() < 30
