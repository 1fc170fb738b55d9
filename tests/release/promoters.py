"""Processes that promote at the same time, and kill themselves between two writes: run by
test_promotion.py.

Reads lines of JSON: a list of promoters, each `package`, `error` (its true top-1 error) and
`kill_at` (before which write, or null). Runs them at once, each in a process of its own, and prints
their exit statuses.
"""

import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

# Imported once, before the forks: each takes seconds. No client is made here, a connection must not
# be shared.
import mlflow
import mlflow.store.db.utils
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store

from pipeline.artifacts import GateCheck
from pipeline.config.release import ReleaseConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.release.commit import GateVerdict, Offer, commit_promotion
from pipeline.release.package import read_package
from pipeline.tracking import registry as registry_module
from pipeline.tracking.registry import MODEL_TAG, RELEASE_TAG, Registry

WRITES = (
    *(
        "create_logged_model",
        "log_model_artifacts",
        "finalize_logged_model",
        "create_registered_model",
        "create_model_version",
    ),
    *("set_model_version_tag", "set_registered_model_alias", "set_registered_model_tag"),
)


def without_keras(file, directory, image_size, known):
    """Stand in for MLflow's Keras flavor, which would load the model: these have none."""
    (directory / "data").mkdir(parents=True)
    shutil.copyfile(file, directory / "data" / "model.keras")


def dying(kill_at):
    """Return what wraps a write so that this process is killed before its write number `kill_at`;
    None never."""
    counter = itertools.count()

    def wrap(write):
        def counted(self, *arguments, **named):
            if next(counter) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(self, *arguments, **named)

        return counted

    return wrap


def promote(workdir, package, error, kill_at):
    wrap = dying(kill_at)
    for name in WRITES:
        setattr(mlflow.MlflowClient, name, wrap(getattr(mlflow.MlflowClient, name)))
    registry_module.save_keras_flavor = without_keras

    def judge(champion):
        other = float(champion.tags["top1_error"]) if champion else 1.0
        check = GateCheck(
            name="error",
            passed=error <= other,
            measured=f"{error}",
            required=f"{other}",
            text=f"{error} against {other}",
        )
        return GateVerdict((check,), other)

    release = read_package(Path(package))
    tags = {
        RELEASE_TAG: release.sha256(),
        MODEL_TAG: release.model_sha256,
        "top1_error": f"{error}",
    }
    return commit_promotion(
        Registry("alexnet", TrackingConfig(), workdir),
        Offer(release, tags),
        judge,
        ReleaseConfig(),
    ).outcome


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main():
    workdir = Path(sys.argv[1])
    say("ready")
    for line in sys.stdin:
        children = []
        for promoter in json.loads(line):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    status = {"promoted": 10, "refused": 13, "unchanged": 11}[
                        promote(workdir, **promoter)
                    ]
                except BaseException:  # noqa: BLE001 - shown, and seen in the status
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            children.append(child)
        say(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))


if __name__ == "__main__":
    main()
