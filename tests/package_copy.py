"""A copy of the package to change, and its command line in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def copy_package(folder: Path) -> Path:
    """Copy the package below a folder, and return that."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=ignored)
    return folder


def run_alexnet(package: Path, cwd: Path, *arguments: str) -> list[dict[str, Any]]:
    """Return the objects that a command shows with `--json`; the package lies below `package`."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    }
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--json", *arguments],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(package)},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
