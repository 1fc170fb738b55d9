"""Print figures that describe the structure of `pipeline/`, so that a trend can be seen; no gate.

`house.py PATH` measures another checkout, `house.py --compare PATH` prints it beside this one.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

from _structure import (
    FORMATTED_WIDTH,
    WIDTH,
    Figures,
    Number,
    SourceFile,
    measure_duplicates,
    measure_functions,
    measure_imports,
    measure_names,
    measure_size,
    measure_types,
    names_and_modules,
    read_sources,
    short_name,
)

VALUE_WIDTH = 10
LISTED_ON_DEMAND = "duplicated_top_level_names"

# Run in a process of its own, as two checkouts cannot be imported into one.
FINGERPRINT_PROBE = """
import importlib, json, sys
engine, stages = sys.argv[1], json.loads(sys.argv[2])
code_parts = importlib.import_module(engine).code_parts
found = {
    module: sorted(code_parts(module, frozenset(left_out)) if left_out else code_parts(module))
    for module, left_out in stages.items()
}
print(json.dumps(found))
"""

House = dict[str, Figures]
Row = tuple[str, str]  # a figure, and what it is of


def last_line(text: str) -> str:
    """Return the last line of what a failed program said."""
    return (text.strip() or "no message").splitlines()[-1]


def read_formatted(checkout: Path) -> tuple[list[SourceFile], str]:
    """Return `pipeline/` formatted at one width, or nothing and what went wrong."""
    arguments = ["format", "--isolated", "--no-cache", "--line-length", str(FORMATTED_WIDTH)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "pipeline"
        shutil.copytree(checkout / "pipeline", copy, ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, "-m", "ruff", *arguments, str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return [], last_line(done.stderr)
        return read_sources(Path(folder), "pipeline"), ""


def stage_decorators(file: SourceFile) -> list[ast.Call]:
    """Return the decorators `@stage(...)` of a module's functions."""
    decorators = (decorator for function in file.functions for decorator in function.decorator_list)
    called = [item for item in decorators if isinstance(item, ast.Call)]
    return [item for item in called if ast.unparse(item.func).rpartition(".")[2] == "stage"]


def left_out_modules(decorator: ast.Call) -> list[str]:
    """Return the modules that a stage declares to be no part of its fingerprint."""
    options = (item for item in decorator.keywords if item.arg in ("registries", "without_effect"))
    values = (node for option in options for node in ast.walk(option.value))
    return [str(node.value) for node in values if isinstance(node, ast.Constant)]


def measure_fingerprints(checkout: Path, pipeline: list[SourceFile]) -> Figures:
    """Return how many modules the fingerprint of each stage module covers, as its engine says."""
    stages = {
        file.module: left_out_modules(decorator)
        for file in pipeline
        for decorator in stage_decorators(file)
    }
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    # Its place differs from one version of the engine to another.
    engine = names_and_modules(pipeline, ast.FunctionDef).get("code_parts", ["engine"])[0]
    command = [sys.executable, "-c", FINGERPRINT_PROBE, f"pipeline.{engine}", json.dumps(stages)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=checkout, env=environment, check=False
    )
    if done.returncode:
        return {"not_measured": {last_line(done.stderr): None}}
    covered: dict[str, Number] = {
        short_name(module): sum(part.startswith("code ") for part in parts)
        for module, parts in json.loads(done.stdout).items()
    }
    return {"modules_covered": covered, "modules_in_pipeline": len(pipeline)}


def measure_house(checkout: Path) -> House:
    """Return every figure of a checkout."""
    trees = {name: read_sources(checkout, name) for name in ("pipeline", "tests", "benchmarks")}
    pipeline = trees["pipeline"]
    formatted, problem = read_formatted(checkout)
    functions = measure_functions(pipeline, formatted)
    if problem:
        functions = {"not_measured": {problem: None}}
    return {
        "size": measure_size(trees, formatted),
        f"functions_at_{FORMATTED_WIDTH}_columns": functions,
        "names": measure_names(pipeline),
        "types": measure_types(pipeline),
        "imports": measure_imports(pipeline),
        "fingerprints": measure_fingerprints(checkout, pipeline),
        "duplicated_code": measure_duplicates(pipeline, formatted),
    }


def flat_rows(figures: Figures, *, verbose: bool) -> dict[Row, Number]:
    """Return the rows of a part of the table, each named by its figure and what it is of."""
    rows: dict[Row, Number] = {}
    for name, value in figures.items():
        if not isinstance(value, dict):
            rows[name, ""] = value
        elif value and (verbose or name != LISTED_ON_DEMAND):
            rows |= {(name, item): number for item, number in value.items()}
    return rows


def merged_keys(columns: list[dict[Row, Number]]) -> list[Row]:
    """Return the rows that any column has, those of one figure together."""
    keys = list(dict.fromkeys(key for column in columns for key in column))
    order = {name: place for place, name in enumerate(dict.fromkeys(name for name, _ in keys))}
    return sorted(keys, key=lambda key: order[key[0]])


def value_text(value: Number) -> str:
    """Return a number as the table shows it."""
    if value is None:
        return "-"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def row_lines(label: str, indent: str, values: list[str]) -> list[str]:
    """Return a row; a label that is too long goes on in the next lines."""
    room = WIDTH - VALUE_WIDTH * len(values)
    first, *rest = textwrap.wrap(
        label,
        room - 1,
        initial_indent=indent,
        subsequent_indent=indent + "    ",
        break_on_hyphens=False,
    )
    return [first.ljust(room) + "".join(value.rjust(VALUE_WIDTH) for value in values), *rest]


def table_lines(houses: dict[str, House], *, verbose: bool) -> Iterator[str]:
    """Yield the lines of the table, a column for each checkout."""
    if len(houses) > 1:
        yield from row_lines("figure", "", list(houses))
    for part in next(iter(houses.values())):
        columns = [flat_rows(house[part], verbose=verbose) for house in houses.values()]
        yield from ("", part.replace("_", " "))
        headed = ""
        for name, item in merged_keys(columns):
            label = name.replace("_", " ")
            if item and name != headed:
                yield f"  {label}"
                headed = name
            values = [value_text(column.get((name, item))) for column in columns]
            yield from row_lines(item or label, "    " if item else "  ", values)


def parse_arguments() -> argparse.Namespace:
    """Return what the command line says."""
    here = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", nargs="?", type=Path, default=here, help="[this one]")
    parser.add_argument(
        "--compare", type=Path, metavar="PATH", help="a checkout to show as `before`"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--verbose", action="store_true", help="list the duplicated names too")
    options = parser.parse_args()
    for path in filter(None, (options.checkout, options.compare)):
        if not (path / "pipeline").is_dir():
            parser.error(f"{path} has no folder `pipeline`; expected a checkout of this project")
    return options


def main() -> None:
    """Measure one checkout or two, and print the figures."""
    options = parse_arguments()
    measured = measure_house(options.checkout.resolve())
    houses = {"": measured}
    if options.compare:
        houses = {"before": measure_house(options.compare.resolve()), "after": measured}
    if options.json:
        print(json.dumps(houses if options.compare else measured))
    else:
        print("\n".join(table_lines(houses, verbose=options.verbose)).strip("\n"))


if __name__ == "__main__":
    main()
