"""The files of docs/cluster, run for real with stubs for what only a cluster has."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "docs" / "cluster"
WORDS = ("run", "--dataset", "my images", "--set", "data.renamed_classes=a b=c,*=$HOME", "")
NODES = ("node7", "node9")
# Says what it was given, as one line; ends as the tests ask for, but only as worker 1: one lost
# worker is enough.
ALEXNET = """
import json, os, sys
cluster = json.loads(os.environ["TF_CONFIG"])
attempt = int(os.environ.get("ATTEMPT", "1"))
told = {"tf_config": cluster, "words": sys.argv[1:], "pid": os.getpid(), "attempt": attempt}
sys.stdout.write(json.dumps(told) + chr(10))
sys.stdout.flush()
lost = cluster["task"]["index"] == 1 and attempt <= int(os.environ.get("LOST", "0"))
sys.exit(40 + attempt if lost else 0)
"""
SCONTROL = """
import os, sys
if sys.argv[1:] != ["show", "hostnames", "node[7,9]"]:
    sys.exit(f"scontrol: {sys.argv[1:]}")
print(*os.environ["NODES"].split(), sep=chr(10))
"""
# As srun: the command once a node, all at the same time, and the highest exit code.
SRUN = """
import json, os, subprocess, sys
from pathlib import Path
arguments = sys.argv[1:]
options = []
while arguments[0].startswith("-"):
    options.append(arguments.pop(0))
log = Path(os.environ["SRUN_LOG"])
with log.open("a") as lines:
    lines.write(json.dumps(options) + chr(10))
attempt = str(len(log.read_text().splitlines()))
count = len(os.environ["NODES"].split())
environments = [{"SLURM_PROCID": str(rank), "ATTEMPT": attempt} for rank in range(count)]
tasks = [subprocess.Popen(arguments, env=os.environ | own) for own in environments]
print(json.dumps({"started": [task.pid for task in tasks]}), flush=True)
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.fixture
def stubs(tmp_path):
    """A PATH with programs that a cluster would have."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name, code in (("alexnet", ALEXNET), ("scontrol", SCONTROL), ("srun", SRUN)):
        (folder / f"{name}.py").write_text(code)
        program = folder / name
        program.write_text(
            f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S"
            f' {shlex.quote(str(folder / name))}.py "$@"\n'
        )
        program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


# Kubernetes


@pytest.fixture(scope="module")
def manifest():
    documents = list(yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text()))
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents)
    return by_kind


@pytest.fixture(scope="module")
def pod(manifest):
    return manifest["Job"]["spec"]["template"]


@pytest.fixture(scope="module")
def container(pod):
    (only,) = pod["spec"]["containers"]
    return only


def pod_environment(job, container, index):
    """What Kubernetes gives a container of an Indexed Job: its own entries, the job's name in a
    label, and the index."""
    fields = {"metadata.labels['batch.kubernetes.io/job-name']": job["metadata"]["name"]}
    given = {"JOB_COMPLETION_INDEX": str(index)}
    for entry in container["env"]:
        given[entry["name"]] = (
            entry["value"]
            if "value" in entry
            else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        )
    return given


def expanded(text, environment):
    """What Kubernetes itself makes of `$$` and `$(NAME)` in a command, before any shell sees it."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)",
        lambda found: "$" if found[0] == "$$" else environment.get(found[1], found[0]),
        text,
    )


def pod_process(manifest, container, index, stubs, words=None):
    """Start a pod's command; returns what the program was given and the process that Kubernetes
    would send SIGTERM to."""
    environment = pod_environment(manifest["Job"], container, index)
    words = container["args"] if words is None else words
    command = [expanded(word, environment) for word in (*container["command"], *words)]
    with subprocess.Popen(
        command, env=environment | {"PATH": stubs}, stdout=subprocess.PIPE, text=True
    ) as process:
        (told,) = lines_of(process.communicate(timeout=60)[0])
    assert process.returncode == 0
    return told, process.pid


