"""Paired measurements: one process per variant, measured in turns A B C C B A."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


def read_cpu_seconds() -> float:
    """Return the user and system seconds of this process and its living children."""
    waiting, total = [os.getpid()], 0.0
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            fields = process.joinpath("stat").read_text().rpartition(")")[2].split()
            waiting += [
                int(child)
                for task in process.joinpath("task").iterdir()
                for child in task.joinpath("children").read_text().split()
            ]
        except OSError:  # ended meanwhile
            continue
        total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def serve_variant(variant: Callable[[], int]) -> None:
    """Answer each line of standard input with one measured call of a variant.

    Args:
        variant: returns the number of items that it did.
    """
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print
    variant()  # warm up: compile, open files, fill caches
    print("ready", file=output, flush=True)
    for _ in sys.stdin:
        cpu, wall = read_cpu_seconds(), time.perf_counter()
        items = variant()
        wall, cpu = time.perf_counter() - wall, read_cpu_seconds() - cpu
        print(
            json.dumps({"wall": items / wall, "cpu": items / max(cpu, 1 / TICKS)}),
            file=output,
            flush=True,
        )


class Worker:
    """A process of this script that runs one variant when it is asked to."""

    def __init__(self, script: str, name: str, arguments: list[str]):
        command = [sys.executable, script, "--worker", name, *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready = self._read_answer() == "ready"

    def _read_answer(self) -> str:
        return (self._process.stdout.readline() if self._process.stdout else "").strip()

    def measure(self) -> dict[str, float]:
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return json.loads(self._read_answer())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)


def alternate_variants(
    script: str, names: list[str], rounds: int, arguments: list[str]
) -> dict[str, dict[str, float]]:
    """Return items per wall second and per CPU second of each variant, medians over rounds.

    A variant that cannot start is left out.
    """
    workers = {name: Worker(script, name, arguments) for name in names}
    alive = [name for name in names if workers[name].ready]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in alive}
    for turn in range(rounds):
        for name in alive if turn % 2 == 0 else alive[::-1]:
            measured[name].append(workers[name].measure())
    for worker in workers.values():
        worker.close()
    return {
        name: {key: statistics.median(item[key] for item in items) for key in ("wall", "cpu")}
        for name, items in measured.items()
    }


def compute_ratio(rates: dict[str, dict[str, float]], ours: str, peer: str) -> Any:
    """Return ours / peer, or `skipped` if either is missing.

    By the clock on a quiet machine, by CPU seconds on a busy one.
    """
    if ours not in rates or peer not in rates:
        return "skipped"
    by = "cpu" if os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1) else "wall"
    return round(rates[ours][by] / rates[peer][by], 3)


def print_rows(pairs: dict[str, tuple[str, str]], rates: dict[str, dict[str, float]]) -> None:
    """Print one JSON object for each pair of variants."""
    for name, (left, right) in pairs.items():
        rated = {
            which: {key: round(value, 1) for key, value in rates[which].items()}
            for which in (left, right)
            if which in rates
        }
        print(
            json.dumps(
                {
                    "id": name,
                    "what": f"{left} / {right}",
                    "ratio": compute_ratio(rates, left, right),
                    "images_per_second": rated,
                }
            )
        )
