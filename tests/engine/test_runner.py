"""What runs, what is skipped and why, and what is left behind when something stops a stage.

Three tiny stages stand for the real ones: each writes one small file, and the second's record
depends on less than its input, so that an early cut-off can be seen.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.artifacts import Artifact
from pipeline.config.data import DataConfig
from pipeline.config.model import ModelConfig
from pipeline.config.recipes import flatten
from pipeline.config.resolution import resolve
from pipeline.config.retrain import RetrainConfig
from pipeline.config.settings import Config
from pipeline.config.train import TrainConfig
from pipeline.engine import results
from pipeline.engine.fingerprint import code_parts, parse_source
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Context, stage
from pipeline.engine.workdir import work_directory
from pipeline.errors import BusyError, CheckpointError, ConfigError, MissingInputError, Terminated
from pipeline.files import write_text

ROOT = Path(__file__).parents[2]


class Words(Artifact):
    letters: int

    def promised_files(self) -> tuple[Path, ...]:
        return (self.directory / "words.txt",)


class Shape(Artifact):
    area: int


class Score(Artifact):
    points: int


@dataclass
class Fake:
    """Tracker, stage run and observer in one: writes down what it is told."""

    key: str = "key"
    told: list[tuple[Any, ...]] = field(default_factory=list)
    earlier: dict[str, str] = field(default_factory=dict)
    outcomes: list[Any] = field(default_factory=list)
    own_tags: dict[str, str] = field(default_factory=dict)

    def log_files(self, directory):
        self.told.append(("files", "pipeline", directory))

    def start_stage_run(self, name, section, resolved, earlier=""):
        self.told.append(("stage", name))
        self.earlier[name] = earlier
        return SimpleNamespace(
            key=f"run of {name}",
            set_tags=lambda *_, **__: None,
            log_metrics=lambda *_, **__: None,
            log_dataset=lambda *_, **__: None,
            log_model=lambda *_, **__: None,
            log_files=lambda directory: self.told.append(("files", name, directory)),
            close=lambda status, message="": self.told.append(("close", name, status, message)),
        )

    def link_skipped_stage(self, name, run_key):
        self.told.append(("link", name, run_key))

    def close(self, status):
        self.told.append(("close", status))

    def started(self, name, why):
        self.told.append(("started", name, tuple(why)))

    def progressed(self, *_):
        pass

    def notified(self, text):
        self.told.append(("said", text))

    def waiting(self, what):
        pass

    def finished(self, outcome):
        self.outcomes.append(outcome)


class House:
    """A work directory with three stages, whose behavior a test may change."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.outside = {"file": "1"}
        self.before_train = lambda context: None
        self.prepared = 0
        house = self

        @stage(source=lambda config: house.outside)
        def ingest(config: DataConfig, context: Context) -> Words:
            """Collect words."""
            (context.directory / "words.txt").write_text(config.dataset)
            return Words(directory=context.directory, letters=len(config.dataset))

        @stage()
        def build(config: ModelConfig, words: Words, context: Context) -> Shape:
            """Measure them."""
            (context.report_directory / "shape.txt").write_text("square")
            return Shape(directory=context.directory, area=words.letters * config.image_size)

        @stage(resumable=True)
        def train(config: TrainConfig, words: Words, shape: Shape, context: Context) -> Score:
            """Keep count, carrying on from `steps.txt`."""
            house.before_train(context)
            return Score(
                directory=context.directory, points=shape.area + words.letters + config.epochs
            )

        self.stages = (ingest, build, train)

    def runner(self, observer=None) -> Runner:
        return Runner(self.stages, self.workdir, observer or Fake(), prepare=self._prepare)

    def _prepare(self):
        self.prepared += 1

    def run(self, names="ingest build train", rerun=(), **settings):
        """Run stages and return {stage: state}, {stage: why} and what was told."""
        fake = Fake()
        list(self.runner(fake).run(resolved(**settings), names.split(), fake, rerun))
        return (
            {item.stage: item.state for item in fake.outcomes},
            {item.stage: item.why for item in fake.outcomes},
            fake,
        )

    def states(self, **settings) -> dict[str, str]:
        return {
            finding.stage: finding.state
            for finding in self.runner().inspect_stages(resolved(**settings).config)
        }

    def folders(self) -> list[str]:
        return sorted(path.name for path in (self.workdir / "stages").iterdir())


