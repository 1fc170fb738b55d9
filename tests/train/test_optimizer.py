"""The update rule against the paper's, and the learning rate as a function of the history."""

import numpy as np
import pytest

from pipeline.config import TrainConfig
from pipeline.train.optimizer import decayed, learning_rate, make_optimizer


def errors(*values):
    return [{"validation_top1_error": value} for value in values]


def test_decay_goes_through_the_momentum():
    """After 50 steps without gradient at rate 0.01, the paper's rule leaves 0.997949 of a weight (Keras's own decay 0.999750)."""
    import keras

    config = TrainConfig(learning_rate=0.01, momentum=0.9, weight_decay=5e-4)
    weight = keras.Variable(np.ones(1, np.float32))
    optimizer = make_optimizer(config)
    for _ in range(50):
        optimizer.apply([config.weight_decay * weight], [weight])
    assert float(weight.numpy()[0]) == pytest.approx(0.997949, abs=2e-6)


def test_biases_do_not_decay():
    assert decayed(np.zeros((3, 4)))
    assert not decayed(np.zeros(4))


def test_plateau_divides_by_ten_after_patience_and_three_times_at_most():
    config = TrainConfig(schedule="plateau", patience=2, learning_rate=1.0)
    assert learning_rate(config, []) == 1.0
    assert learning_rate(config, errors(0.5, 0.5)) == 1.0
    assert learning_rate(config, errors(0.5, 0.5, 0.5)) == pytest.approx(0.1)
    assert learning_rate(config, errors(0.5, 0.5, 0.4, 0.4)) == 1.0
    assert learning_rate(config, errors(0.5, *[0.5] * 20)) == pytest.approx(1e-3)


def test_cosine_starts_at_the_rate_and_ends_near_zero():
    config = TrainConfig(schedule="cosine", epochs=10, learning_rate=0.2)
    rates = [learning_rate(config, errors(*[0.5] * epoch)) for epoch in range(10)]
    assert rates[0] == 0.2
    assert rates[5] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.01


def test_warm_up_rises_to_the_rate():
    config = TrainConfig(schedule="cosine", epochs=10, warmup_epochs=3, learning_rate=0.4)
    assert [learning_rate(config, errors(*[0.5] * epoch)) for epoch in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
