"""docs/scaling.md, done: its commands are taken from the page and run, with a real PostgreSQL, a
real MLflow server and real processes."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.registry import Registry
from pipeline.tracking.store import connect_store

DOCS = Path(__file__).parents[1] / "docs"
PAGE, CLUSTER = (DOCS / "scaling.md").read_text(encoding="utf-8"), DOCS / "cluster"
PROGRAM = (sys.executable, "-m", "pipeline")
SMALL = (
    "--set",
    "evaluate.report=short",
    "--set",
    "release.margin=0.9",
    "--set",
    "release.max_calibration_error=1",
    "--set",
    "release.class_margin=1",
)
POSTGRES_USER = "postgres"  # Debian's package makes it; PostgreSQL refuses to run as root


def block(start):
    """The one block of commands of the page that starts with these arguments."""
    (found,) = (
        text
        for text in re.findall(r"^```\w*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
        if text.startswith(start)
    )
    return found


def table(head):
    """The rows of the one table of the page whose head begins so, as texts."""
    (found,) = (
        text
        for text in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
        if text.startswith(f"| {head}")
    )
    return [
        [cell.strip() for cell in row.strip("|\n ").split("|")] for row in found.splitlines()[2:]
    ]


def number(text):
    return float(text.replace(",", ""))


def free_port():
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return candidate.getsockname()[1]


def until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@contextlib.contextmanager
def session(command, log, environment):
    """A process with all its children, ended by its own number."""
    with (
        log.open("ab") as lines,
        subprocess.Popen(
            command, env=environment, stdout=lines, stderr=lines, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)


@pytest.fixture(scope="module")
def database():
    """PostgreSQL with the page's database in it, in a folder and at a port of its own: the
    environment in which its clients find it."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [
        Path(found) for found in [shutil.which("initdb")] if found
    ]
    if not programs:
        pytest.skip("PostgreSQL's initdb is not installed (Debian: postgresql)")
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed: pip install psycopg2-binary")
    user = (
        []
        if os.geteuid()
        else ["setpriv", f"--reuid={POSTGRES_USER}", f"--regid={POSTGRES_USER}", "--clear-groups"]
    )
    folder = Path(
        tempfile.mkdtemp(prefix="postgres-")
    )  # not pytest's folder: only root may look into that one, where root runs the tests
    try:
        if user:
            shutil.chown(folder, POSTGRES_USER, POSTGRES_USER)
        data, port = str(folder / "data"), str(free_port())
        environment = os.environ | {
            "PGHOST": "127.0.0.1",
            "PGPORT": port,
            "PGUSER": "owner",
            "PGDATABASE": "postgres",
        }
        make = [
            *user,
            str(programs[-1]),
            "-D",
            data,
            "-U",
            "owner",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]
        subprocess.run(make, check=True, cwd=folder, capture_output=True)
        serve = [
            *user,
            str(programs[-1].with_name("postgres")),
            "-D",
            data,
            "-p",
            port,
            "-k",
            str(folder),
            "-c",
            "listen_addresses=127.0.0.1",
        ]
        with session(serve, folder / "log", environment):
            ready = [str(programs[-1].with_name("pg_isready"))]
            until(
                lambda: (
                    subprocess.run(
                        ready, check=False, env=environment, capture_output=True
                    ).returncode
                    == 0
                ),
                30,
                "PostgreSQL does not start",
            )
            subprocess.run(
                ["bash", "-euc", block("createuser")], check=True, env=environment, timeout=60
            )
            yield environment
    finally:
        shutil.rmtree(folder)


class Server:
    """The page's MLflow server, at one port, started and killed as often as a test likes."""

    def __init__(self, folder, database):
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.artifacts = folder / "artifacts"
        self.log = folder / "server.log"
        self.environment = database | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DATABASE": f"127.0.0.1:{database['PGPORT']}",
            "ARTIFACTS": str(self.artifacts),
            "PORT": str(self.port),
        }

    @contextlib.contextmanager
    def running(self):
        with session(
            ["bash", "-euc", block("export MLFLOW_SERVER")], self.log, self.environment
        ) as process:
            until(
                lambda: self.answers() or process.poll() is not None,
                120,
                "the server does not start",
            )
            assert process.poll() is None, self.log.read_text()
            yield process

    def answers(self):
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=1),
        ):
            return True
        return False

    def config(self, experiment="alexnet"):
        return TrackingConfig(uri=self.uri, experiment=experiment)

    def runs(self, experiment):
        client = connect_store(self.config(experiment), Path())
        return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