def resolved(**settings):
    """Return the defaults with some settings changed, whatever the recipe says."""
    changed = {key.replace("__", "."): value for key, value in settings.items()}
    return resolve(
        recipe="digits", overrides=flatten(Config().model_dump()) | changed, environment={}
    )


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


RAN = {"ingest": "ran", "build": "ran", "train": "ran"}
SKIPPED = {"ingest": "skipped", "build": "skipped", "train": "skipped"}


class TestWiring:
    def test_annotations_are_the_wiring_and_the_docstring_the_help(self, house):
        ingest, build, train = house.stages
        assert (ingest.name, ingest.section, ingest.inputs, ingest.output) == (
            "ingest",
            "data",
            {},
            Words,
        )
        assert (build.section, build.inputs, build.output, build.help) == (
            "model",
            {"words": Words},
            Shape,
            "Measure them.",
        )
        assert (train.inputs, train.resumable, build.resumable) == (
            {"words": Words, "shape": Shape},
            True,
            False,
        )


class TestSkipping:
    def test_the_first_run_runs_all_and_the_second_none(self, house):
        states, why, _ = house.run()
        assert states == RAN
        assert set(why.values()) == {("no earlier result",)}
        folders = house.folders()
        assert [name.partition("-")[0] for name in folders] == ["build", "ingest", "train"]
        assert house.run()[0] == SKIPPED
        assert house.folders() == folders

    def test_a_record_holds_what_the_stages_computed(self, house):
        _, _, fake = house.run(data__dataset="abc", model__image_size=16, train__epochs=5)
        assert [item.artifact.model_dump() for item in fake.outcomes] == [
            {"letters": 3},
            {"area": 48},
            {"points": 56},
        ]

    def test_a_setting_reruns_its_stage_and_those_below_it(self, house):
        house.run()
        states, why, _ = house.run(model__image_size=16)
        assert states == {"ingest": "skipped", "build": "ran", "train": "ran"}
        assert why["build"] == ("setting model.image_size 32 -> 16",)
        assert why["train"] == ("input build changed",)

    def test_the_last_stages_setting_reruns_it_alone(self, house):
        house.run()
        states, why, _ = house.run(train__epochs=5)
        assert states == {"ingest": "skipped", "build": "skipped", "train": "ran"}
        assert why["train"] == ("setting train.epochs 30 -> 5",)

    def test_an_upstream_stage_that_makes_the_same_record_reruns_nothing_else(self, house):
        house.run(data__dataset="abc")
        states, why, _ = house.run(data__dataset="xyz")
        assert states == {"ingest": "ran", "build": "skipped", "train": "skipped"}
        assert why["ingest"] == ("setting data.dataset abc -> xyz",)

    def test_going_back_to_earlier_settings_finds_their_results(self, house):
        house.run()
        house.run(train__epochs=5)
        assert house.run()[0] == SKIPPED

    def test_a_change_outside_reruns_the_stage_that_looks_there(self, house):
        house.run()
        house.outside = {"file": "2", "other": "1"}
        states, why, _ = house.run()
        assert states == {"ingest": "ran", "build": "skipped", "train": "skipped"}
        assert why["ingest"] == ("source file changed", "source other is new")

    def test_what_is_gone_outside_counts_as_it_was(self, house):
        house.run()
        house.outside = {"file": None}
        assert house.states() == dict.fromkeys(house.states(), "done")
        assert house.run()[0] == SKIPPED
        assert house.run(data__dataset="abc")[1]["ingest"][-1] == "source file changed"

    def test_another_section_changes_nothing(self, house):
        house.run()
        assert house.run(evaluate__split="validation", tracking__enabled=False)[0] == SKIPPED

    @pytest.mark.parametrize(("forced", "ran"), [("ingest", {"ingest"}), ("train", {"train"})])
    def test_rerun_forces_one_stage(self, house, forced, ran):
        house.run()
        folders = house.folders()
        states, why, _ = house.run(rerun=[forced])
        assert {name for name, state in states.items() if state == "ran"} == ran
        assert why[forced] == ("asked for by --rerun",)
        assert house.folders() == folders

    def test_heavy_libraries_are_prepared_once_and_only_when_a_stage_runs(self, house):
        house.run()
        assert house.prepared == 1
        house.run()
        assert house.prepared == 1


