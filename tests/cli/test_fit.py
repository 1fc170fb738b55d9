"""Wide images whose class is at the left: learned with `auto`, and whole wherever they go."""

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from tests.cli.test_stages import OFF, SHORT, alexnet, last_line

SETTINGS = (
    *("--dataset", "wide", "--set", "data.short_side=36", "--image-size", "32"),
    *("--network", "small", "--set", "model.alexnet.width_multiplier=0.2", "--epochs", "8"),
    *SHORT,
    *OFF,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of 192 x 64 images, and the result of a run: the color of the left third decides."""
    cwd = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("validation", 20), ("test", 40)):
        for number, name in enumerate("ab"):
            (cwd / "wide" / split / name).mkdir(parents=True)
            for index in range(count):
                noise = np.kron(rng.integers(60, 196, (4, 12, 3)), np.ones((16, 16, 1)))
                noise[:, :60] *= 0.4
                noise[:, :60, number] += 140
                image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
                image.save(cwd / "wide" / split / name / f"{index:02d}.png")
    return cwd, alexnet("--json", "run", *SETTINGS, cwd=cwd)


@pytest.mark.slow
def test_auto_learns_what_lies_outside_the_central_square(finished):
    _, done = finished
    assert "fit: pad, because 100.0 % of the images would lose" in done.stderr + done.stdout
    assert last_line(done)["test"]["top1_error"] <= 0.02


@pytest.mark.slow
def test_predict_gives_the_answers_of_the_evaluation(finished):
    cwd, done = finished
    stages = cwd / "mlruns" / "stages"
    (model,), (report,) = stages.glob("train-*/model.keras"), stages.glob("evaluate-*")
    scored = parquet.read_table(report / "predictions.parquet").to_pylist()
    files = [str(cwd / "wide" / row["key"]) for row in scored]
    alexnet("predict", *files, "--model", str(model), "--output", "found.parquet", cwd=cwd)
    answers = parquet.read_table(cwd / "found.parquet").to_pylist()
    assert [row["path"] for row in answers] == files
    temperature = last_line(done)["test"]["temperature"]
    for answer, row in zip(answers, scored, strict=True):
        powers = np.exp(np.asarray(row["logits"]) / temperature)
        assert answer["classes"][0] == "ab"[row["answer"]]
        assert abs(answer["probabilities"][0] - powers.max() / powers.sum()) < 2e-5


@pytest.mark.slow
def test_an_external_model_needs_images_of_its_fit(finished):
    """The ingest with `auto` serves it; where its fit is not the dataset's, the hint is typed."""
    cwd, done = finished
    (model,) = (cwd / "mlruns" / "stages").glob("train-*/model.keras")
    command = ("--json", "evaluate", "--model", str(model), *SHORT, *OFF)
    again = last_line(alexnet(*command, cwd=cwd))
    assert again["test"]["loss"] == last_line(done)["test"]["loss"]
    cropped = ("ingest", "--dataset", "wide", "--set", "data.fit=crop")
    refused = alexnet(*command, *cropped, cwd=cwd, check=False)
    assert refused.returncode == 1
    assert (
        "Expected fit pad. Received crop. Type --set data.fit=pad"
        in refused.stderr + refused.stdout
    )
