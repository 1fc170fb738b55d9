"""Finding an evaluation that somebody names: by folder, by stage, or by a run in MLflow."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import EvaluationReport
from pipeline.engine.results import ACCOUNT_FILE, read_account
from pipeline.errors import ConfigError
from pipeline.workspace.workspace import Workspace

_MIN_LETTERS = 6  # of a run's id, to name it


def read_evaluation(workspace: Workspace, name: str) -> EvaluationReport:
    """Return the record of an evaluation.

    Args:
        workspace: the work directory.
        name: its folder, the name of that, or the first letters of the id of its MLflow run or of
            the pipeline run around it.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    folder = _find_folder(workspace, name)
    try:
        return EvaluationReport.read(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} holds no evaluation that this version can read",
            expected="the folder of a finished evaluate",
            hint="Type `alexnet evaluate` again, or name another one",
        ) from error


def _find_folder(workspace: Workspace, name: str) -> Path:
    for folder in (Path(name), workspace.directory / "stages" / name):
        if (folder / EvaluationReport.FILE).is_file():
            return folder
    run_ids = workspace.run_ids() if len(name) >= _MIN_LETTERS else {}
    keys = {key for key, run_id in run_ids.items() if run_id.startswith(name)}
    accounts = sorted(workspace.directory.glob(f"stages/evaluate*/{ACCOUNT_FILE}"))
    found = [path.parent for path in accounts if keys & _keys_of(path.parent)]
    if len(found) != 1:
        raise ConfigError(
            f"There is {'no' if not found else 'more than one'} evaluation `{name}` in"
            f" {workspace.directory}",
            expected=f"the folder of one, or the first {_MIN_LETTERS} letters or more of its MLflow"
            " run",
            received=repr(name),
            hint="`alexnet status` shows the last one",
        )
    return found[0]


def _keys_of(folder: Path) -> set[str]:
    """Return the keys of the runs that made a result, and of the pipeline runs around them."""
    account = read_account(folder)
    own = {account.run_key, *account.earlier_run_keys} if account else set[str]()
    return own | {key.rpartition("-")[0] for key in own}