class TestDamage:
    def test_a_lost_file_reruns_its_stage(self, house):
        house.run()
        (words,) = house.workdir.glob("stages/ingest-*/words.txt")
        words.unlink()
        states, why, _ = house.run()
        assert states == {"ingest": "ran", "build": "skipped", "train": "skipped"}
        assert why["ingest"] == ("its result is gone or damaged",)
        assert words.exists()

    @pytest.mark.parametrize("text", ["", "{", '{"area": "wide"}', '{"area": 1, "more": 2}'])
    def test_a_damaged_record_reruns_its_stage(self, house, text):
        house.run()
        (record,) = house.workdir.glob("stages/build-*/artifact.json")
        record.write_text(text)
        assert house.run()[0] == {"ingest": "skipped", "build": "ran", "train": "skipped"}

    def test_an_empty_folder_is_no_proof(self, house):
        house.run()
        (folder,) = house.workdir.glob("stages/train-*")
        for path in folder.iterdir():
            path.unlink()
        assert house.run()[0] == {"ingest": "skipped", "build": "skipped", "train": "ran"}

    @pytest.mark.parametrize("text", ["", "[", "{}", "[1]", "null"])
    def test_a_damaged_current_file_loses_no_result(self, house, text):
        house.run()
        (house.workdir / "current.json").write_text(text)
        assert house.run()[0] == SKIPPED


class TestOneStageAlone:
    def test_it_uses_the_results_of_the_ones_before(self, house):
        house.run()
        assert house.run("train", train__epochs=5)[0] == {"train": "ran"}

    def test_it_says_what_to_type_when_they_are_not_there(self, house):
        with pytest.raises(
            MissingInputError,
            match=r"ingest has no result for these settings \(no earlier result\)",
        ) as caught:
            house.run("train")
        assert "Type `alexnet ingest` first" in str(caught.value)

    def test_it_says_which_setting_is_in_the_way(self, house):
        house.run()
        with pytest.raises(
            MissingInputError, match=r"build has no result .*setting model\.seed 0 -> 1"
        ):
            house.run("train", model__seed=1)

    def test_a_missing_input_runs_nothing_and_fails_the_run(self, house):
        fake = Fake()
        with pytest.raises(MissingInputError):
            list(house.runner(fake).run(resolved(), ["build"], fake))
        assert fake.told == [("close", "FAILED")]
        assert not (house.workdir / "stages").exists()

    def test_it_can_take_the_settings_of_the_last_command(self, house):
        house.run(data__dataset="abc", model__seed=3, train__epochs=5)
        recipe, settings = house.runner().selection.recall_settings(["train"])
        assert recipe == "digits"
        assert (settings["data.dataset"], settings["model.seed"]) == ("abc", 3)
        assert not any(key.startswith("train.") for key in settings)

    def test_the_first_stage_remembers_nothing(self, house):
        house.run(data__dataset="abc")
        assert house.runner().selection.recall_settings(["ingest", "build"]) == (None, {})

    def test_nothing_is_remembered_from_below_a_stage_that_made_something_else(self, house):
        house.run(model__seed=3)
        house.run("ingest", data__dataset="abcd")
        assert "build" not in house.runner().selection.read()["stages"]


