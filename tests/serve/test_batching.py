"""The batcher: sizes, waits, one classifier a batch, and errors of single images."""

import time

import numpy as np
import pytest

from pipeline.errors import CheckpointError
from pipeline.serve.batching import Batcher


class Summing:
    """Stands in for a classifier: the logits are the sums of the images; what holds a 13 cannot be
    answered."""

    def __init__(self):
        self.batches = []

    def predict_logits(self, pixels):
        self.batches.append(len(pixels))
        if (pixels == 13).any():
            raise CheckpointError("13 is no number.")
        return pixels.reshape(len(pixels), -1).sum(axis=1, keepdims=True)


def test_a_batch_holds_images_of_one_classifier_up_to_its_size():
    first, second = Summing(), Summing()
    batcher = Batcher(4, 0.2, lambda _: None)
    images = [np.full((2, 2), value) for value in range(6)]
    answers = [
        batcher.submit(first, images),
        batcher.submit(second, images[:3]),
        batcher.submit(first, images[:1]),
    ]
    assert [answer.result(5).ravel().tolist() for answer in answers] == [
        [0, 4, 8, 12, 16, 20],
        [0, 4, 8],
        [0],
    ]
    assert (first.batches, second.batches) == ([4, 2, 1], [3])
    batcher.close()


def test_the_first_image_waits_for_others_only_so_long():
    classifier, batcher = Summing(), Batcher(4, 0.3, lambda _: None)
    started = time.monotonic()
    answers = [batcher.submit(classifier, [np.ones((2, 2))])]
    time.sleep(0.1)
    answers.append(batcher.submit(classifier, [np.ones((2, 2))]))
    assert [answer.result(5).item() for answer in answers] == [4, 4]
    assert 0.25 < time.monotonic() - started < 2
    assert classifier.batches == [2]
    batcher.close()


def test_an_image_that_cannot_be_answered_harms_no_other():
    classifier, batcher = Summing(), Batcher(8, 0.2, lambda _: None)
    answers = [
        batcher.submit(classifier, [np.full((2, 2), value), np.ones((2, 2))])
        for value in (1, 13, 2)
    ]
    assert answers[0].result(5).ravel().tolist() == [4, 4]
    assert answers[2].result(5).ravel().tolist() == [8, 4]
    with pytest.raises(CheckpointError, match="13"):
        answers[1].result(5)
    batcher.close()
