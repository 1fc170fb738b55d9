"""The commands around a schedule, as typed; tests/test_story.py has whole retrainings."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from PIL import Image

from pipeline import api
from pipeline.api import Workspace
from pipeline.errors import ConfigError
from pipeline.schedule.ledger import Ledger
from pipeline.schedule.owners import identify_this_process
from pipeline.workspace.schedules import read_arguments, read_retrain_settings
from pipeline.workspace.workspace import resolve
from tests.command_lines import run_command_lines

PROGRAM = (sys.executable, "-m", "pipeline")


def alexnet(*arguments, cwd, code=0, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")}
    done = subprocess.run(
        [*PROGRAM, *arguments],
        check=False,
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def told(*arguments, cwd, code=0, **environment):
    return json.loads(
        alexnet("--json", *arguments, cwd=cwd, code=code, **environment).stdout.splitlines()[-1]
    )


@pytest.fixture
def photos(tmp_path):
    """A folder of images, enough for a schedule to be made for it."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "photos" / name / "1.png")
    return tmp_path


def workspace_of(folder):
    settings = {"data.dataset": str(folder / "photos")}
    return Workspace(folder / "mlruns", settings=settings)


def test_the_next_run_times_in_both_zones(tmp_path):
    timing = ("--cron", "0 3 * * 1", "--timezone", "Europe/Madrid")
    found = told("schedule", "add", *timing, "--dry-run", cwd=tmp_path)
    assert len(found["run_times"]) == 10
    for run_time in found["run_times"]:
        local = datetime.fromisoformat(run_time["local"])
        assert (local.isoweekday(), local.hour, local.minute) == (1, 3, 0)
        assert local.astimezone(UTC) == datetime.fromisoformat(run_time["utc"])
    assert list(tmp_path.iterdir()) == []
    shown = alexnet("schedule", "add", "--every", "6h", "--dry-run", cwd=tmp_path).stdout
    assert "every 6h" in shown


ADD = ("schedule", "add")


REFUSALS = (
    (("schedule", "serve"), "There is no schedule yet. Type `alexnet schedule add"),
    ((*ADD, "--cron", "0 3 31 2 *", "--dry-run"), "never comes"),
    ((*ADD, "--cron", "0 3 * * 1", "--every", "6h"), "A schedule needs one timing"),
    ((*ADD, "--every", "6h", "--timezone", "Europe/Madird"), "Did you mean `Europe/Madrid`?"),
    ((*ADD, "--every", "6h", "--set", "train.epoch=3"), "Did you mean `train.epochs`?"),
    ((*ADD, "--every", "6h", "--trigger", "drfit"), "drfit"),
    ((*ADD, "../x", "--every", "6h"), "cannot name a folder"),
    ((*ADD, "by-hand", "--every", "6h"), "cannot name a folder"),
    ((*ADD, "_x", "--every", "6h"), "cannot name a folder"),
    (
        (*ADD, "--every", "6h", "--set", "tracking.enabled=no"),
        "A release lives in MLflow's registry",
    ),
    ((*ADD, "--dry-run"), "--dry-run shows a timing. Expected --cron or --every"),
    ((*ADD, "--jitter", "5m"), "--jitter would change nothing without a timing"),
    ((*ADD, "--timezone", "UTC"), "--timezone would change nothing without a timing"),
    (("schedule", "serve", "--dataset", "digits"), "Settings belong to a schedule"),
    (("schedule", "serve", "typo", "--once"), "There is no schedule typo yet. Expected its"),
    (("schedule", "emit", "crontab"), "There is no schedule 'main'"),
    (("schedule", "show"), "There is no schedule 'main'"),
    (("schedule", "history", "nosuch"), "There is no schedule 'nosuch'"),
    (("schedule", "history", "--limit", "99999999999999999999"), "is not in the range"),
    (("schedule", "remove"), "There is no schedule 'main'"),
    (("schedule", "pause"), "There is no schedule 'main'"),
    (("schedule", "resume", "nightly"), "There is no schedule 'nightly'"),
    (("schedule", "now"), "There is no schedule 'main'"),
    (("clean",), "There is no work directory mlruns"),
    (("train", "schedule"), "'schedule' is not one of"),
)


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """What came of each of the refusals."""
    lines = [arguments for arguments, _ in REFUSALS]
    return dict(zip(lines, run_command_lines(lines, tmp_path_factory), strict=True))