class TestStopping:
    """A stage that is stopped never looks finished, and the same command goes on."""

    def stop(self, house, error):
        def raise_it(context):
            raise error

        house.before_train = raise_it
        fake = Fake()
        with pytest.raises(type(error)):
            list(house.runner(fake).run(resolved(), ["ingest", "build", "train"], fake))
        house.before_train = lambda context: None
        return fake

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (ValueError("wrong"), "FAILED"),
            (SystemExit(3), "FAILED"),
            (KeyboardInterrupt(), "KILLED"),
            (Terminated(), "KILLED"),
        ],
    )
    def test_the_tracker_is_told_the_truth(self, house, error, status):
        fake = self.stop(house, error)
        assert fake.told[-2][:3] == ("close", "train", status)
        assert type(error).__name__ in fake.told[-2][3]
        assert fake.told[-1] == ("close", status)
        assert fake.outcomes[-1].state == "failed"

    def test_there_is_no_finished_folder_and_the_next_run_goes_on(self, house):
        self.stop(house, ValueError("wrong"))
        (left,) = house.workdir.glob("stages/train-*")
        assert left.name.endswith(".partial")
        assert not (left / "artifact.json").exists()
        assert house.run()[0] == {"ingest": "skipped", "build": "skipped", "train": "ran"}
        assert [path.name for path in house.workdir.glob("stages/train-*")] == [
            left.name.removesuffix(".partial")
        ]

    def test_a_resumable_stage_finds_its_files(self, house):
        def leave_a_file(context):
            (context.directory / "steps.txt").write_text("7")
            raise KeyboardInterrupt

        found = []
        house.before_train = leave_a_file
        with pytest.raises(KeyboardInterrupt):
            house.run()
        house.before_train = lambda context: found.append(
            (context.directory / "steps.txt").read_text()
        )
        told = house.run()[2]
        assert found == ["7"]
        assert told.earlier["train"] == "run of train"  # the same run goes on
        assert house.run(rerun=["build"])[2].earlier == {"build": ""}
        assert list(house.workdir.glob("stages/*/attempt.json")) == []

    def test_a_setting_without_effect_is_no_reason_to_run_again(self, house):
        house.run()
        assert house.run(train__checkpoint_seconds=99)[0]["train"] == "skipped"
        assert house.run(train__epochs=99)[0]["train"] == "ran"

    def test_any_other_stage_starts_afresh(self, house):
        house.run()
        (folder,) = house.workdir.glob("stages/build-*")
        partial = folder.with_name(folder.name + ".partial")
        folder.rename(partial)
        (partial / "artifact.json").unlink()
        (partial / "rubbish").write_text("left over")
        house.run()
        assert not (folder / "rubbish").exists()

    def test_a_failed_rerun_keeps_the_earlier_result(self, house):
        house.run()
        house.before_train = lambda context: 1 / 0
        with pytest.raises(ZeroDivisionError):
            house.run(rerun=["train"])
        assert house.run()[0] == SKIPPED


class TestTelling:
    def test_a_run_that_executes(self, house):
        _, _, fake = house.run("ingest")
        (folder,) = house.workdir.glob("stages/ingest-*")
        assert fake.told == [
            ("started", "ingest", ("no earlier result",)),
            ("stage", "ingest"),
            ("files", "ingest", folder / "report"),
            ("close", "ingest", "FINISHED", ""),
            ("close", "FINISHED"),
        ]

    def test_a_run_that_skips_links_to_the_run_that_did_the_work(self, house):
        house.run()
        _, _, fake = house.run()
        assert fake.told == [
            *(("link", name, f"run of {name}") for name in RAN),
            ("close", "FINISHED"),
        ]

    def test_leaving_the_iteration_is_not_a_success(self, house):
        fake = Fake()
        outcomes = house.runner(fake).run(resolved(), ["ingest", "build"], fake)
        assert next(outcomes).stage == "ingest"
        outcomes.close()
        assert fake.told[-1] == ("close", "KILLED")


class TestLooking:
    def test_nothing_yet(self, house):
        assert house.states() == {"ingest": "missing", "build": "waiting", "train": "waiting"}
        assert not (house.workdir / "stages").exists()

    def test_all_done(self, house):
        house.run()
        findings = house.runner().inspect_stages(resolved().config)
        assert [finding.state for finding in findings] == ["done", "done", "done"]
        assert [finding.run_key for finding in findings] == [
            "run of ingest",
            "run of build",
            "run of train",
        ]
        assert all(finding.directory.is_dir() for finding in findings)

    def test_stale(self, house):
        house.run()
        assert house.states(model__image_size=16) == {
            "ingest": "done",
            "build": "stale",
            "train": "waiting",
        }
        findings = house.runner().inspect_stages(resolved(model__image_size=16).config)
        assert findings[1].why == ("setting model.image_size 32 -> 16",)
        assert findings[2].why == ("build comes first",)

    def test_interrupted(self, house):
        house.before_train = lambda context: 1 / 0
        with pytest.raises(ZeroDivisionError):
            house.run()
        assert house.states() == {"ingest": "done", "build": "done", "train": "interrupted"}

    def test_looking_changes_nothing(self, house):
        house.run()
        before = (house.workdir / "current.json").read_bytes(), house.folders()
        house.states(train__epochs=5)
        assert ((house.workdir / "current.json").read_bytes(), house.folders()) == before


