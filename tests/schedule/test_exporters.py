"""Schedules in the words of other engines: read back and compared with what is meant, and given to
the engines' own tools where they are.

Airflow and Prefect are found in environments of their own, which AIRFLOW_PYTHON and PREFECT_PYTHON
name.
"""

import ast
import configparser
import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import jinja2
import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.schedule.exporters.emit import ENGINES, emit_schedule_files
from pipeline.schedule.timing import iterate_run_times, parse_timing

SINCE = datetime(2026, 6, 3, 12, 1, tzinfo=UTC)
WEEKLY = parse_timing("0 3 * * 1", "", "Europe/Madrid")
TIMINGS = [
    parse_timing(cron, "", zone)
    for cron, zone in (
        ("0 3 * * 1", "Europe/Madrid"),
        ("*/15 * * * *", "UTC"),
        ("0 3 1-7 * 1", "America/New_York"),  # either is enough
        ("30 2 1,15 * fri-sun", "Asia/Kathmandu"),
        ("7,8,9,40 */6 * * 7", "Australia/Lord_Howe"),
        ("5 4 1-31 jan,jul 2", "Europe/Madrid"),  # every day, since either is enough
        ("0 12 29 2 *", "UTC"),
        ("@hourly", "Asia/Kathmandu"),
    )
]
BOTH = parse_timing("0 3 */2 * 1", "", "Europe/Madrid")  # a Monday whose number is odd
INTERVALS = [
    parse_timing("", every, "Europe/Madrid")
    for every in ("15m", "1h", "60m", "6h", "1d", "24h", "1w")
]
WORDS = (
    "--dataset",
    '/data/it\'s a "set" of 100 %',
    "--set",
    "data.renamed_classes=a{{b}}{%c%}{#=$HOME $(X) `id` \\n \\",
    "",
    "é.sh",
)
# What a command was given, as one line; it ends as it is told to.
STUB = """
import json, os, signal, sys, time
told = {"arguments": sys.argv[1:], "folder": os.getcwd(), "pid": os.getpid()}
with open(os.environ["TOLD"], "a") as lines:
    lines.write(json.dumps(told) + chr(10))
def end(*_):
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
time.sleep(float(os.environ.get("SECONDS", "0")))
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def place(tmp_path):
    """A folder whose name every engine has to quote, with a program that stands for Python."""
    folder = tmp_path / "it's 100% a b"
    folder.mkdir()
    (folder / "stub.py").write_text(STUB)
    for name in ("python", "alexnet"):
        (folder / name).write_text(
            f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S"
            f' {shlex.quote(str(folder / "stub.py"))} "$@"\n'
        )
        (folder / name).chmod(0o755)
    return folder


def files(kind, timing, place, arguments=WORDS, name="main"):
    return emit_schedule_files(kind, name, timing, arguments, place / "mlruns", place / "python")


def only(found):
    (text,) = found.values()
    return text


def command(place, arguments=WORDS, name="main"):
    return ["schedule", "serve", name, "--once", "--workdir", str(place / "mlruns"), *arguments]


def run_times(timing, count=10, since=SINCE):
    return list(
        itertools.islice(iterate_run_times(timing, since, since + timedelta(days=365 * 50)), count)
    )


def told(place):
    return [json.loads(line) for line in (place / "told").read_text().splitlines()]


def environment(place, **more):
    return {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "TOLD": str(place / "told"), **more}


def ran(arguments, **more):
    return subprocess.run(
        arguments, check=False, capture_output=True, text=True, timeout=300, **more
    )


def tool(name, package):
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed ({package})")
    return found


# -- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENGINES)
def test_equal_words_make_equal_text_that_ends_with_a_line(kind, place):
    found = files(kind, WEEKLY, place)
    assert found == files(kind, WEEKLY, place)
    assert all(
        text.endswith("\n") and not re.search(r"[ \t]+$", text, re.MULTILINE)
        for text in found.values()
    )
    assert all(str(max(map(len, text.splitlines()))) for text in found.values())


@pytest.mark.parametrize(
    ("kind", "name", "arguments", "sentence"),
    [
        ("kubernets", "main", (), "Did you mean `kubernetes`?"),
        ("systemd", "../main", (), "Expected letters, digits and"),
        ("systemd", "main", ("--dataset", "two\nlines"), "without line breaks"),
        ("airflow", "main", ("\udcff",), "without line breaks"),
        ("kubernetes", "Main", (), "small letters, digits and -"),
        ("kubernetes", "a" * 45, (), "at most 44"),
        ("crontab", "main", ("x" * 900,), "Expected 998 bytes at most"),
    ],
)
def test_what_an_engine_cannot_say_is_refused(kind, name, arguments, sentence, place):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        files(kind, WEEKLY, place, arguments, name)


@pytest.mark.parametrize(
    ("kind", "timing"),
    [("crontab", "7h"), ("kubernetes", "45m"), ("kubernetes", "30s"), ("crontab", "2d")],
)
def test_an_interval_that_no_cron_expression_is_is_refused(kind, timing, place):
    with pytest.raises(ConfigError, match=f"cannot express every {timing}"):
        files(kind, parse_timing("", timing, "UTC"), place)


@pytest.mark.parametrize("kind", ["kubernetes", "airflow"])
def test_a_date_that_must_be_both_is_refused_where_either_would_do(kind, place):
    with pytest.raises(ConfigError, match="means both"):
        files(kind, BOTH, place)


# -- systemd ---------------------------------------------------------------------------------------


def unit(text):
    """A unit's settings; one that comes several times is a list."""

    class Several(dict):
        def __setitem__(self, key, value):
            super().__setitem__(
                key, [*self[key], *value] if isinstance(value, list) and key in self else value
            )

    parser = configparser.RawConfigParser(
        dict_type=Several, strict=False, delimiters=("=",), comment_prefixes=("#",)
    )
    parser.optionxform = str
    parser.read_string(text)
    return {section: dict(parser.items(section)) for section in parser.sections()}


