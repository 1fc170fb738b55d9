import numpy as np

from pipeline.random_streams import RandomStream, open_stream


def test_the_numbers_of_the_streams_stay():
    """Another number would change every trained model."""
    names = {stream.name: int(stream) for stream in RandomStream}
    assert names.items() >= {
        ("IMAGE_ORDER", 0),
        ("CROP_TOP", 1),
        ("CROP_LEFT", 2),
        ("MIRRORING", 3),
        ("COLOR_NOISE", 4),
        ("RESIZED_CROP", 5),
        ("RANDAUGMENT", 6),
        ("ERASED_BOX", 7),
        ("ERASED_IMAGES", 8),
        ("MIXTURE", 9),
    }
    assert len(set(names.values())) == len(RandomStream.__members__)


def test_a_stream_is_that_of_seed_epoch_and_number():
    drawn = open_stream(RandomStream.MIRRORING, seed=5, epoch=2).random(8)
    np.testing.assert_array_equal(drawn, np.random.default_rng([5, 2, 3]).random(8))