class TestCode:
    """A stage's code counts; what is said about it does not."""

    SOURCE = 'import json\n\n\ndef double(x):\n    """Double it."""\n    return 2 * x  # twice\n'

    def digest(self, folder: Path, name: str, text: str) -> str:
        path = folder / f"{name}.py"
        path.write_text(text)
        return parse_source(path)[0]

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("# twice", "# two times"),
            ('    """Double it."""\n', ""),
            ('"""Double it."""', "'''Twice as much.\n\n    Or more.'''"),
            ("\n\n\ndef", "\n\ndef"),
            ("import json", '"""A module."""\nimport json'),
        ],
    )
    def test_comments_docstrings_and_layout_do_not_count(self, tmp_path, before, after):
        changed = self.SOURCE.replace(before, after)
        assert changed != self.SOURCE
        assert self.digest(tmp_path, "one", self.SOURCE) == self.digest(tmp_path, "two", changed)

    @pytest.mark.parametrize(
        ("before", "after"),
        [("2 * x", "3 * x"), ("import json", "import math"), ("(x)", "(x=1)"), ("double", "twice")],
    )
    def test_code_counts(self, tmp_path, before, after):
        assert self.digest(tmp_path, "one", self.SOURCE) != self.digest(
            tmp_path, "two", self.SOURCE.replace(before, after)
        )

    def test_a_text_that_is_no_docstring_counts(self, tmp_path):
        text = 'NAME = "a"\n'
        assert self.digest(tmp_path, "one", text) != self.digest(
            tmp_path, "two", text.replace('"a"', '"b"')
        )

    def test_imports_are_found_wherever_they_stand(self, tmp_path):
        path = tmp_path / "imports.py"
        path.write_text("import a.b\nfrom c import d\n\ndef f():\n    from e.f import g\n")
        assert parse_source(path)[1] == {"a.b", "c", "c.d", "e.f", "e.f.g"}

    def test_a_stage_depends_on_what_its_module_imports_but_not_on_the_frame(self):
        parts = code_parts("pipeline.model.alexnet")
        assert {
            "code pipeline.model.alexnet",
            "code pipeline.model.alexnet_rows",
            "code pipeline.model.layers",
        } <= parts.keys()
        assert (
            not {
                "code pipeline.engine.runner",
                "code pipeline.config",
                "code pipeline.artifacts",
                "code pipeline.errors",
            }
            & parts.keys()
        )
        assert {"package tensorflow", "package keras", "package numpy"} <= parts.keys()