def calendar(event, since, count):
    """The next times of a calendar event of systemd, by trying every minute: its own reading, for
    machines without systemd."""
    weekdays, date, clock, zone = re.fullmatch(
        r"(?:([A-Z]\S+) )?\*-(\S+) (\S+):00 (\S+)", event
    ).groups()
    months, days = date.split("-")
    hours, minutes = clock.split(":")

    def numbers(text, span):
        if text == "*":
            return set(span)
        parts = [part.split("..") for part in text.split(",")]
        return {number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)}

    names = weekdays.split(",") if weekdays else ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    hours, minutes = numbers(hours, range(24)), numbers(minutes, range(60))
    months, days = numbers(months, range(1, 13)), numbers(days, range(1, 32))
    found, day = [], since.astimezone(ZoneInfo(zone)).replace(hour=0, minute=0, second=0)
    while len(found) < count:
        if day.month in months and day.day in days and f"{day:%a}" in names:
            times = (
                day.replace(hour=hour, minute=minute).astimezone(UTC)
                for hour in sorted(hours)
                for minute in sorted(minutes)
            )
            found += [moment for moment in times if moment > since]
        day += timedelta(days=1)
    return found[:count]


@pytest.mark.parametrize("timing", [*TIMINGS, BOTH, *INTERVALS], ids=str)
def test_systemds_calendar_is_the_schedule(timing, place):
    events = unit(files("systemd", timing, place)["alexnet-main.timer"])["Timer"][
        "OnCalendar"
    ].split("\n")
    merged = sorted({moment for event in events for moment in calendar(event, SINCE, 10)})[:10]
    assert merged == run_times(timing)


def test_systemd_is_told_what_an_end_means(place):
    found = files("systemd", parse_timing("0 3 * * 1", "", "UTC", "5m"), place)
    service, timer = (unit(found[f"alexnet-main.{kind}"]) for kind in ("service", "timer"))
    assert service["Service"]["SuccessExitStatus"] == "3 143"
    assert service["Service"]["RestartForceExitStatus"] == "75"
    assert "Restart" not in service["Service"]
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Timer"]["RandomizedDelaySec"] == "300"
    seven = unit(files("systemd", parse_timing("", "7h", "UTC"), place)["alexnet-main.timer"])[
        "Timer"
    ]
    assert (seven["OnUnitActiveSec"], "OnCalendar" in seven, "RandomizedDelaySec" in seven) == (
        "25200",
        False,
        False,
    )


