"""From training to the champion's answers, as people type it: real processes, a real store, a real
service."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from pipeline import api
from pipeline.api import Workspace
from pipeline.artifacts import DatasetArtifact
from pipeline.config.tracking import TrackingConfig
from pipeline.data.loader import load_split, read_encoded_images
from pipeline.evaluate.predictions import read_logits
from pipeline.tracking.registry import Registry
from pipeline.tracking.store import open_experiment
from tests.command_lines import run_command_lines

PROGRAM = (sys.executable, "-m", "pipeline")
TINY = ("--set", "model.alexnet.width_multiplier=0.2", "--set", "evaluate.report=short")


def alexnet(*words, cwd, code=0):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    }
    done = subprocess.run(
        [*PROGRAM, *words],
        check=False,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def last_line(done):
    return json.loads(done.stdout.splitlines()[-1])


WITHOUT_A_REGISTRY = (
    ("predict", "a.png"),
    ("serve",),
    ("export", "onnx"),
    ("model", "list"),
    ("model", "rollback"),
)
MIXED = (
    (("promote", "predict", "a.png"), "'predict' is not one of"),
    (("run", "promote", "model"), "'model' is not one of"),
    (("model", "promote"), "No such command 'promote'"),
)
IMPOSSIBLE = (
    (("predict", "https://example.org/cat.jpg"), "is an address on the network"),
    (("predict", "nothing.png"), "There is nothing to classify at 'nothing.png'"),
    (("predict", "a.png", "--format", "xml"), "Unknown format 'xml'"),
    (
        ("predict", "a.png", "--output", "a.parquet", "--model", "b.keras"),
        "There is no model b.keras",
    ),
    (("promote", "--set", "tracking.enabled=no"), "A release lives in MLflow's registry"),
)


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """What came of each line that is refused, in a folder with a file a.png."""
    lines = [*WITHOUT_A_REGISTRY, *(words for words, _ in (*MIXED, *IMPOSSIBLE))]
    found = run_command_lines(lines, tmp_path_factory, files=["a.png"])
    return dict(zip(lines, found, strict=True))


@pytest.mark.parametrize("words", WITHOUT_A_REGISTRY)
def test_without_a_registry_every_command_says_so_and_makes_none(refused, words):
    done = refused[words]
    assert done.returncode == 2
    assert "There is no registry in mlruns" in done.stderr
    assert "`alexnet run promote`" in done.stderr
    assert [path.name for path in done.folder.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("words", "sentence"), MIXED)
def test_stages_and_other_commands_are_not_mixed_in_one_line(refused, words, sentence):
    assert refused[words].returncode == 2
    assert sentence in refused[words].stderr


def test_a_registry_without_a_champion_says_what_to_do(tmp_path):
    (tmp_path / "mlruns").mkdir()
    open_experiment(TrackingConfig(), tmp_path / "mlruns")
    (tmp_path / "a.png").write_bytes(b"x")
    done = alexnet("predict", "a.png", cwd=tmp_path, code=2)
    assert "There is no model models:/alexnet@champion" in done.stderr
    assert "`alexnet run promote`" in done.stderr


@pytest.mark.parametrize(("words", "sentence"), IMPOSSIBLE)
def test_what_cannot_be_is_said_before_anything_heavy_is_imported(refused, words, sentence):
    done = refused[words]
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not {"tensorflow", "keras", "mlflow"} & set(done.imported)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder in which a champion was released, and its decision."""
    cwd = tmp_path_factory.mktemp("released")
    done = alexnet("--json", "run", "--epochs", "3", *TINY, "promote", cwd=cwd)
    return cwd, last_line(done)


@pytest.mark.slow
def test_the_first_model_becomes_the_champion_and_the_decision_is_in_mlflow(released):
    cwd, result = released
    decision = result["decision"]
    assert (decision["outcome"], decision["version"], decision["champion"]) == ("promoted", "1", "")
    assert {check["name"] for check in decision["checks"] if check["passed"]} >= {
        "serving",
        "as evaluated",
        "beats_majority",
        "latency",
    }
    assert Path(cwd / decision["report"]).is_file()
    registry = Registry("alexnet", TrackingConfig(), cwd / "mlruns")
    version = registry.read_version("1")
    assert version.aliases == ("candidate", "champion")
    client = registry.connect()
    runs = client.search_runs(["1"], "tags.stage = 'promote'")
    assert runs[0].data.tags["decision"] == "promoted"
    names = [item.path for item in client.list_artifacts(runs[0].info.run_id, "report")]
    assert names == ["report/decision.html", "report/decision.json"]
    trained = client.search_runs(["1"], "tags.stage = 'train'")[0]
    assert client.get_model_version("alexnet", "1").run_id == trained.info.run_id


def images_in(cwd):
    (folder,) = (cwd / "mlruns").glob("stages/ingest-*")
    dataset = DatasetArtifact.read(folder)
    return list(read_encoded_images(load_split(dataset, "test", in_memory=False)))