HOLD = """
import sys
from pathlib import Path
from pipeline.engine.workdir import work_directory
with work_directory(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


class TestWorkDirectory:
    @pytest.fixture
    def holder(self, tmp_path):
        """A real process that holds the work directory until its input ends."""
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "work")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.communicate()

    def test_the_second_process_is_told_who_holds_it(self, holder, tmp_path):
        with (
            pytest.raises(BusyError, match=rf"process {holder.pid} on ") as caught,
            work_directory(tmp_path / "work"),
        ):
            pass
        assert caught.value.exit_code == 75
        assert "--wait" in str(caught.value)

    def test_being_refused_leaves_the_owner_in_place(self, holder, tmp_path):
        with pytest.raises(BusyError), work_directory(tmp_path / "work"):
            pass
        assert json.loads((tmp_path / "work" / "owner.json").read_text())["pid"] == holder.pid

    def test_waiting_ends_when_the_owner_does(self, holder, tmp_path):
        waiter = subprocess.Popen(
            [
                sys.executable,
                "-c",
                HOLD.replace("sys.argv[1])", "sys.argv[1]), wait=True"),
                str(tmp_path / "work"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                waiter.wait(timeout=1.0)
            holder.communicate("\n")
            assert waiter.stdout.readline() == "held\n"
        finally:
            waiter.communicate("\n", timeout=30)

    def test_a_killed_owner_holds_nothing(self, holder, tmp_path):
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with work_directory(tmp_path / "work"):
            assert json.loads((tmp_path / "work" / "owner.json").read_text())["pid"] == os.getpid()

    def test_it_is_made_and_given_back(self, tmp_path):
        with work_directory(tmp_path / "a" / "b") as path:
            assert path.is_dir()
        assert not (path / "owner.json").exists()
        with work_directory(path):
            pass

    @pytest.mark.parametrize("below", ["", "work", "deep/work"])
    def test_a_file_in_the_way(self, tmp_path, below):
        (tmp_path / "file").write_text("mine")
        with (
            pytest.raises(
                ConfigError, match=r"cannot be written \((Not a directory|File exists)\)"
            ) as caught,
            work_directory(tmp_path / "file" / below),
        ):
            pass
        assert "--workdir" in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_text() == "mine"


class TestWritingAtomically:
    def test_it_replaces_and_leaves_nothing_else(self, tmp_path):
        path = tmp_path / "file.json"
        for text in ("one", "zwei ü"):
            write_text(path, text)
            assert path.read_text(encoding="utf-8") == text
        assert [item.name for item in tmp_path.iterdir()] == ["file.json"]


def test_a_stage_that_always_runs_is_never_skipped(house):
    ingest, build, train = house.stages
    house.stages = (ingest, build, replace(train, always=True))
    assert house.run()[0] == {"ingest": "ran", "build": "ran", "train": "ran"}
    states, why, _ = house.run()
    assert states == {"ingest": "skipped", "build": "skipped", "train": "ran"}
    assert why["train"] == ("it is never skipped",)
    assert house.run("ingest build")[0] == {
        "ingest": "skipped",
        "build": "skipped",
    }  # not named, so not run


def test_nothing_runs_after_a_record_that_says_it_is_the_last(house, monkeypatch):
    monkeypatch.setattr(Shape, "ends_chain", property(lambda record: record.area < 1000))
    states, _, fake = house.run(**{"data.dataset": "digits"})
    assert list(states) == ["ingest", "build"]
    assert fake.told[-1] == ("close", "FINISHED")
    states, _, _ = house.run(**{"data.dataset": "digits " * 10})
    assert list(states) == ["ingest", "build", "train"]


def test_what_concludes_a_run_sees_every_record_and_is_logged_before_the_end(house, tmp_path):
    fake, seen = Fake(), {}

    def conclude(records):
        seen.update(records)
        return tmp_path / "page"

    list(house.runner(fake).run(resolved(), ["ingest", "build"], fake, conclude=conclude))
    assert {name: type(record) for name, record in seen.items()} == {
        "ingest": Words,
        "build": Shape,
    }
    assert fake.told[-2:] == [("files", "pipeline", tmp_path / "page"), ("close", "FINISHED")]


def test_a_run_whose_conclusion_fails_has_failed(house):
    fake = Fake()
    with pytest.raises(OSError, match="no room"):
        list(
            house.runner(fake).run(
                resolved(),
                ["ingest"],
                fake,
                conclude=lambda _: (_ for _ in ()).throw(OSError("no room")),
            )
        )
    assert fake.told[-1] == ("close", "FAILED")


def test_a_stage_is_told_the_tags_of_the_run_and_all_settings(tmp_path):
    seen = []

    @stage(always=True)
    def ingest(config: DataConfig, context: Context) -> Score:
        seen.append((dict(context.tags), context.config.train.epochs))
        return Score(directory=context.directory, points=1)

    fake = Fake(own_tags={"slot": "main/1"})
    list(
        Runner([ingest], tmp_path / "w", fake).run(
            resolved(**{"train.epochs": 7}), ["ingest"], fake
        )
    )
    assert seen == [({"slot": "main/1"}, 7)]


def test_settings_that_are_lists_are_the_same_when_they_are_read_again(tmp_path):
    @stage()
    def look(config: RetrainConfig, context: Context) -> Score:
        return Score(directory=context.directory, points=1)

    for triggers in (("age",), ("age",), ("drift",)):
        fake = Fake()
        list(
            Runner([look], tmp_path / "w", fake).run(
                resolved(**{"retrain.triggers": triggers}), ["look"], fake
            )
        )
    (why,) = [item.why for item in fake.outcomes]
    assert why == ("setting retrain.triggers ['age'] -> ['drift']",)


def test_a_stage_that_nothing_is_made_from_leaves_the_others_selected(house):
    looks = iter(range(9))

    @stage(always=True, source=lambda _: {"look": str(next(looks))})
    def look(config: RetrainConfig, words: Words, context: Context) -> Artifact:
        return Artifact(directory=context.directory)

    house.run()
    before = house.runner().selection.read()["stages"]
    fake = Fake()
    list(
        Runner([house.stages[0], look, *house.stages[1:]], house.workdir, fake).run(
            resolved(), ["ingest", "look"], fake
        )
    )
    after = house.runner().selection.read()["stages"]
    assert {name: after[name] for name in before} == before
    assert "look" in after
    house.run("build", **{"model.image_size": 24})
    assert set(house.runner().selection.read()["stages"]) >= {"ingest", "build"}
    assert "train" not in house.runner().selection.read()["stages"]


def test_only_what_uses_a_library_is_stale_with_another_version(house, monkeypatch):
    @stage(chosen_packages=lambda config, shape: ["scipy"] if config.epochs > shape.area else [])
    def train(config: TrainConfig, shape: Shape, context: Context) -> Score:
        return Score(directory=context.directory, points=1)

    house.stages = (*house.stages[:2], train)
    records = {"build": Shape(area=5)}
    version = importlib.metadata.version
    found = []
    for other in (version, lambda name: "99" if name == "scipy" else version(name)):
        monkeypatch.setattr("pipeline.engine.fingerprint.metadata.version", other)
        for epochs in (4, 6):
            config = resolved(**{"train.epochs": epochs}).config
            found.append(house.runner().fingerprint(train, config, records))
    assert found[0].digest == found[2].digest
    assert found[3].differences(found[1].parts) == (f"package scipy {version('scipy')} -> 99",)


# -- code that changed, and pages that are drawn again ---------------------------------------------


def change_code(monkeypatch):
    """Give every stage's module another digest, as an edit between two commands does."""
    from pipeline.engine import runner

    real = runner.code_parts
    monkeypatch.setattr(
        runner,
        "code_parts",
        lambda *arguments: real(*arguments) | {"code pipeline.data.splits": "another digest"},
    )


