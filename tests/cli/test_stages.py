"""The program as people use it: real processes, a real store, real signals."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest

from pipeline.artifacts import file_sha256
from pipeline.cli import main, shutdown, stages
from pipeline.cli.command import SECTIONS, Invocation
from pipeline.config.description import describe_setting
from pipeline.engine.workdir import work_directory
from pipeline.errors import Terminated
from pipeline.train.checkpoint import read_checkpoint
from pipeline.workspace.workspace import ALL_STAGES, RUN_STAGES
from tests.command_lines import run_command_lines
from tests.package_copy import ROOT, copy_package, run_alexnet

# A shell has SIGINT ignored for what runs in the background; children of these tests must not
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A network small enough for seconds; every stage and file is the real one.
OFF = ("--set", "tracking.enabled=no")  # for what does not concern MLflow: it costs seconds
WEIGHTED = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
SHORT = ("--set", "evaluate.report=short")
TINY = (
    *("--set", "model.alexnet.width_multiplier=0.2"),
    *("--set", "train.global_batch_size=128"),
    *SHORT,
    *("--seed", "3"),
)
PROGRAM = (sys.executable, "-m", "pipeline")
HEAVY = ("tensorflow", "keras", "mlflow", "numpy", "tensorflow_datasets")
# Runs the command line and says on stderr which heavy modules it imported.
SPY = f"""
import sys
from pipeline.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("imported:", *sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)
"""


def clean_environment(**more):
    return {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    } | more


def alexnet(*words, cwd, check=True, program=PROGRAM, **environment):
    """Run a command to its end in a folder; its current folder is the only place that it may write
    to."""
    done = subprocess.run(
        [*program, *words],
        check=False,
        cwd=cwd,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def last_line(done):
    return json.loads(done.stdout.splitlines()[-1])


def digests(result):
    """What must be equal in two runs of the same pipeline."""
    folders = [Path(stage["directory"]) for stage in result["stages"]]
    return result["model"]["sha256"], result["test"]["loss"], [folder.name for folder in folders]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a pipeline has run, and its result."""
    cwd = tmp_path_factory.mktemp("finished")
    done = alexnet("--json", "run", "--epochs", "2", *TINY, cwd=cwd)
    return cwd, done


def test_the_last_line_says_what_was_made_and_where(finished):
    cwd, done = finished
    result = last_line(done)
    assert [(stage["name"], stage["state"]) for stage in result["stages"]] == [
        (name, "ran") for name in stages.RUN_STAGES
    ]
    assert all((cwd / stage["directory"] / "artifact.json").exists() for stage in result["stages"])
    assert all(stage["seconds"] >= 0 and len(stage["run_id"]) == 32 for stage in result["stages"])
    model = result["model"]
    assert file_sha256(cwd / model["path"]) == model["sha256"]
    assert model["parameters"] > 10_000
    test = result["test"]
    assert test["images"] == 385
    assert 0 <= test["top5_error"] <= test["top1_error"] <= 1
    assert test["loss"] > 0
    assert result["run_url"].startswith("http://127.0.0.1:5000/#/experiments/1/runs/")
    assert result["not_recorded"] is None
    finished_stages = [json.loads(line)["stage"]["name"] for line in done.stdout.splitlines()[:-1]]
    assert finished_stages == list(stages.RUN_STAGES)
    assert done.stderr == ""


def test_everything_is_written_under_mlruns(finished):
    assert [path.name for path in finished[0].iterdir()] == ["mlruns"]
    names = {
        path.name
        for path in (finished[0] / "mlruns").iterdir()
        if not path.name.startswith((".", "mlflow.db-"))
    }
    assert names == {
        "artifacts",
        "current.json",
        "journal",
        "mlflow.db",
        "mlflow.db.version",
        "stages",
    }


def test_mlflow_has_the_run_whole(finished):
    import mlflow

    cwd, done = finished
    result = last_line(done)
    store = mlflow.MlflowClient(f"sqlite:///{cwd}/mlruns/mlflow.db")
    parent = store.get_run(result["run_url"].rpartition("/")[2].partition("?")[0])
    stages = {stage["name"]: store.get_run(stage["run_id"]) for stage in result["stages"]}
    assert {run.info.status for run in (parent, *stages.values())} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in stages.values()} == {parent.info.run_id}
    assert parent.data.metrics["test_top1_error"] == result["test"]["top1_error"]
    assert parent.data.params["train.epochs"] == "2"
    assert parent.data.tags["mlflow.note.content"].startswith("test top-1 error")
    assert {"devices", "threads.intra_op", "seed", "package.keras"} <= parent.data.tags.keys()
    wanted = {
        "train_loss",
        "train_top1_error",
        "train_top5_error",
        "validation_loss",
        "validation_top1_error",
        "validation_top5_error",
    }
    for name in wanted | {"learning_rate", "images_per_second"}:
        assert [
            point.step for point in store.get_metric_history(stages["train"].info.run_id, name)
        ] == [1, 2]
    (used,) = stages["train"].inputs.dataset_inputs
    assert used.dataset.name == "digits"
    pages = {
        name: {file.path for file in store.list_artifacts(run.info.run_id, "report")}
        for name, run in stages.items()
    }
    assert "report/dataset_card.html" in pages["ingest"]
    assert "report/network.html" in pages["build"]
    assert "report/learning_curves.png" in pages["train"]
    assert "report/report.html" in pages["evaluate"]
    (model,) = store.search_logged_models([parent.info.experiment_id])
    assert model.source_run_id == stages["train"].info.run_id