@pytest.fixture(scope="module")
def server(database, tmp_path_factory):
    return Server(tmp_path_factory.mktemp("server"), database)


def start(server, cwd, *arguments, experiment="alexnet"):
    cwd.mkdir(parents=True, exist_ok=True)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    }
    arguments = (
        *arguments,
        "--set",
        f"tracking.uri={server.uri}",
        "--set",
        f"tracking.experiment={experiment}",
    )
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, code=0):
    with process:
        shown, problems = process.communicate(timeout=300)
    assert process.returncode == code, f"{process.args}: {process.returncode}\n{shown}\n{problems}"
    return shown


def last_line(shown):
    return json.loads(shown.splitlines()[-1])


def images(folder):
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir()
    for number, scan in enumerate(load_digits().images[:5]):
        Image.fromarray((scan * 15.9).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


# -- arithmetic and manifests ----------------------------------------------------------------------


def test_the_hours_and_days_of_imagenet_follow_from_the_rates():
    images = 90 * 1_281_167
    assert f"{images:,} images" in PAGE
    rows = table("rate of")
    assert len(rows) == 7
    for _, rate, hours, days, _ in rows:
        assert float(hours) == pytest.approx(images / number(rate) / 3600, abs=0.051)
        assert float(days) == pytest.approx(images / number(rate) / 86_400, abs=0.051)


def test_what_a_gpu_asks_of_storage_and_network_follows_from_sizes():
    for row, (size, two_cores) in zip(
        table("to feed 16,487"), ((110e3, 1_683), (256 * 256 * 3, 17_768)), strict=True
    ):
        assert int(row[1]) == round(16_487 / (two_cores / 2))
        assert float(row[2].split()[0]) == pytest.approx(16_487 * size / 1e9, abs=0.05)
    for row, gigabits in zip(table("two workers"), (1, 10, 100), strict=True):
        assert float(row[1]) == pytest.approx(60_965_224 * 4 * 8 / gigabits / 1e9, rel=0.03)
    for images, size in ((1_281_167, "251.9 GB"), (50_000, "9.8 GB")):
        assert f"{images * 256 * 256 * 3 / 1e9:.1f} GB" == size
        assert size in PAGE


@pytest.mark.parametrize("version", ["1.29.0", "1.34.0"])
def test_kubernetes_knows_every_field(version):
    validate = shutil.which("kubernetes-validate") or shutil.which(
        "kubernetes-validate", path=str(Path(sys.executable).parent)
    )
    if validate is None:
        pytest.skip("kubernetes-validate is not installed (PyPI)")
    arguments = [validate, "--strict", "-k", version, str(CLUSTER / "kubernetes.yaml")]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_slurm_script_has_no_fault_that_shellcheck_knows():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (Debian: shellcheck)")
    done = subprocess.run(
        ["shellcheck", str(CLUSTER / "slurm.sh")], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
def test_two_workers_run_all_stages_and_not_training_alone(tmp_path):
    arguments = [
        *PROGRAM,
        "run",
        "--workers",
        "2",
        "--epochs",
        "1",
        "--set",
        "evaluate.report=short",
    ]
    done = subprocess.run(
        arguments, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name.split("-")[0] for path in (tmp_path / "mlruns" / "stages").iterdir()} == {
        "ingest",
        "build",
        "train",
        "evaluate",
    }


# -- one tracking store for several machines -------------------------------------------------------


@pytest.mark.slow
def test_runs_are_in_postgresql_and_a_release_is_fetched_from_elsewhere(server, database, tmp_path):
    with server.running():
        decision = last_line(
            ended(
                start(server, tmp_path / "one", "--json", "run", "--epochs", "1", *SMALL, "promote")
            )
        )["decision"]
        assert (decision["outcome"], decision["version"]) == ("promoted", "1")
        found = {run.data.tags.get("stage", "pipeline"): run for run in server.runs("alexnet")}
        assert set(found) == {"pipeline", "ingest", "build", "train", "evaluate", "promote"}
        assert {run.info.status for run in found.values()} == {"FINISHED"}
        assert found["train"].info.artifact_uri.startswith("mlflow-artifacts:/")
        rows = subprocess.run(
            ["psql", "-AtU", "mlflow", "mlflow", "-c", "select count(*) from runs"],
            env=database,
            check=True,
            capture_output=True,
            text=True,
        )
        assert int(rows.stdout) == 6
        # Nothing but the address is known elsewhere: no folder is shared.
        seen = images(tmp_path / "images")
        arguments = ("predict", str(seen), "--workdir", "other", "--format", "jsonl", "--logits")
        there = ended(start(server, tmp_path / "elsewhere", *arguments))
        here = ended(start(server, tmp_path / "one", *arguments[:2], *arguments[4:]))
        assert there == here
        assert there.count("\n") == 5
        (fetched,) = (tmp_path / "elsewhere" / "other" / "fetched").iterdir()
        assert (fetched / "data" / "model.keras").is_file()
        # The bytes are where --artifacts-destination says, once.
        assert len(list(server.artifacts.glob("**/models/**/data/model.keras"))) >= 1


@pytest.mark.slow
def test_two_promote_at_once_and_one_after_the_other_decides(server, tmp_path):
    name = ("--set", "release.name=twice")
    with server.running():
        arguments = ("--json", "run", "--epochs", "2", *SMALL, *name)
        both = [
            start(server, tmp_path / seed, *arguments, "--seed", seed, "promote")
            for seed in ("1", "2")
        ]
        decisions = [last_line(ended(process))["decision"] for process in both]
        registry = Registry("twice", server.config(), tmp_path)
        aliases = registry.read_aliases()
        assert sorted(decision["version"] for decision in decisions) == ["1", "2"]
        # The margin is wide enough for both, so the second was judged against the first and took
        # its place.
        first, second = sorted(decisions, key=lambda decision: decision["champion"])
        assert [first["champion"], second["champion"]] == ["", first["version"]]
        assert (aliases.champion, aliases.previous) == (second["version"], first["version"])
        assert [
            model.name
            for model in registry.connect().search_registered_models("name = 'twice.lock'")
        ] == []


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_a_run_and_started_again_lacks_nothing(server, tmp_path):
    cwd, epochs = tmp_path / "work", 40

    def list_reported_epochs():
        return sum(
            path.read_text().count('"event": "metrics"')
            for path in cwd.glob("mlruns/journal/*.jsonl")
        )

    with server.running() as process:
        run = start(
            server,
            cwd,
            "run",
            "--epochs",
            str(epochs),
            "--set",
            "evaluate.report=short",
            experiment="killed",
        )
        until(lambda: list_reported_epochs() > 5 and server.runs("killed"), 120, "no epoch ends")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert run.poll() is None
    time.sleep(3)
    reported = list_reported_epochs()
    with server.running():
        ended(run)
        assert list_reported_epochs() > reported  # it went on without the server
        ended(start(server, cwd, "sync", experiment="killed"))
        found = {run.data.tags.get("stage", "pipeline"): run for run in server.runs("killed")}
        assert {run.info.status for run in found.values()} == {"FINISHED"}
        assert set(found) == {"pipeline", "ingest", "build", "train", "evaluate"}
        client = connect_store(server.config(), tmp_path)
        losses = client.get_metric_history(found["train"].info.run_id, "validation_loss")
        assert sorted(point.step for point in losses) == list(range(1, epochs + 1))
        assert [item.path for item in client.list_artifacts(found["evaluate"].info.run_id)]
        assert ended(start(server, cwd, "sync", experiment="killed")).startswith("0 runs sent")