def test_each_pod_is_told_of_all_and_of_itself(manifest, container, stubs):
    spec, service = manifest["Job"]["spec"], manifest["Service"]
    configs = [
        pod_process(manifest, container, index, stubs)[0]["tf_config"]
        for index in range(spec["completions"])
    ]
    job, domain, port = (
        manifest["Job"]["metadata"]["name"],
        service["metadata"]["name"],
        service["spec"]["ports"][0]["port"],
    )
    assert spec["completions"] == spec["parallelism"] == 2
    assert [config["task"] for config in configs] == [
        {"type": "worker", "index": index} for index in (0, 1)
    ]
    assert (
        configs[0]["cluster"]
        == configs[1]["cluster"]
        == {"worker": [f"{job}-{index}.{domain}:{port}" for index in (0, 1)]}
    )


def test_another_name_and_another_number_are_two_changes(manifest, container, stubs):
    renamed = manifest | {"Job": {"metadata": {"name": "photos"}}}
    wider = container | {
        "env": [
            entry | {"value": "12"} if entry["name"] == "WORKERS" else entry
            for entry in container["env"]
        ]
    }
    config = pod_process(renamed, wider, 11, stubs)[0]["tf_config"]
    assert config["cluster"]["worker"] == [f"photos-{index}.alexnet:2222" for index in range(12)]
    assert config["task"]["index"] == 11


def test_the_program_takes_the_shells_place_and_its_words_whole(manifest, container, stubs):
    told, pid = pod_process(manifest, container, 0, stubs)
    assert told["words"] == container["args"]
    assert told["pid"] == pid
    assert pod_process(manifest, container, 0, stubs, WORDS)[0]["words"] == list(WORDS)


def test_pods_have_names_and_find_each_other_while_they_start(manifest, pod, container):
    service = manifest["Service"]["spec"]
    environment = pod_environment(manifest["Job"], container, 0)
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert (
        manifest["Service"]["metadata"]["name"]
        == pod["spec"]["subdomain"]
        == environment["SERVICE"]
    )
    assert int(environment["WORKERS"]) == manifest["Job"]["spec"]["completions"]
    (port,), (opened,) = service["ports"], container["ports"]
    assert port["port"] == opened["containerPort"] == int(environment["PORT"])


