"""Run every bench_*.py of this folder and print one JSON object per line.

`--check` exits 1 when a benchmark misses its target.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run_benchmark(script: Path, size: list[str]) -> list[dict[str, Any]]:
    """Return the objects that a benchmark prints; one that fails is an object that says so."""
    done = subprocess.run(
        [sys.executable, str(script), *size],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        check=False,
    )
    if done.returncode:
        return [
            {
                "id": script.stem,
                "failed": (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1],
            }
        ]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def list_missed_targets(results: list[dict[str, Any]], targets: dict[str, Any]) -> list[str]:
    """Say which targets are not met; one that was not measured is not met either."""
    by_id = {result["id"]: result for result in results}
    sentences = [
        f"{result['id']} failed: {result['failed']}" for result in results if "failed" in result
    ]
    for name, fields in targets.items():
        for field, limit in fields.items():
            value = by_id.get(name, {}).get(field)
            if value is None or value == "skipped":
                sentences.append(f"{name}.{field} was {value or 'not measured'}")
            elif "at_most" in limit and not value <= limit["at_most"]:
                sentences.append(f"{name}.{field} is {value}, expected at most {limit['at_most']}")
            elif "at_least" in limit and not value >= limit["at_least"]:
                sentences.append(
                    f"{name}.{field} is {value}, expected at least {limit['at_least']}"
                )
    return sentences


def main() -> int:
    """Print all results; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few minutes at most (the default)")
    size.add_argument("--full", action="store_true", help="more rounds")
    parser.add_argument(
        "--check",
        nargs="?",
        type=Path,
        const=HERE / "targets.toml",
        help="compare with a file of targets [targets.toml]",
    )
    options = parser.parse_args()
    results = []
    for script in sorted(HERE.glob("bench_*.py")):
        for result in run_benchmark(script, ["--full"] if options.full else []):
            results.append(result)
            print(json.dumps(result), flush=True)
    if options.check is None:
        return int(any("failed" in result for result in results))
    sentences = list_missed_targets(
        results, tomllib.loads(options.check.read_text(encoding="utf-8"))
    )
    for sentence in sentences:
        print(f"Missed: {sentence}.", file=sys.stderr)
    return int(bool(sentences))


if __name__ == "__main__":
    sys.exit(main())