def test_systemds_command_is_read_as_it_was_meant(place):
    line = unit(files("systemd", WEEKLY, place)["alexnet-main.service"])["Service"]["ExecStart"]
    assert line.startswith(':"')  # `:`, and $ means nothing
    read = [
        re.sub(r"\\(.)", r"\1", word).replace("%%", "%")
        for word in re.findall(r'"((?:[^"\\]|\\.)*)"', line)
    ]
    assert read == ["/usr/bin/env", str(place / "python"), "-P", "-m", "pipeline", *command(place)]
    plain = emit_schedule_files(
        "systemd", "main", WEEKLY, (), place / "mlruns", Path("/opt/my env/bin/python")
    )["alexnet-main.service"]
    assert '\nExecStart=:"/opt/my env/bin/python" "-P" "-m" "pipeline" "schedule" ' in plain


@pytest.mark.parametrize("timing", [*TIMINGS, BOTH, parse_timing("", "7h", "UTC", "90s")], ids=str)
def test_systemd_takes_both_files(timing, place):
    verify = tool("systemd-analyze", "Debian: systemd")
    for name, text in files("systemd", timing, place).items():
        (place.parent / name).write_text(text)
    done = ran([verify, "verify", "alexnet-main.timer"], cwd=place.parent)
    assert (done.returncode, done.stderr) == (0, "")


def elapses(event, since, count=10):
    """What systemd itself says of a calendar event."""
    arguments = [
        tool("systemd-analyze", "Debian: systemd"),
        "calendar",
        f"--iterations={count}",
        f"--base-time={since:%Y-%m-%d %H:%M:%S} UTC",
        event,
    ]
    shown = subprocess.run(
        arguments, env=os.environ | {"TZ": "UTC"}, check=True, capture_output=True, text=True
    ).stdout
    found = re.findall(
        r"(?:Next elapse|Iter\. #\d+): \w+ (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", shown
    )
    return [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in found]


@pytest.mark.parametrize("timing", [*TIMINGS, BOTH, *INTERVALS], ids=str)
def test_systemd_says_the_same_next_ten_times(timing, place):
    events = unit(files("systemd", timing, place)["alexnet-main.timer"])["Timer"][
        "OnCalendar"
    ].split("\n")
    assert sorted({moment for event in events for moment in elapses(event, SINCE)})[
        :10
    ] == run_times(timing)


def test_systemd_and_clocks_that_change(place):
    """What the comment in the timer says: the only differences."""
    timing = parse_timing("30 2 * * *", "", "Europe/Madrid")
    (event,) = unit(files("systemd", timing, place)["alexnet-main.timer"])["Timer"][
        "OnCalendar"
    ].split("\n")
    spring = datetime(2026, 3, 28, tzinfo=UTC)
    assert run_times(timing, 3, spring) == [
        spring + timedelta(hours=hours) for hours in (1.5, 25, 48.5)
    ]
    assert elapses(event, spring, 2) == [spring + timedelta(hours=hours) for hours in (1.5, 48.5)]
    autumn = datetime(2026, 10, 24, tzinfo=UTC)
    assert elapses(event, autumn, 5) == run_times(timing, 5, autumn)


# -- crontab ---------------------------------------------------------------------------------------


def cron_line(timing, place, arguments=("--dataset", "/data/it's 100 %")):
    """The fields, the time zone and the command of a crontab, as cron reads them."""
    text = only(files("crontab", timing, place, arguments))
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    settings = dict(line.split("=", 1) for line in lines[:-1])
    fields, rest = re.fullmatch(r"((?:\S+ ){5})(.*)", lines[-1]).groups()
    assert not re.search(r"(?<!\\)%", rest)
    return fields.strip(), settings["CRON_TZ"], rest.replace("\\%", "%")


@pytest.mark.parametrize("timing", [*TIMINGS, BOTH, *INTERVALS], ids=str)
def test_a_crontab_line_is_the_schedule(timing, place):
    fields, zone, _ = cron_line(timing, place)
    assert run_times(parse_timing(fields, "", zone)) == run_times(timing)


@pytest.mark.parametrize("timing", [*TIMINGS, BOTH, *INTERVALS], ids=str)
def test_cron_takes_the_line(timing, place):
    (place / "crontab").write_text(
        only(files("crontab", timing, place, ("--dataset", "it's 100 %")))
    )
    done = ran([tool("crontab", "Debian: cron"), "-n", str(place / "crontab")])
    assert done.returncode == 0, done.stderr


