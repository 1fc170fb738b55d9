"""The source of a user's function: which files it is made of, and running these very files.

    list_sources(name)      the module's file and what it imports from the same folder
    fresh_sources(name)     within it, imports run these files, whatever was imported before

Python keeps imported modules, and compiled files by their time in whole seconds. A session that
goes on while its user edits a file or changes the folder would fingerprint the new source and
build the old network. Modules of an installed package are imported as usual.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from pipeline.artifacts import file_sha256
from pipeline.engine.fingerprint import parse_source
from pipeline.errors import ConfigError

_PACKAGE = "__init__.py"
# Folders of installed packages, which do not change while a program runs.
_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
_PROGRAM = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Sources:
    """The source of a function.

    Attributes:
        root: the folder in which its top-level module or package lies.
        first: the file of the function's module.
        files: of each module by its dotted name; those that it imports from the same folder, too,
            unless it is installed.
        installed: whether it is a package's, which is not run afresh.
    """

    root: Path
    first: Path
    files: Mapping[str, Path]
    installed: bool


def find_function_file(name: str) -> tuple[Path, Path]:
    """Return root and file of the module in `package.module:function`, without importing it.

    The working directory is looked in first, then the folders of installed packages.

    Raises:
        ConfigError: the module does not exist.
    """
    module, _, function = name.partition(":")
    names = module.split(".")
    if not function.isidentifier() or not all(part.isidentifier() for part in names):
        raise ConfigError(
            f"model.network={name} names no function",
            expected="package.module:function, such as my_networks:build",
        )
    for folder in dict.fromkeys((str(Path.cwd()), *sys.path)):
        root = Path(folder).resolve()
        first = _find_module(root, module)
        if first is not None:
            return root, first
    raise ConfigError(
        f"The module {module} does not exist",
        expected=f"{'/'.join(names)}.py in the working directory, or an installed package",
        received=f"--network {name}",
    )


def list_sources(name: str) -> Sources:
    """Return what a function is made of; arguments and errors as of `find_function_file`."""
    root, first = find_function_file(name)
    installed = _is_installed(first)
    module = name.partition(":")[0]
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = None if name in files else _find_module(root, name)
        if file is None or (file.is_relative_to(_PROGRAM) and not installed):
            continue
        files[name] = file
        if not installed:
            parents = [name[:end] for end, letter in enumerate(name) if letter == "."]
            waiting.extend([*parents, *_list_imports(file, name)])
    return Sources(root, first, files, installed)


def _find_module(root: Path, name: str) -> Path | None:
    path = root.joinpath(*name.split("."))
    files = (path / _PACKAGE, path.with_name(f"{path.name}.py"))
    return next((file for file in files if file.is_file()), None)


def _is_installed(file: Path) -> bool:
    folders = {Path(sysconfig.get_path(name)).resolve() for name in _INSTALLED}
    return file.is_relative_to(_PROGRAM) or any(file.is_relative_to(folder) for folder in folders)


def describe_packages(name: str) -> dict[str, str]:
    """Return the versions of the packages that install a function's module."""
    top = name.partition(":")[0].partition(".")[0]
    packages = importlib.metadata.packages_distributions().get(top, ())
    return {package: importlib.metadata.version(package) for package in sorted(set(packages))}


def digest_own_source(file: Path) -> str:
    """Return the digest of a user's file as it is now, comments and docstrings aside."""
    try:
        return parse_source.__wrapped__(file)[0]
    except (SyntaxError, ValueError):  # building says so
        return file_sha256(file)


def _list_imports(file: Path, name: str) -> list[str]:
    """Return the dotted names of what a module imports, wherever in it; names in modules, too."""
    package = name.split(".") if file.name == _PACKAGE else name.split(".")[:-1]
    found: list[str] = []
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            others = (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
            found.extend([*([base] if base else []), *others])
    return found


@contextlib.contextmanager
def fresh_sources(sources: Sources) -> Iterator[None]:
    """Let imports run the files of a function's source, and put everything back afterwards.

    The folder of what is not installed comes first in `sys.path` meanwhile, so that a function may
    import when it is called. Not for several threads at a time.
    """
    here = [] if sources.installed else [str(sources.root)]
    finder = _Finder({} if sources.installed else sources.files)
    replaced = {
        name: module for name, module in list(sys.modules.items()) if finder.stands_for(name)
    }
    for name in replaced:
        del sys.modules[name]
    sys.path[:0] = here
    sys.meta_path.insert(0, finder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have removed it
            sys.meta_path.remove(finder)
        for folder in here:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)
        for name in [name for name in sys.modules if finder.stands_for(name)]:
            del sys.modules[name]
        sys.modules.update(replaced)


def import_sources(name: str, sources: Sources) -> ModuleType:
    """Return the module of a function, within `fresh_sources`.

    Raises:
        ConfigError: an installed module of that name was imported from somewhere else.
    """
    module = importlib.import_module(name.partition(":")[0])
    found = Path(getattr(module, "__file__", None) or "").resolve()
    if found != sources.first.resolve():
        raise ConfigError(
            f"The module {module.__name__} is imported already, from {found}",
            expected=str(sources.first),
            hint="Give the module another name, or start Python again",
        )
    return module


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of a function's source, by their dotted names."""

    def __init__(self, files: Mapping[str, Path]):
        self._files = files
        # Folders without __init__.py are found in sys.path, but not as they were imported before.
        self._folders = {
            name[:end] for name in files for end, letter in enumerate(name) if letter == "."
        } - files.keys()

    def stands_for(self, name: str) -> bool:
        """Return whether a module is one of the source's, or a folder of it."""
        return name in self._files or name in self._folders

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - of the interface
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how to load a module of the source; None for all others."""
        file = self._files.get(fullname)
        if file is None:
            return None
        folders = [str(file.parent)] if file.name == _PACKAGE else None
        return importlib.util.spec_from_file_location(
            fullname,
            file,
            loader=_SourceLoader(fullname, str(file)),
            submodule_search_locations=folders,
        )


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles a file as it is now; neither reads nor writes compiled files."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the compiled source."""
        path = self.get_filename(fullname)
        code: Any = self.source_to_code(self.get_data(path), path)
        return code