class TestAccepting:
    def test_a_result_is_kept_with_a_note_of_the_code_that_changed(self, house, monkeypatch):
        house.run()
        before = house.folders()
        change_code(monkeypatch)
        assert set(house.states().values()) == {"stale", "waiting"}
        accepted = house.runner().accept_stages(resolved(), ["ingest", "build", "train"])
        assert [name for name, _ in accepted] == ["ingest", "build", "train"]
        assert {changes for _, changes in accepted} == {("code pipeline.data.splits is new",)}
        assert set(house.states().values()) == {"done"}
        assert house.run()[0] == SKIPPED
        assert set(before) < set(house.folders())  # what is kept is there under both names
        for finding in house.runner().inspect_stages(resolved().config):
            ((note,),) = (finding.accepted,)
            assert note["changes"]
            assert note["when"].startswith("20")

    def test_accept_code_runs_nothing(self, house, monkeypatch):
        house.run()
        change_code(monkeypatch)
        fake = Fake()
        names = ["ingest", "build", "train"]
        list(house.runner(fake).run(resolved(), names, fake, accept_code=True))
        assert {item.stage: item.state for item in fake.outcomes} == SKIPPED
        assert "kept although code changed" in str(fake.told)

    def test_a_changed_setting_is_not_accepted(self, house, monkeypatch):
        house.run()
        change_code(monkeypatch)
        with pytest.raises(ConfigError, match=r"train cannot be accepted.*train.epochs 30 -> 2"):
            house.runner().accept_stages(resolved(train__epochs=2), ["ingest", "build", "train"])
        # Without names, what can be is.
        assert house.runner().accept_stages(resolved(train__epochs=2)) == []
        fake = Fake()
        names = ["ingest", "build", "train"]
        list(house.runner(fake).run(resolved(train__epochs=2), names, fake, accept_code=True))
        assert [item.state for item in fake.outcomes] == ["skipped", "skipped", "ran"]

    def test_nothing_earlier_is_nothing_to_accept(self, house):
        with pytest.raises(ConfigError, match="no earlier result"):
            house.runner().accept_stages(resolved(), ["ingest"])

    def test_a_stage_is_not_accepted_before_the_one_that_it_reads(self, house, monkeypatch):
        house.run()
        change_code(monkeypatch)
        with pytest.raises(ConfigError, match="train cannot be accepted before build and ingest"):
            house.runner().accept_stages(resolved(), ["train"])

    def test_what_exists_is_accepted_where_a_later_stage_was_never_made(self, house, monkeypatch):
        house.run("ingest build")
        change_code(monkeypatch)
        accepted = house.runner().accept_stages(resolved())
        assert [name for name, _ in accepted] == ["ingest", "build"]

    def test_an_accept_that_was_killed_is_never_taken_for_a_result(self, house, monkeypatch):
        """Killed after everything was copied but the record, which comes last."""
        house.run()
        change_code(monkeypatch)
        real = results.write_account

        def killed(folder, account):
            real(folder, account)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(results, "write_account", killed)
            with pytest.raises(KeyboardInterrupt):
                house.runner().accept_stages(resolved(), ["ingest"])
        assert house.states()["ingest"] == "interrupted"
        assert house.runner().accept_stages(resolved(), ["ingest"]) != []
        assert house.states()["ingest"] == "done"


