"""What decides whether training is repeated, and what is stored for its pages."""

from pipeline.config.train import TrainConfig
from pipeline.engine.fingerprint import code_parts
from pipeline.train.stage import apply_fidelity, train

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
    "model": ["graph", "layers", "safety", "signal", "weights"],
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