def test_lost_pods_start_again_in_place_and_never_twice(manifest, pod):
    spec = manifest["Job"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert pod["spec"]["restartPolicy"] == "OnFailure"
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["backoffLimit"] >= 3 * spec["completions"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > 30


def test_everything_that_is_written_is_on_the_shared_volume(manifest, pod, container):
    claim = manifest["PersistentVolumeClaim"]
    (mount,), (volume,) = container["volumeMounts"], pod["spec"]["volumes"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert volume == {
        "name": mount["name"],
        "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]},
    }
    folders = dict(zip(container["args"], container["args"][1:], strict=False))
    for folder in (container["workingDir"], folders["--workdir"], folders["--dataset"]):
        assert Path(folder).is_relative_to(mount["mountPath"])


def test_an_image_that_nobody_named_is_not_fetched(container):
    # A name with upper case is refused before any registry is asked.
    assert re.search("[A-Z]", container["image"].split(":")[0])


# Slurm


@pytest.fixture
def sbatch(stubs, tmp_path):
    """Run the script as Slurm does on the first node; returns the process and what the program was
    given, in the order of starts."""

    def run(*words, **more):
        environment = {
            "PATH": stubs,
            "SLURM_JOB_ID": "4012345",
            "SLURM_JOB_NODELIST": "node[7,9]",
            "SLURM_CPUS_PER_TASK": "8",
        }
        environment |= {"NODES": " ".join(NODES), "SRUN_LOG": str(tmp_path / "srun.log"), **more}
        # Slurm runs a copy of the script, in the folder that it was submitted from.
        copy = shutil.copy(CLUSTER / "slurm.sh", tmp_path / "slurm_script")
        done = subprocess.run(
            [copy, *words],
            check=False,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        told = [line for line in lines_of(done.stdout) if "words" in line]
        return done, sorted(
            told, key=lambda line: (line["attempt"], line["tf_config"]["task"]["index"])
        )

    return run


def test_each_node_is_told_of_all_and_of_itself(sbatch):
    done, told = sbatch(*WORDS)
    assert done.returncode == 0, done.stderr
    assert [line["tf_config"]["task"] for line in told] == [
        {"type": "worker", "index": index} for index in (0, 1)
    ]
    assert [line["tf_config"]["cluster"] for line in told] == [
        {"worker": [f"{node}:22345" for node in NODES]}
    ] * 2
    assert [line["words"] for line in told] == [list(WORDS)] * 2


def test_a_signal_to_the_task_reaches_the_program(sbatch):
    done, told = sbatch(*WORDS)
    assert [line["started"] for line in lines_of(done.stdout) if "started" in line] == [
        [line["pid"] for line in told]
    ]


@pytest.mark.parametrize("job", [1, 9_999, 10_000, 67_108_863])
def test_a_port_is_neither_reserved_nor_one_that_linux_gives_away(sbatch, job):
    (port,) = {
        address.split(":")[1]
        for address in sbatch("run", SLURM_JOB_ID=str(job))[1][0]["tf_config"]["cluster"]["worker"]
    }
    assert int(port) == 20_000 + job % 10_000 < 32_768


def test_a_lost_worker_ends_all_and_all_start_again(sbatch, tmp_path):
    done, told = sbatch(*WORDS, LOST="1")
    assert done.returncode == 0, done.stderr
    assert [line["attempt"] for line in told] == [1, 1, 2, 2]
    assert all(
        line["words"] == list(WORDS)
        and line["tf_config"] == told[line["tf_config"]["task"]["index"]]["tf_config"]
        for line in told
    )
    assert (
        done.stderr
        == "Ended with 41. Starting all workers again from the last checkpoint (2 of 3).\n"
    )
    assert (
        lines_of((tmp_path / "srun.log").read_text())
        == [["--kill-on-bad-exit=1", "--cpus-per-task=8"]] * 2
    )


def test_the_third_failure_is_the_last(sbatch):
    done, told = sbatch("train", LOST="9")
    assert done.returncode == 43
    assert [line["attempt"] for line in told] == [1, 1, 2, 2, 3, 3]
    assert done.stderr.endswith("Ended with 43, 3 times.\n")


@pytest.mark.parametrize(("seconds", "starts"), [(60, 1), (3600, 3)])
def test_nothing_is_started_again_when_the_time_is_over(sbatch, seconds, starts):
    done, told = sbatch("train", LOST="9", SLURM_JOB_END_TIME=str(int(time.time()) + seconds))
    assert done.returncode == 40 + starts
    assert len(told) == 2 * starts


def test_without_words_or_nodes_nothing_starts(sbatch):
    for words, more in (((), {}), (("run",), {"SLURM_JOB_NODELIST": "other"})):
        done, told = sbatch(*words, **more)
        assert done.returncode in {1, 2}
        assert not told
        assert done.stderr


def test_slurm_reads_what_the_script_asks_for():
    lines = (CLUSTER / "slurm.sh").read_text().splitlines()
    assert lines[0].startswith("#!")  # sbatch takes no other
    commands = [index for index, line in enumerate(lines) if line and not line.startswith("#")]
    asked = {
        index: line.split(maxsplit=1)[1]
        for index, line in enumerate(lines)
        if line.startswith("#SBATCH")
    }
    assert max(asked) < commands[0]  # sbatch stops at the first command
    assert lines[commands[0]] == "set -euo pipefail"
    assert {"--nodes=2", "--ntasks-per-node=1", "--requeue", "--signal=TERM@60"} <= set(
        asked.values()
    )