def test_the_same_command_again_runs_nothing_and_imports_nothing_heavy(finished):
    cwd, first = finished
    again = alexnet(
        "--json", "run", "--epochs", "2", *TINY, cwd=cwd, program=(sys.executable, "-c", SPY)
    )
    before, after = last_line(first), last_line(again)
    assert {stage["state"] for stage in after["stages"]} == {"skipped"}
    assert [stage["run_id"] for stage in after["stages"]] == [
        stage["run_id"] for stage in before["stages"]
    ]
    assert {name: after[name] for name in ("test", "model", "run_url")} == {
        name: before[name] for name in ("test", "model", "run_url")
    }
    assert again.stderr.split("imported:")[1].split() == []


@pytest.mark.slow
def test_a_changed_setting_runs_what_depends_on_it_and_says_why(finished):
    cwd, _ = finished
    shown = alexnet("run", "--explain", "--epochs", "1", *TINY, *OFF, cwd=cwd).stdout
    assert "setting train.epochs 2 -> 1" in shown
    assert "input train changed" in shown
    assert [
        line.split()[:2] for line in shown.splitlines() if line.startswith(("ingest", "build"))
    ] == [
        ["ingest", "skipped"],
        ["build", "skipped"],
    ]
    alexnet("run", "--epochs", "2", *TINY, cwd=cwd)  # what was selected before is selected again


def test_a_stage_alone_goes_on_from_the_last_command(finished):
    cwd, first = finished
    alone = last_line(alexnet("--json", "evaluate", *SHORT, cwd=cwd))
    assert [(stage["name"], stage["state"]) for stage in alone["stages"]] == [
        ("evaluate", "skipped")
    ]
    assert alone["test"] == last_line(first)["test"]


@pytest.mark.slow
def test_a_network_without_a_dataset(tmp_path):
    done = alexnet(
        "--json",
        "build",
        "--network",
        "paper",
        "--classes",
        "1000",
        "--image-size",
        "224",
        *OFF,
        cwd=tmp_path,
    )
    model = last_line(done)["model"]
    assert (model["network"], model["parameters"], model["macs"]) == (
        "paper",
        60_965_224,
        724_406_816,
    )
    layers = {layer["layer"]: (layer["output"], layer["parameters"]) for layer in model["layers"]}
    assert layers["conv1"] == ([55, 55, 96], 34_944)
    assert layers["fc8"] == ([1000], 4_097_000)
    assert model["activation_bytes"] == 128 * sum(layer["bytes"] for layer in model["layers"])
    report = tmp_path / Path(model["path"]).parent / "report"
    assert {file.name for file in report.iterdir()} == {
        "network.html",
        "network.json",
        "network.png",
        "signal.png",
    }
    assert not (
        tmp_path / "mlruns" / "current.json"
    ).exists()  # nothing that `train` would start from


def test_build_shows_its_layers(finished):
    cwd, _ = finished
    done = alexnet("build", *TINY[:2], *TINY[-2:], cwd=cwd)
    assert "fully connected" in done.stdout
    assert "batch of 64" in done.stdout
    assert "network.html" in done.stdout


