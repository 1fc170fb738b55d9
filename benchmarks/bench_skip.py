"""S: `alexnet run` without changes, against importing the settings libraries alone.

On a finished work directory of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 7
TINY = (
    "--set",
    "model.alexnet.width_multiplier=0.2",
    "--epochs",
    "1",
    "--set",
    "tracking.enabled=no",
    "--quiet",
)
PEER = "import click, pydantic, rich, yaml"


def time_command(command: list[str], cwd: str) -> float:
    """Return the seconds of a command."""
    started = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print one JSON object."""
    program, peer = [sys.executable, "-m", "pipeline", "run", *TINY], [sys.executable, "-c", PEER]
    with tempfile.TemporaryDirectory() as cwd:
        first = time_command(program, cwd)
        pairs = [(time_command(program, cwd), time_command(peer, cwd)) for _ in range(ROUNDS)]
    skipped, imports = (statistics.median(values) for values in zip(*pairs, strict=True))
    result = {
        "id": "skip",
        "first_seconds": round(first, 2),
        "skipped_seconds": round(skipped, 3),
        "ratio": round(skipped / imports, 2),
    }
    print(json.dumps(result | {"peer": PEER, "rounds": ROUNDS}))


if __name__ == "__main__":
    main()