def test_cron_refuses_what_it_does_not_understand(place):
    """That its check is one."""
    (place / "crontab").write_text("0 3 * * 8 true\n")
    assert ran([tool("crontab", "Debian: cron"), "-n", str(place / "crontab")]).returncode == 1


def test_a_crontab_line_starts_the_command(place):
    timing = parse_timing("* * * * *", "", "UTC", "1s")
    arguments = ("--dataset", '/data/it\'s a "set" of 100 %', "a=$HOME $(X) `id`", "")
    done = ran(
        ["/bin/sh", "-c", cron_line(timing, place, arguments)[2]],
        env=environment(place, CODE="3"),
        cwd="/",
    )
    assert done.returncode == 3
    (seen,) = told(place)
    assert seen["arguments"] == ["-P", "-m", "pipeline", *command(place, arguments)]
    assert seen["folder"] == str(place)


def test_a_cron_without_time_zones_starts_nothing_at_the_wrong_hour(place):
    """Debian's cron would take the hour for the machine's."""
    moment = datetime.now(UTC)
    for zone, hour, code in (
        ("UTC", moment.hour, 0),
        ("Asia/Tokyo", moment.hour, 78),
        ("Asia/Tokyo", (moment.hour + 9) % 24, 0),
    ):
        line = cron_line(parse_timing(f"0 {hour} * * *", "", zone), place, ())[2]
        done = ran(["/bin/sh", "-c", line], env=environment(place, TZ="UTC"))
        if datetime.now(UTC).hour != moment.hour:
            pytest.skip("the hour changed meanwhile")
        assert done.returncode == code
        assert (f"does not heed CRON_TZ={zone}" in done.stderr) == (code == 78)
    assert len(told(place)) == 2


# -- Kubernetes ------------------------------------------------------------------------------------


def manifests(timing, place, arguments=WORDS):
    return {
        document["kind"]: document
        for document in yaml.safe_load_all(only(files("kubernetes", timing, place, arguments)))
    }


@pytest.mark.parametrize("timing", [*TIMINGS, *INTERVALS], ids=str)
def test_a_cron_job_is_the_schedule(timing, place):
    spec = manifests(timing, place)["CronJob"]["spec"]
    assert run_times(parse_timing(spec["schedule"], "", spec["timeZone"])) == run_times(timing)
    assert not set(spec["schedule"].split()[4]) & set("7")  # Kubernetes has no weekday 7
    scheduled_runs = len(
        list(
            iterate_run_times(
                timing, SINCE, SINCE + timedelta(seconds=spec["startingDeadlineSeconds"])
            )
        )
    )
    assert scheduled_runs <= 100
    assert spec["concurrencyPolicy"] == "Forbid"