def served(cwd, files):
    """The service's logits for files, asked one by one."""
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        port = candidate.getsockname()[1]
    with subprocess.Popen(
        [*PROGRAM, "serve", "--port", str(port)], cwd=cwd, stderr=subprocess.PIPE, text=True
    ) as service:
        try:
            answers = []
            until = time.monotonic() + 120
            while time.monotonic() < until:
                try:
                    if asked(port, "GET", "/ready")[0] == 200:
                        break
                except OSError:
                    time.sleep(0.2)
            for file in files:
                status, answer = asked(port, "POST", "/predict?logits=true&top=5", file)
                assert status == 200
                answers.append(answer["predictions"][0])
                assert answer["model"]["version"] == "1"
        finally:
            service.send_signal(signal.SIGTERM)
            service.communicate(timeout=60)
    assert service.returncode == 0
    return answers


def asked(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    finally:
        connection.close()


@pytest.mark.slow
def test_predict_serve_export_and_evaluate_say_the_same(released, tmp_path):
    cwd, _ = released
    images = images_in(cwd)[:100]
    (evaluated,) = (cwd / "mlruns").glob("stages/evaluate-*")
    expected = np.concatenate(
        [logits for logits, _ in read_logits(evaluated / "predictions.parquet")]
    )[: len(images)]
    allowed = 1e-5 * max(1.0, float(np.abs(expected).max()))
    best_five = np.argsort(-expected, axis=1, kind="stable")[:, :5]

    def require_equal(found, top=None):
        np.testing.assert_allclose(found, expected, rtol=0, atol=allowed)
        np.testing.assert_array_equal(
            np.argsort(-np.asarray(found), axis=1, kind="stable")[:, :5] if top is None else top,
            best_five,
        )

    folder = tmp_path / "images"
    folder.mkdir()
    for place, (encoded, _, _) in enumerate(images):
        (folder / f"{place:03d}.png").write_bytes(encoded)
    alexnet(
        "predict", str(folder), "--output", str(tmp_path / "answers.parquet"), "--logits", cwd=cwd
    )
    table = parquet.read_table(tmp_path / "answers.parquet")
    require_equal(np.asarray(table["logits"].to_pylist()))
    names = [str(number) for number in range(10)]
    assert [
        [names.index(name) for name in row] for row in table["classes"].to_pylist()
    ] == best_five.tolist()

    answers = served(cwd, [encoded for encoded, _, _ in images])
    require_equal(
        [answer["logits"] for answer in answers],
        [[guess["number"] for guess in answer["top"]] for answer in answers],
    )

    for form in ("savedmodel", "onnx", "litert"):
        exported = last_line(alexnet("--json", "export", form, cwd=cwd))
        assert exported["checks"][0]["images"] == 116
        assert all(
            check["difference"] <= allowed and check["same_top5"] == 116
            for check in exported["checks"]
        )

    notebook = list(api.predict([folder], workspace=Workspace(cwd / "mlruns")))
    require_equal([prediction.logits for prediction in notebook])


@pytest.mark.slow
def test_a_worse_candidate_exits_3_and_a_way_back_leads_to_the_version_before(released):
    cwd, _ = released
    worse = alexnet(
        "--json",
        "run",
        "--epochs",
        "1",
        *TINY,
        "--set",
        "train.learning_rate=0.0001",
        "promote",
        cwd=cwd,
        code=3,
    )
    assert "The candidate was refused and the champion stays" in worse.stderr
    assert last_line(worse)["decision"]["outcome"] == "refused"
    again = alexnet("promote", cwd=cwd, code=3)  # never skipped, and still refused
    assert "it is never skipped" in again.stdout
    versions = last_line(alexnet("--json", "model", "list", cwd=cwd))["versions"]
    assert [(item["version"], item["gate"]) for item in versions] == [
        ("2", "refused"),
        ("1", "passed"),
    ]
    assert "no version to roll back to" in alexnet("model", "rollback", cwd=cwd, code=2).stderr
    assert "never passed the gate" in alexnet("model", "rollback", "2", cwd=cwd, code=3).stderr

    lenient = (
        "--margin",
        "0.5",
        "--set",
        "release.class_margin=1",
        "--set",
        "release.max_calibration_error=1",
    )
    alexnet("run", "--epochs", "4", *TINY, "promote", *lenient, cwd=cwd)
    went = last_line(alexnet("model", "rollback", "--json", cwd=cwd))
    assert (went["from"], went["to"]) == ("3", "1")
    refused = alexnet("promote", *lenient, cwd=cwd, code=3)
    assert "A rollback left version 3" in refused.stderr
    alexnet("promote", *lenient, "--approve", cwd=cwd)
    versions = last_line(alexnet("model", "list", "--json", cwd=cwd))["versions"]
    assert versions[0]["aliases"] == ["candidate", "champion"]
    assert versions[2]["aliases"] == ["previous"]


@pytest.mark.slow
def test_mlflow_serves_the_champion_too(released, tmp_path):
    """In a process that never imported this program, as `mlflow models serve` is."""
    cwd, _ = released
    store = f"sqlite:///{cwd / 'mlruns' / 'mlflow.db'}"
    code = f"""
import mlflow, numpy
mlflow.set_tracking_uri({store!r})
model = mlflow.pyfunc.load_model("models:/alexnet@champion")
print(model.predict(numpy.zeros((2, 28, 28, 3), numpy.uint8)).shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "(2, 10)"