@pytest.mark.parametrize(("arguments", "sentence"), REFUSALS)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(refused, arguments, sentence):
    done = refused[arguments]
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert list(done.folder.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused_when_it_is_scheduled(tmp_path):
    done = alexnet(*ADD, "--every", "6h", "--dataset", "./nowhere", cwd=tmp_path, code=1)
    assert "There is no folder nowhere." in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_name_that_nobody_knows_is_refused_when_it_is_scheduled(tmp_path):
    done = alexnet(*ADD, "--every", "6h", "--dataset", "cifar1o", cwd=tmp_path, code=1)
    assert "Did you mean `cifar10`?" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_questions_about_nothing_have_answers(tmp_path):
    assert told("schedule", "list", cwd=tmp_path) == {"schedules": []}
    assert told("schedule", "history", cwd=tmp_path) == {"scheduled_runs": []}
    assert "`alexnet schedule add --every 6h`" in alexnet("schedule", "list", cwd=tmp_path).stdout
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_keeps_what_was_meant_when_it_was_made(photos, monkeypatch):
    monkeypatch.chdir(photos)
    monkeypatch.setenv("ALEXNET_TRAIN__EPOCHS", "7")
    (photos / "mine.yaml").write_text("train: {global_batch_size: 64}\n")
    settings = {
        "data.dataset": "photos",
        "retrain.triggers": "age,drift",
        "data.renamed_classes": "ox=cow",
        "model.image_size": 32,
        "data.short_side": 32,
    }
    made = api.add_schedule(
        "nightly", every="1d", workspace=Workspace(recipe="mine.yaml", settings=settings)
    )
    arguments = dict(zip(made.arguments[1::2], made.arguments[1::2], strict=True))
    assert made.arguments[:2] == ("--recipe", str(photos / "mine.yaml"))
    assert {
        f"data.dataset={photos / 'photos'}",
        "train.epochs=7",
        "retrain.triggers=age,drift",
        "data.renamed_classes=ox=cow",
    } <= set(arguments)
    assert not any(word.startswith("train.global_batch_size") for word in arguments)
    monkeypatch.setenv("ALEXNET_TRAIN__EPOCHS", "9")
    assert read_retrain_settings(made).triggers == ("age", "drift")
    recipe, given = read_arguments(made.arguments)
    again = resolve(recipe, given, environment={}).config
    assert (again.train.epochs, again.train.global_batch_size, again.data.renamed_classes) == (
        7,
        64,
        {"ox": "cow"},
    )


def test_a_schedule_that_is_there_keeps_its_settings_where_none_are_given(photos, monkeypatch):
    monkeypatch.chdir(photos)
    made = api.add_schedule(
        every="6h", workspace=Workspace(settings={"data.dataset": "photos", "train.epochs": 3})
    )
    (photos / "mlruns" / "current.json").write_text(
        json.dumps({"recipe": "digits", "stages": {}, "last": {}})
    )
    again = api.add_schedule(every="12h")
    assert again.arguments == made.arguments
    assert again.timing.every_seconds == 12 * 3600


def test_paths_mean_the_same_from_another_folder_wherever_they_came_from(photos, monkeypatch):
    monkeypatch.chdir(photos)
    (photos / "mine.yaml").write_text("data: {dataset: photos}\n")
    wanted = f"data.dataset={photos / 'photos'}"
    assert (
        wanted
        in api.add_schedule("recipe", every="6h", workspace=Workspace(recipe="mine.yaml")).arguments
    )
    monkeypatch.setenv("ALEXNET_DATA__DATASET", "photos")
    assert wanted in api.add_schedule("environment", every="6h").arguments


def test_settings_that_no_command_line_can_say_are_refused_when_they_are_scheduled(photos):
    settings = {
        "data.dataset": str(photos / "photos"),
        "data.renamed_classes": {"ox": "cow, or bull"},
    }
    with pytest.raises(ConfigError, match="cannot be written on a command line"):
        api.add_schedule(every="6h", workspace=Workspace(photos / "mlruns", settings=settings))


def test_a_slot_of_another_engine_that_fails_says_why_and_the_hook_hears_of_it(photos):
    arguments = (
        *("schedule", "serve", "outer", "--once", "--dataset", "photos"),
        *("--set", "retrain.notify=cat > told.json"),
    )
    # Two images cannot be split, so ingest refuses them.
    done = alexnet(*arguments, cwd=photos, code=1)
    (failed,) = told("schedule", "history", "outer", cwd=photos)["scheduled_runs"]
    assert (failed["state"], failed["attempts"], failed["kind"]) == ("failed", 1, "scheduled")
    assert failed["why"] in done.stderr
    assert "Expected" in failed["why"]
    (photos / "photos").rename(photos / "elsewhere")
    alexnet(*arguments, cwd=photos, code=1)
    latest = told("schedule", "history", "outer", cwd=photos)["scheduled_runs"][0]
    assert (latest["state"], latest["notification"]) == ("failed", "sent")
    assert "There is no folder" in latest["why"]
    assert (
        json.loads((photos / "told.json").read_text())["scheduled_run"] == latest["scheduled_run"]
    )


def test_a_file_of_a_name_of_ours_in_the_folder_is_not_taken_for_the_program(photos):
    (photos / "pipeline.py").write_text("raise SystemExit('shadowed')")
    api.add_schedule(every="30d", workspace=workspace_of(photos))
    (photos / "photos").rename(photos / "elsewhere")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    }
    done = subprocess.run(
        [*PROGRAM[:1], "-P", "-m", "pipeline", "schedule", "now"],
        cwd=photos,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "shadowed" not in done.stderr
    assert "There is no folder" in done.stderr
    (output,) = photos.glob("mlruns/retrainings/main/*/output.log")
    assert "There is no folder" in output.read_text()  # the child was the program, too


def test_a_schedule_without_a_dataset_takes_what_the_last_command_used(photos, monkeypatch):
    monkeypatch.chdir(photos)
    (photos / "mlruns").mkdir()
    selected = {"data.dataset": str(photos / "photos"), "data.short_side": 40}
    current = {
        "recipe": "folder",
        "stages": {"ingest": {"directory": "x", "settings": selected}},
        "last": {},
    }
    (photos / "mlruns" / "current.json").write_text(json.dumps(current))
    arguments = api.add_schedule(
        every="1d", workspace=Workspace(settings={"model.image_size": 32})
    ).arguments
    assert arguments[:2] == ("--recipe", "folder")
    assert {
        f"data.dataset={photos / 'photos'}",
        "data.short_side=40",
        "model.image_size=32",
    } <= set(arguments)


def test_models_are_shown_while_only_the_images_are_prepared(photos, monkeypatch):
    """A dataset of small images does not refuse a question that has nothing to do with it."""
    monkeypatch.chdir(photos)
    (photos / "mlruns").mkdir()
    settings = {"data.dataset": str(photos / "photos"), "data.short_side": 32}
    current = {
        "recipe": "folder",
        "stages": {"ingest": {"directory": "x", "settings": settings}},
        "last": {},
    }
    (photos / "mlruns" / "current.json").write_text(json.dumps(current))
    with pytest.raises(ConfigError, match="There is no registry in mlruns"):
        api.list_models()


def test_names_of_schedules_are_completed(photos):
    for name in ("nightly", "weekly"):
        api.add_schedule(name, every="6h", workspace=workspace_of(photos))
    for arguments, word in (("alexnet schedule pause ", "3"), ("alexnet schedule show ", "3")):
        shown = alexnet(
            cwd=photos, _ALEXNET_COMPLETE="bash_complete", COMP_WORDS=arguments, COMP_CWORD=word
        ).stdout
        assert shown.split() == ["plain,nightly", "plain,weekly"]


def test_the_name_of_a_schedule_is_not_that_of_the_model(photos):
    alexnet(*ADD, "weekly", "--every", "6h", "--dataset", "photos", cwd=photos)
    alexnet(*ADD, "cats", "--every", "6h", "--dataset", "photos", "--name", "pets", cwd=photos)
    found = {row["name"]: row for row in told("schedule", "list", cwd=photos)["schedules"]}
    assert not any("release.name" in word for word in found["weekly"]["arguments"])
    assert "release.name=pets" in found["cats"]["arguments"]


def test_pause_resume_and_remove(photos):
    api.add_schedule("nightly", every="6h", workspace=workspace_of(photos))
    assert "is paused" in alexnet("schedule", "pause", "nightly", cwd=photos).stdout
    (row,) = told("schedule", "list", cwd=photos)["schedules"]
    assert (row["name"], row["timing"], row["state"], row["next_run_time"], row["last"]) == (
        "nightly",
        "every 6h",
        "paused",
        None,
        None,
    )
    alexnet("schedule", "resume", "nightly", cwd=photos)
    (row,) = told("schedule", "list", cwd=photos)["schedules"]
    run_time = datetime.fromisoformat(row["next_run_time"])
    assert (row["state"], run_time.hour % 6, run_time.minute) == ("on", 0, 0)
    alexnet("schedule", "remove", "nightly", cwd=photos)
    assert told("schedule", "list", cwd=photos) == {"schedules": []}


def test_once_with_nothing_due_ends_at_once(photos):
    alexnet(*ADD, "--cron", "0 3 1 1 *", "--dataset", "photos", cwd=photos)
    arguments = ("schedule", "serve", "--once")
    assert "Nothing is due." in alexnet(*arguments, cwd=photos).stderr
    assert told("schedule", "history", cwd=photos) == {"scheduled_runs": []}


def test_the_scheduler_ends_by_sigterm_and_another_is_refused(photos):
    alexnet(*ADD, "--every", "30d", "--dataset", "photos", cwd=photos)
    arguments = ("schedule", "serve")
    with subprocess.Popen(
        [*PROGRAM, *arguments], cwd=photos, stderr=subprocess.PIPE, text=True
    ) as first:
        try:
            while "Scheduling in" not in (line := first.stderr.readline()):
                assert line, first.wait()
            refused = alexnet("schedule", "serve", cwd=photos, code=75)
            assert f"process {first.pid}" in refused.stderr
            alexnet(*ADD, "second", "--every", "1d", "--dataset", "photos", cwd=photos)
            assert [row["name"] for row in told("schedule", "list", cwd=photos)["schedules"]] == [
                "main",
                "second",
            ]
        finally:
            first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=30) == 0