def test_a_pod_sees_the_work_directory_and_is_not_tried_again_in_vain(place):
    found = manifests(WEEKLY, place)
    job = found["CronJob"]["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    (container,), (volume,) = pod["containers"], pod["volumes"]
    (mount,) = container["volumeMounts"]
    assert Path(container["args"][5]).is_relative_to(mount["mountPath"])
    assert container["workingDir"] == mount["mountPath"] == str(place)
    assert volume == {
        "name": mount["name"],
        "persistentVolumeClaim": {"claimName": found["PersistentVolumeClaim"]["metadata"]["name"]},
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    ignored, failed = job["podFailurePolicy"]["rules"]
    assert (ignored["action"], failed["action"]) == ("Ignore", "FailJob")
    assert failed["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "NotIn",
        "values": [75, 137, 143],
    }
    assert pod["restartPolicy"] == "Never"


def pod_command(timing, place, arguments):
    (container,) = manifests(timing, place, arguments)["CronJob"]["spec"]["jobTemplate"]["spec"][
        "template"
    ]["spec"]["containers"]
    # Kubernetes itself makes $ of $$, and looks for $(NAME), before any shell sees it.
    return [
        word if word.startswith("trap") else re.sub(r"\$\$", "$", word)
        for word in (*container["command"], *container["args"])
    ]


@pytest.mark.parametrize(("code", "ended"), [(0, 0), (3, 0), (75, 75), (1, 1)])
def test_a_pod_starts_the_command_and_a_refusal_is_no_failure(code, ended, place):
    script = pod_command(parse_timing("0 3 * * 1", "", "UTC", "1s"), place, WORDS)
    assert "$(" not in script[2].replace("$(shuf", "")  # nothing that Kubernetes would replace
    done = ran(script, env=environment(place, CODE=str(code)))
    assert done.returncode == ended
    assert [seen["arguments"] for seen in told(place)] == [command(place)]


def test_a_pods_signal_reaches_the_command_and_its_end_is_waited_for(place):
    with subprocess.Popen(
        pod_command(WEEKLY, place, ()), env=environment(place, SECONDS="60")
    ) as pod:
        end = time.monotonic() + 30
        while not (place / "told").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.5)
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(timeout=20) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(told(place)[0]["pid"], 0)


@pytest.mark.parametrize("version", ["1.29.0", "1.34.0"])
def test_kubernetes_schemas_know_every_field(version, place):
    validate = tool("kubernetes-validate", "PyPI: kubernetes-validate")
    (place / "cron.yaml").write_text(
        only(files("kubernetes", parse_timing("0 3 * * 1", "", "UTC", "5m"), place))
    )
    done = ran([validate, "--strict", "-k", version, str(place / "cron.yaml")])
    assert done.returncode == 0, done.stdout + done.stderr
    (place / "cron.yaml").write_text(
        (place / "cron.yaml").read_text().replace("concurrencyPolicy", "concurrencyPolice")
    )
    assert ran([validate, "--strict", "-k", version, str(place / "cron.yaml")]).returncode


# -- Airflow ---------------------------------------------------------------------------------------


def called(text, name):
    """The arguments by name of the only call of a function."""
    (call,) = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name)
    ]
    return [ast.unparse(value) for value in call.args], {
        item.arg: ast.unparse(item.value) for item in call.keywords
    }


@pytest.mark.parametrize("timing", [*TIMINGS, *INTERVALS], ids=str)
def test_a_dag_has_the_schedule(timing, place):
    text = only(files("airflow", timing, place))
    (cron,), more = called(text, "CronTriggerTimetable")
    assert run_times(
        parse_timing(ast.literal_eval(cron), "", ast.literal_eval(more["timezone"]))
    ) == run_times(timing)
    _, dag = called(text, "DAG")
    assert (dag["catchup"], dag["max_active_runs"]) == ("False", "1")


def test_a_dag_has_any_interval(place):
    assert (
        called(only(files("airflow", parse_timing("", "7h", "UTC"), place)), "DAG")[1]["schedule"]
        == "timedelta(seconds=25200)"
    )


