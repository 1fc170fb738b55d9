"""Several workers: who they are, real processes on loopback, one of them killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import api
from pipeline.api import Workspace
from pipeline.config.train import TrainConfig
from pipeline.errors import ConfigError, WorkersFailedError
from pipeline.train.cluster import Cluster, read_cluster
from pipeline.train.launcher import run_workers
from pipeline.train.strategy import require_divisible

TWO = ["a:1", "b:2"]


def told(cluster, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def test_one_process_alone_without_tf_config():
    assert (
        read_cluster({})
        == read_cluster({"TF_CONFIG": " "})
        == read_cluster({"TF_CONFIG": "{}"})
        == Cluster()
    )
    assert (Cluster().workers, Cluster().is_chief) == (1, True)


def test_workers_are_counted_from_the_chief_on():
    assert read_cluster(told({"worker": TWO}, index=1)) == Cluster(("a:1", "b:2"), 1)
    assert read_cluster(told({"chief": ["c:3"], "worker": TWO}, index=1)) == Cluster(
        ("c:3", "a:1", "b:2"), 2
    )
    chief = read_cluster(told({"chief": ["c:3"], "worker": TWO}, "chief"))
    assert (chief.index, chief.is_chief, chief.workers) == (0, True, 3)


@pytest.mark.parametrize(
    "environment",
    [
        {"TF_CONFIG": "not json"},
        {"TF_CONFIG": "[1]"},
        {"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'},
        told({"worker": TWO}, index=2),
        told({"worker": TWO}, index=-1),
        told({"worker": ["a:1", "a:1"]}),
        told({"worker": ["a", "b"]}),
        told({"worker": TWO, "ps": ["p:1"]}),
        told({"worker": TWO}, "evaluator"),
    ],
)
def test_a_tf_config_that_does_not_name_workers_is_refused_in_one_sentence(environment):
    with pytest.raises(ConfigError, match=r"TF_CONFIG .* Expected .*\"index\": 0.* Received "):
        read_cluster(environment)


def test_a_batch_that_workers_cannot_share_is_refused_with_one_that_they_can():
    require_divisible(TrainConfig(global_batch_size=128), 2, 4)
    with pytest.raises(
        ConfigError,
        match=(
            r"multiple of 24: 3 workers with 8 devices each .*Received 128.*global_batch_size=144"
        ),
    ):
        require_divisible(TrainConfig(global_batch_size=128), 3, 8)
    with pytest.raises(
        ConfigError,
        match=r"multiple of 6: 3 workers with 1 device each .*MixUp.*global_batch_size=132",
    ):
        require_divisible(TrainConfig(global_batch_size=128, mixup=0.2), 3, 1)
    with pytest.raises(ConfigError, match="Type --devices cpu"):
        require_divisible(TrainConfig(global_batch_size=128, devices="cpu:2"), 2, 2)


def test_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", told({"worker": [*TWO, "c:3"]})["TF_CONFIG"])
    with pytest.raises(ConfigError, match="multiple of 3"):
        api.run(workspace=Workspace(tmp_path / "w", settings={"train.global_batch_size": 64}))
    workspace = Workspace(tmp_path / "w", settings={"train.global_batch_size": 66})
    with pytest.raises(ConfigError, match="one of several already"):
        api.run(workers=2, workspace=workspace)
    with pytest.raises(ConfigError, match="when the chief has made build again"):
        api.run(rerun=["build"], workspace=workspace)
    assert list(tmp_path.iterdir()) == []


def test_the_launcher_ends_with_the_code_of_the_worker_that_failed_by_itself(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    heard = []
    assert run_workers(["train", "--epochs", "none"], 2, heard.append) == 2
    assert "train.epochs" in capfd.readouterr().err  # the chief's own message
    assert len(heard) == 1
    assert heard[0].startswith("worker 1 ended with 2: Error: ")
    with pytest.raises(ConfigError, match="epochs"):
        api.run(workers=2, workspace=Workspace(settings={"train.epochs": "none"}))
    begun = time.monotonic()
    with pytest.raises(
        WorkersFailedError
    ) as found:  # nothing to train with: the chief says so, and the other is not waited for
        api.run(["train"], workers=2, workspace=Workspace(settings={"tracking.enabled": False}))
    assert found.value.exit_code == 1
    assert time.monotonic() - begun < 20
    assert "Type `alexnet ingest` first" in capfd.readouterr().err


# -- real workers ----------------------------------------------------------------------------------

PROGRAM = (sys.executable, "-m", "pipeline")
ARGUMENTS = [
    "--set",
    "model.alexnet.width_multiplier=0.2",
    "--set",
    "train.global_batch_size=128",
    "--set",
    "tracking.enabled=no",
    "--quiet",
]


def started(arguments, cwd):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    }
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers_of(launcher):
    """Process id by worker, of those that the launcher has started and that live."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    found = {}
    for child in children:
        settings = dict(
            word.partition("=")[::2]
            for word in Path(f"/proc/{child}/environ").read_text().split("\0")
            if word
        )
        found[json.loads(settings["TF_CONFIG"])["task"]["index"]] = int(child)
    return found


