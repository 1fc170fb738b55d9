"""Figures of the structure of `pipeline/`, from its text and syntax trees; house.py prints them."""

from __future__ import annotations

import ast
import functools
import itertools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WIDTH = 100  # columns of a line that is not too long
FORMATTED_WIDTH = 88  # at one width, lengths do not depend on how wide the authors' lines are
LARGE_FILE, VERY_LARGE_FILE = 400, 600
LONG_FUNCTION = 60
SHARED_LINES = 6  # fewer are alike by chance
SHOWN = 5
CHECKERS_ONLY = ("TYPE_CHECKING", "typing.TYPE_CHECKING")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Number = int | float | None  # None: not measured
Figures = dict[str, Number | dict[str, Number]]


@dataclass(frozen=True)
class SourceFile:
    """A Python file; `path` is relative to the checkout."""

    path: Path
    text: str

    @functools.cached_property
    def lines(self) -> list[str]:
        """Return the lines without their ends."""
        return self.text.splitlines()

    @functools.cached_property
    def tree(self) -> ast.Module | None:
        """Return the syntax tree, or None where the file is not valid Python."""
        try:
            return ast.parse(self.text)
        except SyntaxError:
            return None

    @functools.cached_property
    def nodes(self) -> list[ast.AST]:
        """Return every node of the tree."""
        return list(ast.walk(self.tree)) if self.tree else []

    @property
    def functions(self) -> list[Function]:
        """Return functions and methods, also those inside functions."""
        return [node for node in self.nodes if isinstance(node, Function)]

    @property
    def module(self) -> str:
        """Return the dotted name; that of a folder for its `__init__.py`."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def folder(self) -> str:
        """Return the folder of `pipeline/` that the file lies in, or `pipeline` itself."""
        return "/".join(self.path.parts[: 2 if len(self.path.parts) > 2 else 1])


def read_sources(checkout: Path, folder: str) -> list[SourceFile]:
    """Return the Python files below a folder of a checkout, sorted by path."""
    paths = sorted((checkout / folder).rglob("*.py"))
    return [SourceFile(path.relative_to(checkout), path.read_text("utf-8")) for path in paths]


def percent_of(part: int, whole: int) -> float:
    """Return the percentage, 0 of nothing."""
    return round(100 * part / whole, 1) if whole else 0.0


def short_name(module: str) -> str:
    """Return a module's name without the package that all share."""
    return module.removeprefix("pipeline.")


# -- size ------------------------------------------------------------------------------------------


def count_lines(files: list[SourceFile], longer_than: int = -1) -> int:
    """Return the number of lines, or of those that are longer than a number of columns."""
    return sum(len(line) > longer_than for file in files for line in file.lines)


def measure_size(trees: dict[str, list[SourceFile]], formatted: list[SourceFile]) -> Figures:
    """Return the numbers of files and lines, the large files and the long lines."""
    code_and_tests = {name: trees[name] for name in ("pipeline", "tests")}
    lengths = {
        str(file.path): len(file.lines) for files in code_and_tests.values() for file in files
    }
    large = [name for name in lengths if lengths[name] > LARGE_FILE]
    large.sort(key=lambda name: (-lengths[name], name))
    very_large = sum(lengths[name] > VERY_LARGE_FILE for name in large)
    lines: dict[str, Number] = {f"in {name}": count_lines(trees[name]) for name in code_and_tests}
    lines[f"in pipeline at {FORMATTED_WIDTH} columns"] = count_lines(formatted) or None
    return {
        "files": {f"in {name}": len(files) for name, files in code_and_tests.items()},
        "lines": lines,
        f"lines_over_{WIDTH}_columns": {
            f"in {name}": count_lines(files, longer_than=WIDTH) for name, files in trees.items()
        },
        f"files_over_{LARGE_FILE}_lines": len(large),
        f"files_over_{VERY_LARGE_FILE}_lines": very_large,
        "large_files_and_their_lines": {name: lengths[name] for name in large},
        "files_that_are_not_valid_python": sum(file.tree is None for file in trees["pipeline"]),
    }


# -- functions -------------------------------------------------------------------------------------


