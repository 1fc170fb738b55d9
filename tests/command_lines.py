"""Command lines run one after the other in a single process, as each takes half a second to start.

For those that are refused before any work: the modules that they import stay imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

_HEAVY = ("tensorflow", "keras", "mlflow", "numpy", "tensorflow_datasets")
_RUN_EACH = f"""
import contextlib, io, json, os, sys, traceback
from pipeline.cli.main import main
for arguments, folder in json.load(sys.stdin):
    os.chdir(folder)
    output, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    imported = sorted(set(sys.modules) & set({_HEAVY!r}))
    found = dict(returncode=code, stdout=output.getvalue(), stderr=errors.getvalue())
    print(json.dumps(found | dict(imported=imported)))
"""


def run_command_lines(lines, folders, *, files=(), **environment):
    """Run command lines, and return what came of each.

    Args:
        lines: the arguments of each.
        folders: one folder for all, or the `tmp_path_factory` that makes an empty one for each.
        files: names of files to write into each folder, with one byte each.
        environment: variables of the process.

    Returns:
        For each line its `folder`, `returncode`, `stdout` and `stderr`, and in `imported` the heavy
        modules that it or an earlier one imported.
    """
    one = isinstance(folders, Path)
    folders = [folders if one else folders.mktemp("line") for _ in lines]
    for folder in folders:
        for name in files:
            (folder / name).write_bytes(b"x")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")}
    done = subprocess.run(
        [sys.executable, "-c", _RUN_EACH],
        input=json.dumps(
            [(line, str(folder)) for line, folder in zip(lines, folders, strict=True)]
        ),
        check=False,
        env=kept | {"PYTHONPATH": str(Path(__file__).parents[1])} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [
        SimpleNamespace(folder=folder, **json.loads(found))
        for folder, found in zip(folders, done.stdout.splitlines(), strict=True)
    ]
