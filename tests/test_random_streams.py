import hashlib

import numpy as np

from pipeline.random_streams import (
    RandomStream,
    derive_layer_seed,
    dropout_key,
    open_stream,
)


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
        ("INITIAL_WEIGHTS", 10),
    }
    assert len(set(names.values())) == len(RandomStream.__members__)


def test_a_stream_is_that_of_seed_epoch_and_number():
    drawn = open_stream(RandomStream.MIRRORING, seed=5, epoch=2).random(8)
    np.testing.assert_array_equal(drawn, np.random.default_rng([5, 2, 3]).random(8))


def test_the_seed_of_a_layer_follows_from_its_name():
    """Other numbers would change every fresh network."""
    assert (
        derive_layer_seed(0, "conv1") == int(hashlib.sha256(b"10 0 conv1").hexdigest()[:8], 16) // 2
    )
    assert [derive_layer_seed(0, "conv1"), derive_layer_seed(7, "fc8")] == [
        996491575,
        246387193,
    ]
    seeds = {derive_layer_seed(seed, f"conv{n}") for seed in range(100) for n in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_each_random_layer_of_each_seed_has_a_key_of_its_own():
    """Also beyond 64 layers (EfficientNetV2L has more), where the first 64 keep theirs."""
    assert [dropout_key(seed=5, layer=layer) for layer in (0, 3, 63)] == [320, 323, 383]
    seeds = (*range(9), 2**31 - 2, 2**31 - 1)
    keys = {dropout_key(seed=seed, layer=layer) for seed in seeds for layer in range(300)}
    assert len(keys) == len(seeds) * 300
    assert dropout_key(seed=0, layer=64) > dropout_key(seed=2**31 - 1, layer=63)
    assert dropout_key(seed=2**31 - 1, layer=2**32 - 1) < 2**63