@pytest.mark.parametrize("arguments", [WORDS, ("--set", "a={{{", "x.sh"), ("it's {{", "{%'{#")])
def test_a_dags_command_outlives_jinja_and_bash(arguments, place):
    _, task = called(
        only(files("airflow", parse_timing("0 3 * * 1", "", "UTC", "1s"), place, arguments)),
        "BashOperator",
    )
    line = ast.literal_eval(task["bash_command"])
    assert not line.endswith((".sh", ".bash"))  # the name of a file, for Airflow
    rendered = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(line).render()  # noqa: S701 - no page, as in Airflow
    done = ran(["bash", "-c", rendered], env=environment(place, CODE="3"), cwd="/")
    assert (done.returncode, task["skip_on_exit_code"]) == (3, "3")
    assert told(place)[0]["arguments"] == ["-P", "-m", "pipeline", *command(place, arguments)]


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    python = os.environ.get("AIRFLOW_PYTHON")
    if not python:
        pytest.skip("AIRFLOW_PYTHON names no Python with Airflow 3")
    home = tmp_path_factory.mktemp("airflow")
    told = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    told |= {"PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(home)}
    (home / "dags").mkdir()
    subprocess.run(
        [python, "-m", "airflow", "db", "migrate"],
        env=told,
        check=True,
        capture_output=True,
        timeout=300,
    )
    return python, home, told


LOAD = """
import itertools, json, sys
import pendulum
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
bag, since, found = DagBag(sys.argv[1]), pendulum.parse(sys.argv[2]), {}
for key, dag in bag.dags.items():
    # as the scheduler has it
    stored = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    runs = stored.iter_dagrun_infos_between(since, since.add(years=50))
    found[key] = [run.run_after.timestamp() for run in itertools.islice(runs, 10)]
print(json.dumps({"errors": bag.import_errors, "found": found}))
"""
RUN = """
import sys
from airflow.dag_processing.dagbag import DagBag
(dag,) = DagBag(sys.argv[1]).dags.values()
print("STATES", *[task.state for task in dag.test().get_task_instances()])
"""


@pytest.mark.slow
def test_airflow_loads_the_dags_and_says_the_same_next_ten_times(airflow, place):
    python, home, told_airflow = airflow
    for number, timing in enumerate([*TIMINGS, *INTERVALS, parse_timing("", "7h", "UTC")]):
        for name, text in files("airflow", timing, place, name=f"n{number}").items():
            (home / "dags" / name).write_text(text)
    arguments = [python, "-c", LOAD, str(home / "dags"), SINCE.isoformat()]
    done = subprocess.run(
        arguments, env=told_airflow, check=True, capture_output=True, text=True, timeout=300
    )
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["errors"] == {}
    for number, timing in enumerate([*TIMINGS, *INTERVALS]):
        assert shown["found"][f"alexnet_n{number}"] == [
            moment.timestamp() for moment in run_times(timing)
        ], timing
    gaps = {
        late - early for early, late in itertools.pairwise(shown["found"][f"alexnet_n{number + 1}"])
    }
    assert gaps == {25200.0}


@pytest.mark.slow
@pytest.mark.parametrize(("code", "state"), [(0, "success"), (3, "skipped"), (1, "failed")])
def test_airflow_runs_the_command(airflow, place, code, state):
    python, home, told_airflow = airflow
    folder = home / f"code{code}"
    folder.mkdir()
    (folder / "dag.py").write_text(
        only(files("airflow", WEEKLY, place)).replace("retries=3", "retries=0")
    )
    told_both = told_airflow | {
        "TOLD": str(place / "told"),
        "CODE": str(code),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder),
    }
    done = ran([python, "-c", RUN, str(folder)], env=told_both)
    assert f"STATES {state}" in done.stdout, done.stdout + done.stderr
    assert told(place)[0]["arguments"] == ["-P", "-m", "pipeline", *command(place)]


# -- Prefect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("timing", [*TIMINGS, *INTERVALS], ids=str)
def test_a_flow_has_the_schedule(timing, place):
    text = only(files("prefect", timing, place))
    (cron,), more = called(text, "Cron")
    assert run_times(
        parse_timing(ast.literal_eval(cron), "", ast.literal_eval(more["timezone"]))
    ) == run_times(timing)
    assert called(text, "ConcurrencyLimitConfig")[1]["limit"] == "1"


def test_a_flow_has_any_interval_and_a_date_that_must_be_both(place):
    (every,), more = called(
        only(files("prefect", parse_timing("", "7h", "UTC"), place)), "Interval"
    )
    assert (every, more["anchor_date"]) == (
        "timedelta(seconds=25200)",
        "datetime(1970, 1, 1, tzinfo=timezone.utc)",
    )
    (cron,), more = called(only(files("prefect", BOTH, place)), "Cron")
    assert (ast.literal_eval(cron), more["day_or"]) == (
        "0 3 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31 * 1",
        "False",
    )


@pytest.fixture(scope="module")
def prefect(tmp_path_factory):
    """A server of Prefect, and the environment in which its clients find it."""
    python = os.environ.get("PREFECT_PYTHON")
    if not python:
        pytest.skip("PREFECT_PYTHON names no Python with Prefect 3")
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        port = candidate.getsockname()[1]
    told = {
        "PREFECT_HOME": str(home),
        "HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    told |= {
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }
    with ended_with(
        python, ["-m", "prefect", "server", "start", "--port", str(port), "--no-ui"], told, home
    ):
        end = time.monotonic() + 120
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), timeout=1),
            ):
                break
            assert time.monotonic() < end
            time.sleep(0.5)
        yield python, told | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}


