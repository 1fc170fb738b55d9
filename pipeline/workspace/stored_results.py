"""Finding results by name: by folder, or by a run in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import EvaluationReport
from pipeline.engine.results import Account, read_account
from pipeline.errors import ConfigError
from pipeline.workspace.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.evaluate.compare import Comparison

MIN_LETTERS = 6  # of a run's id, to name it


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


def compare_named_evaluations(workspace: Workspace, first: str, second: str) -> Comparison:
    """Return the comparison of two evaluations by their names, as of `read_evaluation`."""
    return compare_evaluations(
        workspace, read_evaluation(workspace, first), read_evaluation(workspace, second)
    )


def compare_evaluations(
    workspace: Workspace, first: EvaluationReport, second: EvaluationReport
) -> Comparison:
    """Return the comparison of two evaluations of the same images, with its page written.

    Raises:
        ConfigError: they are of unlike views or splits.
        DatasetError: they are not of the same images.
    """
    from pipeline.evaluate.compare import compare_reports, write_comparison

    return write_comparison(compare_reports(first, second), workspace.directory / "comparisons")


def _find_folder(workspace: Workspace, name: str) -> Path:
    for folder in (Path(name), workspace.directory / "stages" / name):
        if (folder / EvaluationReport.FILE).is_file():
            return folder
    found = find_results_of_run(workspace, name, "evaluate")
    if len(found) != 1:
        raise ConfigError(
            f"There is {'no' if not found else 'more than one'} evaluation `{name}` in"
            f" {workspace.directory}",
            expected=f"the folder of one, or the first {MIN_LETTERS} letters or more of its MLflow"
            " run",
            received=repr(name),
            hint="`alexnet status` shows the last one",
        )
    return found[0]


def find_results_of_run(workspace: Workspace, run: str, stage: str = "") -> list[Path]:
    """Return the folders of the results that an MLflow run made.

    Of a result that was accepted under several codes, the last one alone.

    Args:
        workspace: the work directory.
        run: the first letters, at least MIN_LETTERS, of the id of the run, or of the pipeline run
            around it.
        stage: how the name of the stage begins; any by default.
    """
    run_ids = workspace.run_ids() if len(run) >= MIN_LETTERS else {}
    keys = {key for key, run_id in run_ids.items() if run_id.startswith(run)}
    found: dict[str, tuple[int, Path]] = {}
    for folder in sorted(workspace.directory.glob(f"stages/{stage}*-*")):
        account = read_account(folder)
        if account is None or folder.suffix or not keys & _keys_of(account):
            continue
        times = len(account.accepted)
        if times >= found.get(account.run_key, (0, folder))[0]:
            found[account.run_key] = (times, folder)
    return [folder for _, folder in found.values()]


def _keys_of(account: Account) -> set[str]:
    """Return the keys of the runs that made a result, and of the pipeline runs around them."""
    own = {account.run_key, *account.earlier_run_keys}
    return own | {key.rpartition("-")[0] for key in own}