def function_length(function: Function) -> int:
    """Return the number of lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def ninetieth_percentile(values: list[int]) -> int:
    """Return the smallest value that nine tenths of them do not exceed."""
    return sorted(values)[math.ceil(0.9 * len(values)) - 1] if values else 0


def measure_functions(pipeline: list[SourceFile], formatted: list[SourceFile]) -> Figures:
    """Return the profile of the lengths at one width, and the longest functions as written."""
    lengths = [function_length(function) for file in formatted for function in file.functions]
    written = [
        (function_length(function), f"{file.path}:{function.lineno} {function.name}")
        for file in pipeline
        for function in file.functions
    ]
    longest = sorted(written, key=lambda item: (-item[0], item[1]))[:SHOWN]
    over = sum(length > LONG_FUNCTION for length in lengths)
    return {
        "functions_and_methods": len(lengths),
        "median_lines": statistics.median(lengths) if lengths else 0,
        "90th_percentile_of_lines": ninetieth_percentile(lengths),
        f"percent_over_{LONG_FUNCTION}_lines": percent_of(over, len(lengths)),
        "longest_as_written": {name: length for length, name in longest},
    }


# -- names -----------------------------------------------------------------------------------------


def is_single_word(name: str) -> bool:
    """Return whether a name is one word, whatever underscores stand before it."""
    return "_" not in name.lstrip("_")


def is_dunder(name: str) -> bool:
    """Return whether a name is Python's own, such as `__init__`."""
    return name.startswith("__") and name.endswith("__")