def test_now_waits_for_nobody_where_it_is_interrupted(photos):
    api.add_schedule(every="30d", workspace=workspace_of(photos))
    ledger = Ledger(photos / "mlruns" / "schedule.db")
    scheduled_run = ledger.claim_scheduled_run(
        identify_this_process(), ledger.request_scheduled_run("main")
    )  # this process is at work on one
    with subprocess.Popen(
        [*PROGRAM, "schedule", "now"],
        cwd=photos,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as asked:
        until = time.monotonic() + 30
        while len(ledger.list_unfinished_scheduled_runs()) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        asked.send_signal(signal.SIGINT)
        shown = asked.communicate(timeout=30)[1]
    assert asked.returncode == 130
    assert "goes on from here" in shown
    assert [found.kind for found in ledger.list_unfinished_scheduled_runs()] == ["manual", "manual"]
    assert ledger.list_unfinished_scheduled_runs()[0].key == scheduled_run.key


@pytest.mark.parametrize("kind", ["systemd", "crontab", "kubernetes", "airflow", "prefect"])
def test_emit_writes_what_an_engine_needs(photos, kind):
    api.add_schedule(cron="0 3 * * 1", workspace=workspace_of(photos))
    arguments = ("schedule", "emit", kind)
    shown = alexnet(*arguments, cwd=photos).stdout
    assert "schedule" in shown
    assert "--once" in shown
    written = alexnet(*arguments, "--output", "units", cwd=photos).stdout.split()
    assert written
    assert all((photos / name).is_file() for name in written)


def test_what_the_recipe_says_is_not_said_again(photos, monkeypatch):
    """After a command, all of its settings are known; a line of cron has room for those that
    matter."""
    monkeypatch.chdir(photos)
    (photos / "mlruns").mkdir()
    known = resolve(
        "folder", {"data.dataset": str(photos / "photos"), "train.epochs": 3}, environment={}
    ).flat()
    stages = {
        stage: {
            "directory": "x",
            "settings": {
                key: value for key, value in known.items() if key.startswith(f"{section}.")
            },
        }
        for stage, section in (
            ("ingest", "data"),
            ("build", "model"),
            ("train", "train"),
            ("evaluate", "evaluate"),
            ("promote", "release"),
        )
    }
    (photos / "mlruns" / "current.json").write_text(
        json.dumps({"recipe": "folder", "stages": stages, "last": {}})
    )
    arguments = api.add_schedule(every="1d").arguments
    assert arguments == (
        "--recipe",
        "folder",
        "--set",
        f"data.dataset={photos / 'photos'}",
        "--set",
        "train.epochs=3",
    )
    (line,) = api.emit_schedule("crontab").values()
    assert "train.epochs=3" in line