@contextlib.contextmanager
def ended_with(python, arguments, environment, folder):
    """A process with all its children, ended by its own number."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [python, *arguments],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    with process:
        try:
            yield process
        finally:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)


SERVED = """
import asyncio, json, sys
from datetime import datetime
from prefect import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.server.schemas import schedules
async def look(name, since):
    async with get_client() as client:
        for _ in range(240):
            try:
                deployment = await client.read_deployment_by_name(name)
                break
            except ObjectNotFound:
                await asyncio.sleep(0.5)
        (one,) = deployment.schedules
        kind = getattr(schedules, type(one.schedule).__name__)
        times = await kind(**one.schedule.model_dump()).get_dates(10, datetime.fromisoformat(since))
        run = await run_deployment(name, timeout=120, poll_interval=1)
        limit = deployment.global_concurrency_limit.limit
        stamps = [moment.timestamp() for moment in times]
        return {"times": stamps, "state": run.state_name, "limit": limit}
print(json.dumps(asyncio.run(look(*sys.argv[1:]))))
"""
CALLED = """
import sys
sys.path.insert(0, sys.argv[1])
import alexnet_main_flow
state = alexnet_main_flow.retrain(return_state=True)
print("STATE", state.type.value, state.name)
"""
TIMES = """
import asyncio, json, sys
from datetime import datetime
from prefect.server.schemas.schedules import CronSchedule
async def look(asked, since):
    for cron, timezone, day_or in asked:
        schedule = CronSchedule(cron=cron, timezone=timezone, day_or=day_or)
        times = await schedule.get_dates(10, datetime.fromisoformat(since))
        yield [moment.timestamp() for moment in times]
async def all_of():
    return [times async for times in look(json.loads(sys.argv[1]), sys.argv[2])]
print(json.dumps(asyncio.run(all_of())))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "timing"),
    [
        ("first", parse_timing("0 3 1-7 * 1", "", "America/New_York")),
        ("seven", parse_timing("", "7h", "UTC")),
    ],
    ids=str,
)
def test_prefect_serves_the_schedule_and_runs_the_command(prefect, place, name, timing):
    python, told_prefect = prefect
    ((file, text),) = files("prefect", timing, place, name=name).items()
    (place / file).write_text(text)
    with ended_with(
        python, [file], told_prefect | {"TOLD": str(place / "told"), "CODE": "3"}, place
    ):
        arguments = [python, "-c", SERVED, f"alexnet {name}/{name}", SINCE.isoformat()]
        done = ran(arguments, env=told_prefect)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown == {
        "times": [moment.timestamp() for moment in run_times(timing)],
        "state": "Refused",
        "limit": 1,
    }
    assert told(place) == [
        told(place)[0]
        | {
            "arguments": ["-P", "-m", "pipeline", *command(place, name=name)],
            "folder": str(place),
        }
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "state"),
    [
        (0, "COMPLETED Completed"),
        (3, "COMPLETED Refused"),
        (1, "FAILED Failed"),
        (75, "FAILED Failed"),
    ],
)
def test_prefect_knows_what_an_end_means(prefect, place, code, state):
    python, told_prefect = prefect
    ((name, text),) = files("prefect", WEEKLY, place).items()
    (place / name).write_text(text.replace("time.sleep(600)", "time.sleep(0.1)"))
    arguments = [python, "-c", CALLED, str(place)]
    told_both = told_prefect | {"TOLD": str(place / "told"), "CODE": str(code)}
    done = ran(arguments, env=told_both)
    assert f"STATE {state}" in done.stdout, done.stdout + done.stderr
    assert len(told(place)) == (3 if code == 75 else 1)


@pytest.mark.slow
def test_prefect_says_the_same_next_ten_times(prefect, place):
    python, told_prefect = prefect
    timings, asked = [*TIMINGS, BOTH, *INTERVALS], []
    for timing in timings:
        (cron,), more = called(only(files("prefect", timing, place)), "Cron")
        asked.append(
            (
                ast.literal_eval(cron),
                ast.literal_eval(more["timezone"]),
                ast.literal_eval(more.get("day_or", "True")),
            )
        )
    arguments = [python, "-c", TIMES, json.dumps(asked), SINCE.isoformat()]
    shown = json.loads(
        subprocess.run(
            arguments, env=told_prefect, check=True, capture_output=True, text=True, timeout=120
        ).stdout.splitlines()[-1]
    )
    for timing, times in zip(timings, shown, strict=True):
        assert times == [moment.timestamp() for moment in run_times(timing)], timing