def defined_names(statement: ast.stmt) -> list[str]:
    """Return the names that a top-level statement defines; imports define none."""
    if isinstance(statement, Function | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
    stored = [node for target in targets for node in ast.walk(target)]
    names = [node for node in stored if isinstance(node, ast.Name)]
    return [name.id for name in names if isinstance(name.ctx, ast.Store)]


def names_and_modules(files: list[SourceFile], kind: type[ast.stmt]) -> dict[str, list[str]]:
    """Return each top-level name that a kind of statement defines, with the modules that do."""
    modules: dict[str, set[str]] = defaultdict(set)
    for file in files:
        for statement in file.tree.body if file.tree else []:
            if isinstance(statement, kind):
                for name in defined_names(statement):
                    modules[name].add(short_name(file.module))
    modules.pop("__all__", None)
    return {name: sorted(modules[name]) for name in sorted(modules)}


def defined_twice(names: dict[str, list[str]]) -> dict[str, Number]:
    """Return the names that several modules define, with these modules and their number."""
    several = {name: modules for name, modules in names.items() if len(modules) > 1}
    return {f"{name}: {', '.join(modules)}": len(modules) for name, modules in several.items()}


def measure_names(pipeline: list[SourceFile]) -> Figures:
    """Return how many names are single words, and which ones stand for several things."""
    functions = [function.name for file in pipeline for function in file.functions]
    own = [name for name in functions if not is_dunder(name)]
    single = sum(map(is_single_word, own))
    names = names_and_modules(pipeline, ast.stmt)
    twice = defined_twice(names)
    classes = defined_twice(names_and_modules(pipeline, ast.ClassDef))
    return {
        "percent_of_functions_named_by_one_word": percent_of(single, len(own)),
        "distinct_top_level_names": len(names),
        "top_level_names_in_several_modules": len(twice),
        "percent_of_top_level_names_in_several_modules": percent_of(len(twice), len(names)),
        "duplicated_top_level_names": twice,
        "class_names_in_several_modules": len(classes),
        "duplicated_class_names": classes,
    }


# -- types -----------------------------------------------------------------------------------------


def parameters_of(function: Function) -> list[ast.arg]:
    """Return the parameters, without `self` and `cls`."""
    arguments = function.args
    positional = arguments.posonlyargs + arguments.args
    if positional and positional[0].arg in ("self", "cls"):
        positional = positional[1:]
    rest = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return positional + arguments.kwonlyargs + rest


def is_bare_any(parameter: ast.arg) -> bool:
    """Return whether an annotation is `Any` and nothing else."""
    annotation = parameter.annotation
    return annotation is not None and ast.unparse(annotation).strip("'") in ("Any", "typing.Any")


def measure_types(pipeline: list[SourceFile]) -> Figures:
    """Return how many parameters are annotated with a bare `Any`."""
    parameters: Counter[str] = Counter()
    bare: Counter[str] = Counter()
    keywords = 0
    for file in pipeline:
        for function in file.functions:
            found = parameters_of(function)
            parameters[file.folder] += len(found)
            bare[file.folder] += sum(map(is_bare_any, found))
            keywords += function.args.kwarg is not None and is_bare_any(function.args.kwarg)
    return {
        "parameters": parameters.total(),
        "parameters_that_are_any": bare.total(),
        "percent_of_parameters_that_are_any": percent_of(bare.total(), parameters.total()),
        "percent_by_folder": {
            folder: percent_of(bare[folder], parameters[folder]) for folder in sorted(parameters)
        },
        "double_star_parameters_that_are_any": keywords,
    }


# -- imports ---------------------------------------------------------------------------------------


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below a node, without what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in CHECKERS_ONLY:
            for other in child.orelse:
                yield from (other, *runtime_nodes(other))
        else:
            yield child
            yield from runtime_nodes(child)


def imported_names(file: SourceFile, node: ast.AST) -> list[str]:
    """Return the dotted names that an import asks for, `package.name` for each name it takes."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = [node.module] if node.module else []
    if node.level:
        package = file.path.parent.parts
        base = [*package[: len(package) - node.level + 1], *base]
    return [".".join([*base, alias.name]) for alias in node.names]


def import_graph(files: list[SourceFile]) -> dict[str, set[str]]:
    """Return which module imports which, also inside functions."""
    graph: dict[str, set[str]] = {file.module: set() for file in files}
    for file in files:
        for node in runtime_nodes(file.tree) if file.tree else ():
            for name in imported_names(file, node):
                module = name if name in graph else name.rpartition(".")[0]
                if module in graph and module != file.module:
                    graph[file.module].add(module)
    return graph


def reachable_from(module: str, graph: dict[str, set[str]]) -> set[str]:
    """Return the modules that a module imports, directly or not."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        fresh = graph[waiting.pop()] - found
        found |= fresh
        waiting.extend(fresh)
    return found


def circles_in(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of two or more modules."""
    reach = {module: reachable_from(module, graph) for module in graph}
    circles = {
        tuple(sorted(other for other in reach[module] if module in reach[other]))
        for module in graph
        if module in reach[module]
    }
    return [list(circle) for circle in sorted(circles)]


def measure_imports(pipeline: list[SourceFile]) -> Figures:
    """Return the circles inside each folder, and those that cross from folder to folder."""
    graph = import_graph(pipeline)
    folder_of = {file.module: file.folder for file in pipeline}
    circles: list[tuple[str, list[str]]] = []
    for folder in sorted(set(folder_of.values())):
        inside = {module for module in graph if folder_of[module] == folder}
        within = {module: graph[module] & inside for module in inside}
        circles += [(folder, circle) for circle in circles_in(within)]
    crossing = [
        ("across folders", circle)
        for circle in circles_in(graph)
        if len({folder_of[module] for module in circle}) > 1
    ]
    return {
        "modules": len(graph),
        "imports_between_modules": sum(map(len, graph.values())),
        "circles_inside_folders": len(circles),
        "modules_in_circles_inside_folders": sum(len(circle) for _, circle in circles),
        "circles_across_folders": len(crossing),
        "circles_and_their_modules": {
            f"{where}: {', '.join(map(short_name, circle))}": len(circle)
            for where, circle in circles + crossing
        },
    }


# -- duplicated code -------------------------------------------------------------------------------


def significant_lines(file: SourceFile) -> list[tuple[str, str]]:
    """Return place and stripped text of the lines that are code or docstrings, imports aside."""
    imports = {
        number
        for node in file.nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    stripped = ((number, line.strip()) for number, line in enumerate(file.lines, 1))
    return [
        (f"{file.path}:{number}", line)
        for number, line in stripped
        if line and not line.startswith("#") and number not in imports
    ]


def equal_windows(lines: list[tuple[str, str] | None]) -> set[tuple[int, int]]:
    """Return the pairs of positions from which on `SHARED_LINES` lines are equal."""
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for start in range(len(lines) - SHARED_LINES + 1):
        window = lines[start : start + SHARED_LINES]
        if None not in window:
            places[tuple(line[1] for line in window if line)].append(start)
    pairs = (pair for starts in places.values() for pair in itertools.combinations(starts, 2))
    return {(first, second) for first, second in pairs if second - first >= SHARED_LINES}


def duplicated_places(files: list[SourceFile]) -> dict[str, Number]:
    """Return each pair of places that share lines, with their number, the largest first."""
    lines: list[tuple[str, str] | None] = []
    for file in files:
        lines += significant_lines(file)
        lines.append(None)  # nothing is shared across the end of a file
    equal = equal_windows(lines)
    found: dict[str, int] = {}
    for first, second in sorted(equal):
        if (first - 1, second - 1) in equal:
            continue
        length = SHARED_LINES
        while (first + length - SHARED_LINES + 1, second + length - SHARED_LINES + 1) in equal:
            length += 1
        places = " = ".join(line[0] for line in (lines[first], lines[second]) if line)
        found[places] = min(length, second - first)  # places do not overlap
    return {places: found[places] for places in sorted(found, key=lambda item: -found[item])}


def measure_duplicates(pipeline: list[SourceFile], formatted: list[SourceFile]) -> Figures:
    """Return the pairs of places that share code, as written and at one width."""
    written = duplicated_places(pipeline)
    narrow = len(duplicated_places(formatted)) if formatted else None
    return {
        f"pairs_of_places_that_share_{SHARED_LINES}_lines": len(written),
        f"pairs_at_{FORMATTED_WIDTH}_columns": narrow,
        "largest_and_their_lines": dict(list(written.items())[:SHOWN]),
    }