@pytest.mark.slow
def test_a_network_that_cannot_learn_is_refused(tmp_path):
    words = (
        "build",
        "--classes",
        "10",
        "--network",
        "small",
        "--image-size",
        "32",
        "--set",
        "model.alexnet.initialization=paper",
        *OFF,
    )
    done = alexnet(*words, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "The signal vanishes" in done.stderr
    assert (
        "--set model.alexnet.initialization=he --set model.alexnet.input_scale=unit" in done.stderr
    )
    assert "Traceback" not in done.stderr
    done = alexnet(*words, "--set", "model.signal_check=warn", cwd=tmp_path)
    assert "signal vanished" in done.stdout


@pytest.mark.slow
def test_a_classifier_on_an_earlier_network(finished, tmp_path):
    from pipeline.model.weights import load_model

    cwd, done = finished
    earlier = cwd / last_line(done)["model"]["path"]
    words = (
        "--weights",
        str(earlier),
        "--freeze",
        "fc7",
        "--set",
        "model.classifier=fresh",
        "--epochs",
        "1",
    )
    model = last_line(alexnet("--json", "run", *words, *TINY, *OFF, cwd=tmp_path))["model"]
    old, new = load_model(earlier), load_model(tmp_path / model["path"])
    same = [
        all(
            (a == b).all()
            for a, b in zip(
                old.get_layer(n).get_weights(), new.get_layer(n).get_weights(), strict=True
            )
        )
        for n in WEIGHTED
    ]
    assert same == [True] * 7 + [False]


@pytest.mark.slow
def test_rerun_forces_one_stage_and_finds_the_same(finished):
    cwd, first = finished
    again = last_line(
        alexnet("--json", "run", "--epochs", "2", *TINY, "--rerun", "evaluate", cwd=cwd)
    )
    assert [stage["state"] for stage in again["stages"]] == ["skipped", "skipped", "skipped", "ran"]
    assert again["test"] == last_line(first)["test"]


def test_a_comparison_without_an_evaluation_is_refused_before_anything_runs(tmp_path):
    done = alexnet("train", "--compare-with", "cifar", *OFF, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "A comparison needs an evaluation of both networks" in done.stderr
    assert not (tmp_path / "mlruns" / "stages").exists()


def test_a_comparison_without_the_weights_is_refused_before_anything_runs(tmp_path):
    words = ("--weights", "gone.keras", "--compare-with", "cifar", *OFF)
    done = alexnet("run", *words, cwd=tmp_path, check=False)
    assert (done.returncode, "gone.keras. Expected weights to start from." in done.stderr) == (
        2,
        True,
    )
    assert not (tmp_path / "mlruns" / "stages").exists()


@pytest.mark.slow
def test_two_networks_are_compared_on_the_same_images_and_the_main_one_stays(tmp_path):
    # `cifar` has no fc6: what is said of the main network is not said of the other.
    words = ("--compare-with", "cifar", "--freeze", "fc6", "--epochs", "1", *SHORT, *OFF)
    told = last_line(alexnet("--json", "run", *words, cwd=tmp_path))
    assert told["model"]["network"] == "small"
    compared = told["comparison"]
    assert compared["images"] == 385
    assert compared["second_model_sha256"] == told["model"]["sha256"]
    assert compared["first_model_sha256"] != compared["second_model_sha256"]
    errors = next(row for row in compared["measures"] if row["name"] == "top1_error")
    assert errors["second"] == told["test"]["top1_error"]
    assert (tmp_path / compared["page"]).is_file()
    status = last_line(alexnet("--json", "status", *OFF, cwd=tmp_path))
    assert {row["state"] for row in status["stages"]} == {"done"}


def test_an_evaluation_is_compared_with_itself(finished):
    cwd, first = finished
    evaluation = Path(last_line(first)["stages"][3]["directory"]).name
    found = last_line(alexnet("--json", "compare", evaluation, evaluation, cwd=cwd))
    assert (found["p_value"], found["only_first_wrong"], found["only_second_wrong"]) == (1.0, 0, 0)
    assert "No clear difference" in (cwd / found["page"]).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_model_that_a_run_trained_is_judged_again_and_compared(finished):
    cwd, first = finished
    whole, status = last_line(first), last_line(alexnet("--json", "status", cwd=cwd))
    train, last = (whole["stages"][place]["run_id"] for place in (2, 3))
    judged = last_line(alexnet("--json", "evaluate", "--model", train, *SHORT, cwd=cwd))
    (stage,) = judged["stages"]
    assert stage["name"] == "evaluate_model"
    same = ("top1_error", "loss", "temperature", "view", "images")
    assert [judged["test"][name] for name in same] == [whole["test"][name] for name in same]
    assert (
        last_line(alexnet("--json", "status", cwd=cwd))["stages"][3]["directory"]
        == status["stages"][3]["directory"]
    )
    found = last_line(alexnet("--json", "compare", last, Path(stage["directory"]).name, cwd=cwd))
    assert (found["p_value"], found["only_first_wrong"], found["only_second_wrong"]) == (1.0, 0, 0)
    assert "No clear difference" in (cwd / found["page"]).read_text(encoding="utf-8")
    shown = alexnet("compare", last[:8], stage["directory"], cwd=cwd).stdout
    assert "top-1 error: first guess wrong" in shown
    assert "comparisons" in shown


NOT_THERE = (
    (
        ("evaluate", "--model", "gone.keras"),
        "There is no model gone.keras. Expected a .keras file",
    ),
    (
        ("evaluate", "--model", "models:/nobody@champion"),
        "There is no model `models:/nobody@champion`",
    ),
    (("evaluate", "--model", "0" * 32), "There is no model `00000000"),
    (
        ("train", "--set", "evaluate.model=x.keras"),
        "Expected the commands ingest and evaluate alone. Received train",
    ),
    (("compare", "abcdef12", "evaluate-no"), "There is no evaluation `abcdef12`"),
    (("compare", "abcdef12"), "Missing argument"),
)


@pytest.fixture(scope="module")
def not_there(finished):
    """What came of each line that names what is not there, beside a finished run."""
    lines = [words for words, _ in NOT_THERE]
    return dict(zip(lines, run_command_lines(lines, finished[0]), strict=True))


@pytest.mark.parametrize(("words", "sentence"), NOT_THERE)
def test_models_and_evaluations_that_are_not_there(not_there, words, sentence):
    done = not_there[words]
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert sentence in done.stderr


def test_status_shows_what_is_there_without_heavy_imports(finished):
    cwd, _ = finished
    done = alexnet("--json", "status", cwd=cwd, program=(sys.executable, "-c", SPY))
    stages = last_line(done)["stages"]
    assert [stage["state"] for stage in stages] == ["done"] * 4
    assert all(
        stage["bytes"] > 0 and stage["age_seconds"] >= 0 and "/runs/" in stage["run_url"]
        for stage in stages
    )
    assert done.stderr.split("imported:")[1].split() == []
    stale = last_line(alexnet("--json", "status", "--recipe", "digits", cwd=cwd))["stages"]
    assert [stage["state"] for stage in stale] == ["done", "stale", "waiting", "waiting"]
    assert "setting model.alexnet.width_multiplier 0.2 -> 0.5" in stale[1]["why"]
    assert "done" in alexnet("status", cwd=cwd).stdout


@pytest.mark.slow
def test_a_damaged_model_is_made_again(finished):
    cwd, first = finished
    model = cwd / last_line(first)["model"]["path"]
    whole = model.read_bytes()
    model.write_bytes(whole[:-100])
    done = alexnet("run", "--epochs", "2", *TINY, *OFF, "--rerun", "evaluate", cwd=cwd, check=False)
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    assert "--rerun train" in done.stderr
    assert "Traceback" not in done.stderr
    assert last_line(
        alexnet("--json", "run", "--epochs", "2", *TINY, *OFF, "--rerun", "train", cwd=cwd)
    )["model"]["sha256"] == file_sha256(model)
    assert model.read_bytes() == whole


@pytest.mark.slow
def test_tracking_changes_nothing_that_is_made(finished, tmp_path):
    off = last_line(
        alexnet(
            "--json", "run", "--epochs", "2", *TINY, "--set", "tracking.enabled=no", cwd=tmp_path
        )
    )
    assert digests(off) == digests(last_line(finished[1]))
    assert off["run_url"] is None
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()


# -- what is refused -------------------------------------------------------------------------------

REFUSALS = {
    "unknown key": (["--set", "train.epoch=3"], 2, "Did you mean `train.epochs`?"),
    "unknown section": (["--set", "trian.epochs=3"], 2, "Did you mean `train.epochs`?"),
    "wrong type": (["--epochs", "many"], 2, "should be a valid integer"),
    "out of range": (["--epochs", "0"], 2, "greater than or equal to 1"),
    "no equals sign": (["--set", "train.epochs"], 2, "section.field=value"),
    "unknown recipe": (["--recipe", "digit"], 2, "Did you mean `digits`?"),
    "unreadable recipe": (["--recipe", "missing.yaml"], 2, "No such file"),
    "unknown network": (["--network", "papier"], 2, "Did you mean `paper`?"),
    "crop larger than image": (["--image-size", "64"], 2, "must not exceed data.short_side"),
    "network too large for the images": (
        ["--network", "paper", "--image-size", "32"],
        2,
        "needs a model.image_size of at least 64 pixels",
    ),
    "fidelity of another network": (
        ["--set", "model.alexnet.fidelity=paper"],
        2,
        "Received network small. Leave fidelity out",
    ),
    "LRN where there is none": (
        ["--set", "model.alexnet.normalization=none", "--set", "model.alexnet.lrn_alpha=1"],
        2,
        "has no LRN (add --set model.alexnet.normalization=lrn)",
    ),
    "a network alone": (
        ["--set", "model.classes=10", "--set", "data.short_side=256"],
        2,
        "Expected the command `build` alone",
    ),
    "uneven batch": (
        ["--devices", "cpu:2", "--set", "train.global_batch_size=9"],
        2,
        "--set train.global_batch_size=10",
    ),
    "unknown device": (["--devices", "tpu"], 2, "train.devices"),
    "unknown command": (["fly"], 2, "'fly' is not one of"),
    "unnameable work directory": (["--workdir", "50%"], 2, "without the characters ? # %"),
    "unwritable work directory": (["--workdir", "/proc/none"], 2, "cannot be written"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """What came of each of the refusals."""
    lines = [("run", *words) for words, _, _ in REFUSALS.values()]
    return dict(zip(REFUSALS, run_command_lines(lines, tmp_path_factory), strict=True))


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_settings_get_one_sentence_and_leave_nothing(name, refused):
    _, code, sentence = REFUSALS[name]
    done = refused[name]
    assert done.returncode == code
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.imported == []
    assert list(done.folder.iterdir()) == []


def test_bad_recipe_file_and_environment(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: [1, 2]")
    done = alexnet("run", "--recipe", "mine.yaml", cwd=tmp_path, check=False)
    assert (done.returncode, "is not a mapping" in done.stderr) == (2, True)
    done = alexnet("run", cwd=tmp_path, check=False, ALEXNET_TRAIN__EPOCHS="none")
    assert (done.returncode, "(from environment)" in done.stderr) == (2, True)


def test_what_the_machine_lacks_is_refused_before_work(tmp_path_factory):
    lines = (
        ("run", *OFF, "--devices", "gpu:7"),
        ("run", *OFF, "--set", "train.precision=bfloat16"),
    )
    found = run_command_lines(lines, tmp_path_factory, TF_ENABLE_ONEDNN_OPTS="0")
    sentences = ("asks for a GPU that is not there", "needs oneDNN")
    for done, sentence in zip(found, sentences, strict=True):
        assert (done.returncode, sentence in done.stderr) == (2, True)
        assert "Traceback" not in done.stderr
        assert [path.name for path in (done.folder / "mlruns").iterdir()] == [".lock"]


def test_a_stage_before_its_input_is_refused(tmp_path):
    done = alexnet("train", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "ingest has no result" in done.stderr
    assert "name both in one command" in done.stderr
    told = last_line(alexnet("--json", "train", cwd=tmp_path, check=False))
    assert (told["stages"], told["test"], told["error"]["type"]) == ([], None, "MissingInputError")


def test_a_missing_folder_is_refused(tmp_path):
    done = alexnet("run", "--dataset", "./photos", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "photos" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_config_and_completion_are_light(tmp_path, tmp_path_factory):
    lines = (
        ("--help",),
        ("run", "--help"),
        ("config",),
        ("--json", "config"),
        ("config", "--schema"),
    )
    for done in run_command_lines(lines, tmp_path_factory):
        assert (done.returncode, done.imported) == (0, []), done
        assert list(done.folder.iterdir()) == []
    shown = last_line(
        alexnet(
            "--json", "config", "--set", "train.epochs=5", cwd=tmp_path, ALEXNET_TRAIN__SEED="4"
        )
    )
    assert shown["settings"]["train.epochs"] == {"value": 5, "from": "command line"}
    assert shown["settings"]["train.seed"] == {"value": 4, "from": "environment"}
    assert shown["settings"]["train.schedule"]["from"] == "recipe digits"
    assert shown["settings"]["train.momentum"]["from"] == "default"
    completed = alexnet(
        cwd=tmp_path,
        _ALEXNET_COMPLETE="bash_complete",
        COMP_WORDS="alexnet --recipe f",
        COMP_CWORD="2",
    )
    assert {line.partition(",")[2] for line in completed.stdout.split()} == {
        "fashion_mnist",
        "folder",
    }
    completed = alexnet(
        cwd=tmp_path,
        _ALEXNET_COMPLETE="bash_complete",
        COMP_WORDS="alexnet build --network s",
        COMP_CWORD="3",
    )
    assert {line.partition(",")[2] for line in completed.stdout.split()} == {
        "small",
        "single_tower",
    }
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_next_day_in_another_folder_with_the_images_gone(tmp_path):
    """A folder of images, then stages one at a time, `--rerun` of an earlier one, and the images
    deleted."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("bright", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(60):
            pixels = np.clip(rng.normal(level, 25, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    small = ("--network", "small", "--set", "model.alexnet.width_multiplier=0.1", *OFF)
    first = last_line(
        alexnet("--json", "run", "--dataset", "photos", "--epochs", "6", *small, cwd=tmp_path)
    )
    assert first["test"]["top1_error"] <= 0.2
    (tmp_path / "elsewhere").mkdir()
    again = last_line(
        alexnet(
            "--json",
            "run",
            "--dataset",
            "../photos",
            "--epochs",
            "6",
            *small,
            "--workdir",
            "../mlruns",
            cwd=tmp_path / "elsewhere",
        )
    )
    assert {stage["state"] for stage in again["stages"]} == {"skipped"}
    alone = last_line(
        alexnet(
            "--json",
            "evaluate",
            "--rerun",
            "evaluate",
            *OFF,
            "--workdir",
            "../mlruns",
            cwd=tmp_path / "elsewhere",
        )
    )
    assert (alone["stages"][0]["state"], alone["test"]) == (
        "ran",
        first["test"] | {"report": alone["test"]["report"]},
    )
    shutil.rmtree(tmp_path / "photos")
    without = last_line(alexnet("--json", "evaluate", *OFF, cwd=tmp_path))
    assert without["test"]["loss"] == first["test"]["loss"]


def test_the_command_line_knows_the_stages_and_what_they_do():
    assert [stage.name for stage in RUN_STAGES] == list(stages.RUN_STAGES)
    assert [stage.name for stage in ALL_STAGES] == list(stages.ALL_STAGES)
    for stage in ALL_STAGES:
        assert stages.SUMMARIES[stage.name] == stage.help.splitlines()[0]
    named = {name for option in stages.STAGE_OPTIONS for name in option.settings}
    assert named == set(stages.ALL_STAGES)


def test_every_stage_option_is_a_setting_with_a_description():
    for option in stages.STAGE_OPTIONS:
        assert all(describe_setting(setting) for setting in option.settings.values()), option.flag


def test_stage_words_come_in_any_number_and_order():
    assert stages.expand_stages(["evaluate", "train"]) == ("train", "evaluate")
    assert stages.expand_stages(["promote", "run"]) == stages.ALL_STAGES
    assert stages.expand_stages(["run", "train"]) == stages.RUN_STAGES


def parsed(*arguments):
    """The invocation and the stages that a command line means, without running them."""
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            stages,
            "_run_stages",
            lambda invocation, *named: (
                taken.append((invocation, *named)) or SimpleNamespace(outcomes=())
            ),
        )
        main.cli.main(args=list(arguments), standalone_mode=False, obj=Invocation())
    ((invocation, named, *_),) = taken
    return invocation, named


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dataset", "photos", "--json", "run", "promote"),
        ("run", "promote", "--dataset", "photos", "--json"),
        ("--json", "run", "--dataset=photos", "promote"),
        ("run", "--json", "promote", "--dataset", "photos"),
    ],
)
def test_options_stand_before_between_or_after_the_words(arguments):
    invocation, named = parsed(*arguments)
    assert named == stages.ALL_STAGES
    assert (invocation.settings, invocation.json) == ({"data.dataset": "photos"}, True)


def test_an_option_of_two_stages_means_those_that_are_named():
    seeds = {"model.seed": "3", "train.seed": "3"}
    assert parsed("run", "--seed", "3")[0].settings == seeds
    assert parsed("--seed", "3", "train")[0].settings == {"train.seed": "3"}
    assert parsed("build", "--seed", "3")[0].settings == {"model.seed": "3"}
    assert parsed("evaluate", "--seed", "3")[0].settings == seeds


def test_shared_options_may_stand_before_any_command(tmp_path):
    done = alexnet("--workdir", "w", "--json", "schedule", "list", cwd=tmp_path)
    assert last_line(done) == {"schedules": []}
    done = alexnet("schedule", "--json", "list", cwd=tmp_path)
    assert last_line(done) == {"schedules": []}
    refused = alexnet("--fly", "status", cwd=tmp_path, check=False)
    assert (refused.returncode, "No such option" in refused.stderr) == (2, True)
    # A schedule keeps its settings; others are refused, not ignored.
    refused = alexnet("schedule", "now", "--set", "train.epochs=3", cwd=tmp_path, check=False)
    assert (refused.returncode, "No such option '--set'" in refused.stderr) == (2, True)


def test_rerun_names_a_stage():
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            stages,
            "_run_stages",
            lambda *arguments: given.extend(arguments) or SimpleNamespace(outcomes=()),
        )
        main.cli.main(args=["run", "--rerun", "evaluate"], standalone_mode=False, obj=Invocation())
    assert given[1:4] == [stages.RUN_STAGES, False, ("evaluate",)]


def commands(group=main.cli, words=()):
    """Every command with its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield (*words, name), command
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def test_summaries_are_short_and_whole():
    shown = alexnet("--help", cwd=Path()).stdout
    for name, summary in stages.SUMMARIES.items():
        assert len(summary) <= 60, name
        assert summary in shown
    for words, command in commands():
        summary = command.get_short_help_str(limit=1000)
        assert len(summary) <= 60, words
        if len(words) == 1:
            assert summary in shown, words
    for section in SECTIONS:
        assert f"{section}:" in shown


def test_every_command_has_examples_and_exit_codes():
    for words, command in commands():
        if isinstance(command, click.Group):
            continue
        assert command.examples, words
        assert all(line.startswith(f"alexnet {' '.join(words)}") for line in command.examples)
        assert {0, 1, 2} <= set(command.exit_codes)
    for word in stages.SUMMARIES:
        assert all(word in line.split() for line in stages.EXAMPLES[word])
    shown = alexnet("model", "rollback", "--help", cwd=Path()).stdout
    assert "Examples:" in shown
    assert "Exit codes:" in shown


def test_no_two_parameters_of_a_command_have_one_name():
    """Values of equal names overwrite each other: Click warns and goes on."""
    for words, command in [*commands(), ((), stages.stages_command)]:
        names = [parameter.name for parameter in command.params]
        assert len(set(names)) == len(names), words


def test_words_that_are_values_of_options_name_no_stage():
    assert parsed("build", "--dataset", "train", "--seed", "3")[0].settings == {
        "data.dataset": "train",
        "model.seed": "3",
    }


def test_help_of_a_stage_shows_its_own_options():
    shown = alexnet("train", "--help", cwd=Path()).stdout
    for flag in ("--epochs", "--learning-rate", "--batch-size", "--precision", "--recipe"):
        assert flag in shown
    assert "--classes" not in shown
    assert "--classes" in alexnet("build", "train", "--help", cwd=Path()).stdout


def test_a_held_work_directory_names_its_owner(tmp_path):
    with work_directory(tmp_path / "mlruns"):
        done = alexnet("run", cwd=tmp_path, check=False)
    assert done.returncode == 75
    assert f"process {os.getpid()}" in done.stderr


# -- killed and carried on -------------------------------------------------------------------------


def killed(words, cwd, when, sign):
    """Start the command, wait until `when(mlruns)`, send the signal, and return how the process
    ended."""
    process = subprocess.Popen(
        [*PROGRAM, *words],
        cwd=cwd,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not when(cwd / "mlruns") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(sign)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def in_stage(name):
    return lambda mlruns: any(mlruns.glob(f"stages/{name}-*.partial"))


def checkpointed(mlruns):
    return any(mlruns.glob("stages/train-*.partial/scratch/checkpoint.npz"))


@pytest.mark.slow
def test_a_terminated_run_says_so_and_is_recorded_as_killed(tmp_path):
    import mlflow

    def training(mlruns):
        return any(
            '"train_loss"' in journal.read_text() for journal in mlruns.glob("journal/*.jsonl")
        )

    words = ["--json", "run", "--epochs", "500", *TINY]
    returned, output, errors = killed(words, tmp_path, training, signal.SIGTERM)
    assert returned == 143
    assert "goes on from here" in errors
    assert "Traceback" not in errors
    assert json.loads(output.splitlines()[-1])["stages"][-1]["state"] == "failed"
    alexnet("sync", cwd=tmp_path)  # whatever was not told in time
    store = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    runs = {run.info.run_name: run for run in store.search_runs(["1"])}
    assert (runs["train"].info.status, runs["digits small"].info.status) == ("KILLED", "KILLED")
    assert runs["ingest"].info.status == "FINISHED"
    assert (
        last_line(alexnet("--json", "status", cwd=tmp_path))["stages"][2]["state"] == "interrupted"
    )


@pytest.mark.slow
def test_interrupted_then_killed_then_typed_again_gives_the_same_digests(finished, tmp_path):
    import mlflow

    words = ["--json", "run", "--epochs", "2", *TINY]
    returned, _, errors = killed(words, tmp_path, in_stage("ingest"), signal.SIGINT)
    assert (returned, "Traceback" in errors) == (130, False)
    words += ["--set", "train.checkpoint_seconds=0"]  # which is no reason to begin anew
    assert killed(words, tmp_path, checkpointed, signal.SIGKILL)[0] == -signal.SIGKILL
    assert digests(last_line(alexnet(*words, cwd=tmp_path))) == digests(last_line(finished[1]))
    store = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    (train,) = (
        run for run in store.search_runs(["1"]) if run.info.run_name == "train"
    )  # of both attempts
    assert train.info.status == "FINISHED"
    assert [point.step for point in store.get_metric_history(train.info.run_id, "train_loss")] == [
        1,
        2,
    ]


def test_an_end_that_a_library_swallowed_comes_with_the_next_step():
    asked, told = shutdown.ShutdownRequest(), []
    observer = SimpleNamespace(
        started=lambda *words: told.append(words),
        progressed=None,
        notified=None,
        finished=None,
        waiting=None,
    )
    heeding = shutdown.InterruptibleObserver(observer, asked)
    heeding.started("ingest", ())
    with contextlib.suppress(KeyboardInterrupt):
        asked(signal.SIGTERM, None)
    with pytest.raises(Terminated):
        heeding.started("build", ())
    with pytest.raises(Terminated):
        heeding.progressed(1, 2, "images", "")
    assert told == [("ingest", ())]


@pytest.mark.slow
def test_killed_at_twelve_moments_gives_the_same_digests(finished, tmp_path):
    """SIGKILL spread over the whole of a run, then the same command; every stage is hit."""
    started = time.monotonic()
    alexnet("--json", "run", "--epochs", "2", *TINY, cwd=tmp_path)
    whole = time.monotonic() - started
    hit = set()
    for moment in range(12):
        cwd = tmp_path / str(moment)
        cwd.mkdir()
        after = time.monotonic() + whole * (moment + 0.5) / 12
        words = ["--json", "run", "--epochs", "2", *TINY]
        killed(words, cwd, lambda _mlruns, after=after: time.monotonic() > after, signal.SIGKILL)
        hit |= {path.name.partition("-")[0] for path in cwd.glob("mlruns/stages/*.partial")}
        assert digests(last_line(alexnet(*words, cwd=cwd))) == digests(last_line(finished[1])), (
            moment
        )
        assert list(cwd.glob("mlruns/stages/*.partial")) == []
    assert {"ingest", "train"} <= hit


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_a_training_killed_twenty_times_is_the_same_training(tmp_path, devices):
    """SIGKILL at random moments, again and again, with everything on that could go another way: the
    same weights, history and scores."""
    on = {
        "schedule": "plateau",
        "patience": 2,
        "early_stopping": 60,
        "color_noise": 0.1,
        "mixup": 0.2,
        "ema_decay": 0.99,
        "gradient_accumulation_steps": 2,
    }
    words = ["--json", "run", "--epochs", "100", "--devices", devices, *TINY, *OFF]
    words += [word for name, value in on.items() for word in ("--set", f"train.{name}={value}")]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = last_line(alexnet(*words, cwd=tmp_path / "a"))
    words += ["--set", "train.checkpoint_seconds=0"]
    assert killed(words, tmp_path / "b", checkpointed, signal.SIGKILL)[0] == -9
    dice, ends, steps = np.random.default_rng(0), [], []
    for _ in range(19):
        at = next((tmp_path / "b").glob("mlruns/stages/train-*.partial/scratch")) / "checkpoint.npz"
        # It is not there when the kill came between the two renames; then the one before it counts.
        old, due, wait = at.stat().st_mtime_ns if at.exists() else 0, [], dice.uniform(0, 0.8)

        def later(_mlruns, at=at, old=old, due=due, wait=wait):
            with contextlib.suppress(FileNotFoundError):  # between the two renames
                if not due and at.stat().st_mtime_ns != old:
                    due.append(time.monotonic() + wait)
            return bool(due) and time.monotonic() > due[0]

        ends.append(killed(words, tmp_path / "b", later, signal.SIGKILL)[0])
        if ends[-1] == 0:
            break
        steps.append(int(read_checkpoint(at)[0]["count/0"]))
    assert steps == sorted(steps)
    assert len(set(steps)) >= 10, steps
    assert digests(last_line(alexnet(*words, cwd=tmp_path / "b"))) == digests(whole)


@pytest.mark.slow
def test_eight_runs_at_once_wait_for_each_other(tmp_path):
    words = [*PROGRAM, "--json", "run", "--wait", "--epochs", "1", *TINY]
    processes = [
        subprocess.Popen(
            words, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    results = [
        json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes
    ]
    assert len({result["model"]["sha256"] for result in results}) == 1
    assert (
        sorted(stage["state"] for result in results for stage in result["stages"]).count("ran") == 4
    )


@pytest.mark.slow
def test_two_replicas_run_from_the_command_line(tmp_path):
    result = last_line(
        alexnet("--json", "run", "--epochs", "2", "--devices", "cpu:2", *TINY, cwd=tmp_path)
    )
    assert {stage["state"] for stage in result["stages"]} == {"ran"}


@pytest.mark.slow
def test_ui_serves_this_machine_only(finished):
    import http.client

    cwd, first = finished
    port = 5731
    server = subprocess.Popen(
        [*PROGRAM, "ui", "--port", str(port)],
        cwd=cwd,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        page = next(line.strip() for line in server.stdout if "http://" in line)
        assert page == f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning"

        def answer(host):
            path = f"/ajax-api/2.0/mlflow/runs/get?run_id={last_line(first)['stages'][2]['run_id']}"
            with contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            ) as connection:
                connection.request("GET", path, headers={"Host": host})
                with connection.getresponse() as response:
                    return response.status

        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                answer(f"127.0.0.1:{port}")
                break
            except OSError:
                time.sleep(0.3)
        assert answer(f"127.0.0.1:{port}") == 200
        assert answer(f"localhost:{port}") == 200
        assert answer("10.evil.example") == 403
        busy = alexnet("ui", "--port", str(port), cwd=cwd, check=False)
        assert (busy.returncode, f"No port from {port} to {port} is free" in busy.stderr) == (
            1,
            True,
        )
    finally:
        server.send_signal(signal.SIGINT)
        code = server.wait(timeout=30)
        server.stdout.close()
    assert code == 0
    with pytest.raises(OSError):  # its children are gone too
        answer("localhost")


def test_paths_are_completed(tmp_path):
    for line in (
        "alexnet run --dataset p",
        "alexnet build --weights p",
        "alexnet export --output p",
    ):
        completed = alexnet(
            cwd=tmp_path, _ALEXNET_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD="3"
        )
        assert completed.stdout.split() == ["file,p"], line


def test_the_name_of_the_model_is_an_option_wherever_the_registry_is_asked(tmp_path_factory):
    commands = (("model", "list"), ("model", "show"), ("predict", "x"), ("serve",), ("promote",))
    lines = [(*words, "--help") for words in commands]
    for done in run_command_lines(lines, tmp_path_factory):
        assert done.returncode == 0
        assert "--name NAME" in done.stdout


def test_an_error_is_a_json_object_with_json_whatever_the_command(tmp_path_factory):
    commands = (("report", "train"), ("model", "show"), ("schedule", "show", "zz"))
    lines = [("--json", *words) for words in commands]
    for done in run_command_lines(lines, tmp_path_factory):
        error = last_line(done)["error"]
        assert (done.returncode, error["type"], error["retryable"]) == (2, "ConfigError", False)
        assert error["message"] in done.stderr
        assert list(done.folder.iterdir()) == []


def test_options_without_a_word_say_so(tmp_path):
    done = alexnet("--epochs", "2", cwd=tmp_path, check=False)
    assert (done.returncode, "No command is named after --epochs 2" in done.stderr) == (2, True)
    for words in (["schedule", "-h"], ["model", "-h"], ["schedule", "add", "-h"]):
        assert "Usage:" in alexnet(*words, cwd=tmp_path).stdout


# -- edits of the code that make a result stale, and that do not -----------------------------------


@pytest.fixture
def package(tmp_path):
    """A copy of the package to edit."""
    return copy_package(tmp_path / "package")


@pytest.fixture
def ran(finished, tmp_path):
    """A copy of the folder in which a pipeline has run."""
    return shutil.copytree(finished[0], tmp_path / "ran")


def run_edited(package, cwd, *arguments):
    return run_alexnet(package, cwd, *arguments)[-1]


def states(package, cwd):
    return {
        stage["stage"]: stage["state"] for stage in run_edited(package, cwd, "status")["stages"]
    }


def replace(package, file, old, new):
    path = package / "pipeline" / file
    text = path.read_text(encoding="utf-8")
    assert old in text, (file, old)
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


DONE = dict.fromkeys(("ingest", "build", "train", "evaluate"), "done")


def test_another_word_in_an_error_makes_ingest_alone_stale(package, ran):
    replace(package, "data/audit.py", "There is no usable image in", "Nothing usable is in")
    found = states(package, ran)
    # Ingest must be run again to know that it makes the same: what comes after waits for it.
    assert found["ingest"] == "stale"
    assert found["train"] == "waiting"


@pytest.mark.slow
def test_another_word_in_an_error_of_ingest_leaves_the_training(package, ran):
    replace(package, "data/audit.py", "There is no usable image in", "Nothing usable is in")
    found = states(package, ran)
    # Ingest must be run again to know that it makes the same: what comes after waits for it.
    assert found["ingest"] == "stale"
    again = run_edited(package, ran, "run", "--epochs", "2", *TINY, *OFF)
    assert {stage["name"]: stage["state"] for stage in again["stages"]} == {
        "ingest": "ran",
        "build": "skipped",
        "train": "skipped",
        "evaluate": "skipped",
    }
    assert states(package, ran) == DONE


def test_colors_and_headings_make_nothing_stale(package, ran):
    replace(package, "reports/training.py", "#1f4fa3", "#123456")
    replace(package, "reports/evaluation/sections.py", '"Confusions"', '"What is confused"')
    assert states(package, ran) == DONE


def test_a_new_row_of_networks_makes_nothing_stale(package, ran):
    row = """ALEXNET_ROWS = (
    AlexNetRow(
        name="narrow",
        summary="a quarter of the filters",
        min_image_size=64,
        image_size=224,
        layers=AlexNetLayers(_CONVOLUTIONS_OF_2012, hidden=(1024, 1024)),
    ),
"""
    replace(package, "model/alexnet_rows.py", "ALEXNET_ROWS = (\n", row)
    assert states(package, ran) == DONE


def test_a_comment_anywhere_makes_nothing_stale(package, ran):
    for path in (package / "pipeline").rglob("*.py"):
        path.write_text(path.read_text(encoding="utf-8") + "\n# A comment.\n", encoding="utf-8")
    assert states(package, ran) == DONE


def test_a_changed_constant_in_the_loss_makes_the_training_stale(package, ran):
    replace(package, "train/step.py", "losses = (1 - smoothing)", "losses = (1.001 - smoothing)")
    assert states(package, ran) == {
        "ingest": "done",
        "build": "done",
        "train": "stale",
        "evaluate": "waiting",
    }
    (accepted,) = run_edited(package, ran, "accept", "train")["accepted"]
    assert accepted["stage"] == "train"
    assert "code pipeline.train.step changed" in accepted["changes"]
    assert states(package, ran) == DONE
    status = run_edited(package, ran, "status")
    assert status["stages"][2]["accepted"][0]["changes"] == accepted["changes"]
    assert states(ROOT, ran) == DONE  # what was accepted is there under both codes


def test_pages_are_drawn_again_in_other_colors_without_tensorflow(package, ran):
    replace(package, "reports/evaluation/sections.py", '"Confusions"', '"What is confused"')
    (package / "tensorflow.py").write_text("raise ImportError('not needed')")
    (package / "keras.py").write_text("raise ImportError('not needed')")
    drawn = run_edited(package, ran, "report")["pages"]
    assert {page["stage"] for page in drawn} >= {"ingest", "build", "train", "evaluate"}
    (folder,) = (Path(page["folder"]) for page in drawn if page["stage"] == "evaluate")
    assert "What is confused" in (folder / "report.html").read_text(encoding="utf-8")
    assert states(ROOT, ran) == DONE
