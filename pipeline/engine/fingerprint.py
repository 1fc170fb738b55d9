"""The fingerprint of a stage: a hash of everything that can change its numbers.

code <module>      the stage's module and every pipeline module that it imports, without
                   comments and docstrings
package <name>     versions of the libraries that compute, some only where a setting chooses them
setting <name>     the stage's section of the settings
input <stage>      the identity of each record that it reads
source <name>      what it reads from outside, such as a folder's files
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeGuard

from pipeline.artifacts import digest_of

# Versions of these change what a stage computes, so they are part of a stage's code.
NUMERIC_PACKAGES = ("tensorflow", "keras", "numpy")
# Rooms that carry values to a stage, or only draw and word what it found: they cannot change what
# it computes.
FRAME = frozenset(
    {"arrays", "artifacts", "config", "engine", "errors", "files", "image_size", "reports"}
)


@dataclass(frozen=True)
class Fingerprint:
    """Everything that decides a stage's result: `part` -> digest or value."""

    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the stage's folder."""
        return digest_of(self.parts)[:12]

    def differences(self, earlier: Mapping[str, Any]) -> tuple[str, ...]:
        """Say in words what differs from the fingerprint of an earlier result."""
        names = sorted(self.parts.keys() | earlier.keys())
        return tuple(
            _difference(name, earlier.get(name), self.parts.get(name))
            for name in names
            if earlier.get(name) != self.parts.get(name)
        )

    def differs_in_code_alone(self, earlier: Mapping[str, Any]) -> bool:
        """Return whether all that differs from an earlier fingerprint is code or a library."""
        names = self.parts.keys() | earlier.keys()
        changed = {name for name in names if earlier.get(name) != self.parts.get(name)}
        return all(name.partition(" ")[0] in ("code", "package") for name in changed)


def _difference(name: str, before: Any, now: Any) -> str:
    kind, _, what = name.partition(" ")
    if kind in ("setting", "package"):
        return f"{name} {before} -> {now}"
    if before is None or now is None:
        return f"{name} {'is new' if before is None else 'is gone'}"
    return f"{kind} {what} changed"


def _module_file(module: str) -> Path | None:
    """Return the source file of one of our modules, without importing it; None if not a module."""
    path = Path(__file__).parents[2].joinpath(*module.split("."))
    return next(
        (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None
    )


@functools.cache
def parse_source(file: Path) -> tuple[str, frozenset[str]]:
    """Return the digest of a source file, comments and docstrings aside, and what it imports.

    Imports under `if TYPE_CHECKING:` count for nothing: they never happen.
    """
    tree = ast.parse(file.read_bytes())
    imports: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports.update({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})
        elif (
            isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
        if _is_for_types_alone(node):
            node.body = [ast.Pass()]
        waiting.extend(ast.iter_child_nodes(node))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], frozenset(imports)


def _is_for_types_alone(node: ast.AST) -> TypeGuard[ast.If]:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def source_digest(module: str) -> str:
    """Return the digest of a module's source, comments and docstrings aside."""
    file = _module_file(module)
    if file is None:
        raise ModuleNotFoundError(module)
    return parse_source(file)[0]


@functools.cache
def code_parts(module: str, left_out: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return `code <module>` and `package <name>` parts for a module and all that it imports.

    Args:
        module: dotted name of a module of the pipeline.
        left_out: modules that are no part, with what they alone import: registries, of which only
            the chosen row counts, and modules without effect on the numbers.
    """
    parts: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _module_file(name)
        if (
            file is None
            or name in left_out
            or name.split(".")[1] in FRAME
            or f"code {name}" in parts
        ):
            continue
        parts[f"code {name}"], imports = parse_source(file)
        waiting.extend(other for other in imports if other.startswith("pipeline."))
    python = {"package python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    return parts | package_parts(NUMERIC_PACKAGES) | python


def package_parts(packages: Iterable[str]) -> dict[str, str]:
    """Return the `package <name>` parts for the installed versions of libraries."""
    return {f"package {package}": metadata.version(package) for package in packages}