class TestDrawing:
    def test_pages_are_drawn_by_the_run_and_again_later(self, house):
        drawn = []

        def draw(record, folder):
            drawn.append((record.area, record.directory.name))
            (folder / "page.html").write_text(f"drawn {len(drawn)} times")

        ingest, build, train = house.stages
        house.stages = (ingest, replace(build, draw=draw), train)
        house.run()
        (folder,) = (house.workdir / "stages").glob("build-*")
        assert (folder / "report" / "page.html").read_text() == "drawn 1 times"
        pages = house.runner().results.redraw(house.stages[1], folder)
        assert pages == folder / "report"
        assert (pages / "page.html").read_text() == "drawn 2 times"
        assert (pages / "shape.txt").read_text() == "square"  # what the stage itself wrote stays
        assert drawn[1][1] == folder.name
        assert house.run()[0] == SKIPPED

    def test_a_page_that_cannot_be_drawn_leaves_the_old_one(self, house):
        def draw(record, folder):
            (folder / "page.html").write_text("new")
            if record.directory.name.endswith("partial"):
                return
            raise CheckpointError("what it is drawn from is damaged")

        ingest, build, train = house.stages
        house.stages = (ingest, replace(build, draw=draw), train)
        house.run()
        (folder,) = (house.workdir / "stages").glob("build-*")
        (folder / "report" / "page.html").write_text("old")
        with pytest.raises(CheckpointError):
            house.runner().results.redraw(house.stages[1], folder)
        assert (folder / "report" / "page.html").read_text() == "old"
        assert house.states()["build"] == "done"

    def test_a_kill_between_two_renames_of_pages_loses_neither(self, house):
        ingest, build, train = house.stages
        house.stages = (ingest, replace(build, draw=lambda *_: None), train)
        house.run()
        (folder,) = (house.workdir / "stages").glob("build-*")
        (folder / "report").rename(folder / "report.old")
        house.run()
        assert (folder / "report" / "shape.txt").read_text() == "square"
        (folder / "report").rename(folder / "report.old")
        house.runner().results.redraw(house.stages[1], folder)
        assert (folder / "report" / "shape.txt").read_text() == "square"

    def test_a_record_of_another_version_is_one_sentence(self, house):
        ingest, build, train = house.stages
        house.stages = (ingest, replace(build, draw=lambda *_: None), train)
        house.run()
        (folder,) = (house.workdir / "stages").glob("build-*")
        (folder / "artifact.json").write_text('{"surface": 3}')
        with pytest.raises(ConfigError, match="no build that this version can read"):
            house.runner().results.redraw(house.stages[1], folder)