def checkpointed(cwd):
    return [
        path.stat().st_mtime_ns
        for path in cwd.glob("mlruns/stages/train-*.partial/scratch/checkpoint.npz")
    ]


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def made(cwd):
    """What training left: the model's bytes and the history without the clock."""
    from pipeline.train.loop import remove_clock_readings

    (folder,) = (path for path in cwd.glob("mlruns/stages/train-*") if path.suffix != ".partial")
    history = json.loads((folder / "report" / "history.json").read_text())
    return (folder / "model.keras").read_bytes(), [
        remove_clock_readings(entry) for entry in history
    ]


def assert_same_but_for_rounded_sums(one, other):
    """Equal weights and decisions; the losses of an epoch are sums, which workers and devices add
    up in another order."""
    assert one[0] == other[0]
    for first, second in zip(one[1], other[1], strict=True):
        assert first.pop("train_loss") == pytest.approx(second.pop("train_loss"), abs=1e-12)
        assert first.pop("validation_loss") == pytest.approx(
            second.pop("validation_loss"), abs=1e-6
        )
        assert first == second


@pytest.mark.slow
def test_two_workers_train_as_two_devices_and_one_killed_in_the_middle_changes_nothing(tmp_path):
    """Bit for bit: undisturbed, with worker 1 killed, with the chief killed, and two devices of one
    process."""
    arguments = ["run", "--epochs", "40", *ARGUMENTS]
    for name in ("undisturbed", "replicas", "worker killed", "chief killed"):
        (tmp_path / name).mkdir()
    replicas = started([*arguments, "--devices", "cpu:2"], tmp_path / "replicas")
    _, errors = replicas.communicate(timeout=300)
    assert replicas.returncode == 0, errors
    arguments += ["--workers", "2"]
    undisturbed = started(arguments, tmp_path / "undisturbed")
    output, errors = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, errors
    assert "top-1 error" in output
    assert errors == ""
    assert_same_but_for_rounded_sums(made(tmp_path / "undisturbed"), made(tmp_path / "replicas"))
    for victim, name in ((1, "worker killed"), (0, "chief killed")):
        cwd = tmp_path / name
        launcher = started([*arguments, "--set", "train.checkpoint_seconds=0.3"], cwd)
        until(lambda cwd=cwd: checkpointed(cwd))
        os.kill(workers_of(launcher)[victim], signal.SIGKILL)
        output, errors = launcher.communicate(timeout=300)
        assert launcher.returncode == 0, errors
        assert (
            f"worker {victim} ended by signal 9; all start again from the last checkpoint (1 of 3"
            " times)" in errors
        )
        assert "Traceback" not in errors
        if victim == 1:
            assert "Another worker of this training is gone" in errors  # the chief's one sentence
        assert made(cwd) == made(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_and_ends_all_and_the_same_command_goes_on(tmp_path):
    arguments = ["run", "--epochs", "40", *ARGUMENTS, "--workers", "2"]
    launcher = started([*arguments, "--set", "train.checkpoint_seconds=0.3"], tmp_path)
    until(lambda: checkpointed(tmp_path))
    workers = workers_of(launcher)
    asked = time.monotonic()
    launcher.send_signal(signal.SIGTERM)
    _, errors = launcher.communicate(timeout=60)
    assert (launcher.returncode, "Traceback" in errors) == (143, False), errors
    assert time.monotonic() - asked < 20
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers.values())
    assert launcher.returncode == 143
    again = started(arguments, tmp_path)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert len(made(tmp_path)[1]) == 40


@pytest.mark.slow
def test_workers_of_a_killed_launcher_do_not_stay_behind(tmp_path):
    launcher = started(["run", "--epochs", "1000", *ARGUMENTS, "--workers", "2"], tmp_path)
    until(lambda: any(tmp_path.glob("mlruns/stages/train-*.partial/scratch")))
    workers = workers_of(launcher)
    launcher.kill()
    launcher.communicate()
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers.values()), 30)


@pytest.mark.slow
def test_a_worker_that_never_comes_is_told_in_one_sentence_and_a_signal_is_heard_meanwhile(
    tmp_path,
):
    environment = os.environ | told({"worker": ["127.0.0.1:29471", "127.0.0.1:29472"]})
    arguments = [*PROGRAM, "run", *ARGUMENTS, "--set", "train.watchdog_seconds=3"]
    done = subprocess.run(
        arguments,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 1
    assert "did not meet within 3 s" in done.stderr
    assert "127.0.0.1:29472 did not answer worker 0" in done.stderr
    waiting = subprocess.Popen(
        [*arguments[:-1], "train.watchdog_seconds=300"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(12)
    waiting.send_signal(signal.SIGTERM)
    _, errors = waiting.communicate(timeout=15)
    assert (waiting.returncode, "Traceback" in errors) == (143, False), errors
