"""C1: duration and imports of `alexnet --help` against `python -c "import click"`.

The two commands alternate, so that both meet the same machine. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

HEAVY = ("tensorflow", "keras", "mlflow", "numpy")
PROGRAM = [sys.executable, "-m", "pipeline", "--help"]
PEER = [sys.executable, "-c", "import click"]
PROBE = f"""
import json, sys
from pipeline.cli.main import main
sys.stdout, output, exit_code = open({os.devnull!r}, "w"), sys.stdout, 0
try:
    main(["--help"])
except SystemExit as end:
    exit_code = end.code or 0
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"exit_code": exit_code, "loaded": loaded}}), file=output)
"""


def time_command(command: list[str]) -> tuple[float, float]:
    """Run a command and return its wall seconds and the CPU seconds of its process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_pairs(rounds: int) -> dict[str, float]:
    """Alternate the two commands; return medians, and the ratio for this machine's load."""
    for command in (PROGRAM, PEER):
        time_command(command)  # warm the file cache
    pairs = [(time_command(PROGRAM), time_command(PEER)) for _ in range(rounds)]
    wall, cpu = (
        statistics.median(program[which] / peer[which] for program, peer in pairs)
        for which in (0, 1)
    )
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return {
        "ratio": cpu if load > 1.5 else wall,  # on a busy machine the clock measures the others
        "wall_ratio": wall,
        "cpu_ratio": cpu,
        "program_seconds": statistics.median(program[0] for program, _ in pairs),
        "peer_seconds": statistics.median(peer[0] for _, peer in pairs),
        "load_per_core": load,
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="25 rounds instead of 7")
    rounds = 25 if parser.parse_args().full else 7
    probe = json.loads(
        subprocess.run(
            [sys.executable, "-c", PROBE], check=True, capture_output=True, text=True
        ).stdout
    )
    numbers = {name: round(value, 4) for name, value in measure_pairs(rounds).items()}
    print(
        json.dumps(
            {
                "id": "C1",
                "what": "alexnet --help / python -c 'import click'",
                "rounds": rounds,
                **numbers,
                **probe,
                "heavy_modules": len(probe["loaded"]),
            }
        )
    )


if __name__ == "__main__":
    main()
