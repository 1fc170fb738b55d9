"""What decides whether training is repeated, and what is stored for its pages."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.config.train import TrainConfig
from pipeline.engine.fingerprint import code_parts
from pipeline.errors import ConfigError
from pipeline.train import stage as stage_module
from pipeline.train.finetune import install_classifier
from pipeline.train.head import read_head
from pipeline.train.stage import apply_fidelity, list_solvers, train
from pipeline.train.strategy import Devices
from tests.train.test_finetune import SIZE, small_network
from tests.train.test_loop import split

# Every module whose change makes training stale. Each can change its numbers: add one only if it
# can, else name it in `without_effect` of the stage or move it to a room that does not count.
MODULES = {
    "data": [
        "augment",
        "cropped_batches",
        "crops",
        "decoding",
        "evaluation_batches",
        "headers",
        "loader",
        "remote_batches",
        "shards",
        "training_batches",
    ],
    "model": ["batch_limit", "graph", "layers", "safety", "signal", "weights"],
    "train": [
        "batch_normalization",
        "checkpoint",
        "cluster",
        "dropout",
        "features",
        "finetune",
        "freezing",
        "head",
        "loop",
        "memory",
        "network_copy",
        "optimizer",
        "stage",
        "state",
        "step",
        "strategy",
    ],
}
OTHERS = {"pipeline.random_streams", "pipeline.train"}


def test_what_can_change_the_numbers_makes_training_stale_and_nothing_else():
    parts = code_parts(train.function.__module__, train.left_out_modules)
    reached = {name.partition(" ")[2] for name in parts if name.startswith("code ")}
    expected = {f"pipeline.{room}.{name}" for room, names in MODULES.items() for name in names}
    assert reached == expected | OTHERS


def test_what_the_fidelity_decides():
    auto = TrainConfig()
    code, paper = (apply_fidelity(auto, fidelity) for fidelity in ("code", "paper"))
    assert (code.color_mode, code.bias_rate) == ("code", "double")
    assert (paper.color_mode, paper.bias_rate) == ("paper", "same")
    chosen = TrainConfig(color_mode="paper", bias_rate="same")
    assert apply_fidelity(chosen, "code") == chosen


@pytest.mark.parametrize(
    ("finetune", "pretrained", "tuned"),
    [
        ("auto", "", False),
        ("auto", "imagenet", True),
        ("off", "imagenet", False),
        ("auto", "a.keras", False),
        ("head", "a.keras", True),
        ("full", "", True),
    ],
)
def test_another_solver_makes_only_fine_tunings_stale(finetune, pretrained, tuned):
    model = SimpleNamespace(pretrained=pretrained)
    packages = list_solvers(config=TrainConfig(finetune=finetune), dataset=None, model=model)
    assert packages == (("scikit-learn", "scipy") if tuned else ())
    assert train.chosen_packages is list_solvers


@pytest.fixture
def tune(tmp_path, monkeypatch):
    """Return a function that fine-tunes a small network, with the context and the job of it."""
    notes = []
    context = SimpleNamespace(
        scratch_directory=tmp_path,
        report_directory=tmp_path,
        run=SimpleNamespace(log_metrics=lambda *_, **__: None),
        notify=notes.append,
        progress=lambda *_: None,
    )
    monkeypatch.setattr(
        "pipeline.model.weights.load_model", lambda _: small_network(), raising=True
    )

    def run(images=96, *, flipped=0, mode="full", **settings):
        train_split, validation = split(images), split(60, 1, "validation")
        train_split.dataset.class_names = ("dark", "bright")
        labels = validation.labels.copy()
        labels[:flipped] = 1 - labels[:flipped]  # nothing can be right about these
        job = stage_module._Job(
            TrainConfig(finetune_epochs=2, **settings),
            mode,
            train_split,
            dataclasses.replace(validation, labels=labels),
            Devices(),
            SimpleNamespace(verified_model_path=lambda: None, class_names=("dark", "bright")),
            tmp_path / "classifier.npz",
        )
        return stage_module._fine_tune(job, context), notes, job

    return run


def test_phase_one_is_restored_where_phase_two_loses(tune, monkeypatch):
    history = [{"epoch": 1, "validation_loss": 0.1}]
    worse = stage_module._Kept(small_network(), 0.5, best_epoch=1, history=history)
    monkeypatch.setattr(stage_module, "_train_network", lambda *_: worse)
    kept, notes, job = tune(flipped=8)
    assert kept.finetuned == "head"
    assert kept.best_epoch == 0
    assert kept.history == history
    assert not kept.finetune["comparison"]["better"]
    assert "the classifier on frozen features is kept" in notes[-1]
    alone = small_network()
    install_classifier(alone, read_head(job.classifier_path))
    for ours, theirs in zip(kept.network.get_weights(), alone.get_weights(), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_phase_two_is_not_trained_in_vain(tune, monkeypatch):
    sent = []  # to the other workers, which wait for it
    monkeypatch.setattr(
        Devices, "broadcast_from_chief", lambda _, value: sent.append(value) or value
    )
    monkeypatch.setattr(stage_module, "_train_network", None)  # a call would fail
    kept, notes, _ = tune(flipped=3)
    assert kept.finetuned == "head"
    assert kept.history == ()
    assert "3 of 60 validation images are wrong without it" in kept.finetune["left_out"]
    assert kept.finetune["left_out"] in notes[-1]
    assert sent == [0.0]


def test_a_small_folder_needs_no_smaller_batch_and_the_loss_chooses_the_epoch(tune, monkeypatch):
    monkeypatch.setattr("pipeline.train.finetune.is_better", lambda before, after: (True, 0.01))
    kept, notes, job = tune(10, flipped=8, global_batch_size=32)
    assert kept.finetuned == "full"
    losses = [entry["validation_loss"] for entry in kept.history]
    assert kept.best_epoch == 1 + int(np.argmin(losses))
    assert len(losses) == 2
    assert "10 images per step" in " ".join(notes)
    model = SimpleNamespace(image_size=SIZE, class_names=("dark", "bright"))
    for mode in ("head", "full"):
        sample, _ = stage_module._collect_training_sample(
            dataclasses.replace(job, mode=mode), model
        )
        assert len(sample) == 10
    with pytest.raises(ConfigError, match="larger than the train split"):
        stage_module._collect_training_sample(dataclasses.replace(job, mode="off"), model)
