"""What the last command in a work directory selected: where later commands go on from.

`<workdir>/current.json` holds the recipe, for each stage the folder of its selected result and the
settings that it was made with, and the folder of the last result of each stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.resolution import field_names
from pipeline.engine.stage import Stage
from pipeline.files import write_text

_NOTHING: Mapping[str, Any] = {"recipe": None, "stages": {}, "last": {}}


class Selection:
    """The selection of a work directory, read anew at each question.

    Args:
        stages: in the order in which they run.
        workdir: the work directory.
    """

    def __init__(self, stages: Sequence[Stage], workdir: Path):
        self._stages = tuple(stages)
        self._file = workdir / "current.json"

    def read(self) -> dict[str, Any]:
        """Return `recipe`, `stages` (name: `directory`, `settings`) and `last` (name: folder)."""
        try:
            current = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return dict(_NOTHING)
        return {**_NOTHING, **current} if _is_selection(current) else dict(_NOTHING)

    def selected_folder(self, stage: str) -> str | None:
        """Return the name of the folder of a stage's selected result, or None."""
        folder = self.read()["stages"].get(stage, {}).get("directory")
        return folder if isinstance(folder, str) else None

    def last_folder(self, stage: str) -> str | None:
        """Return the name of the folder of a stage's last result, or None."""
        folder = self.read()["last"].get(stage)
        return folder if isinstance(folder, str) else None

    def recall_settings(self, names: Sequence[str] = ()) -> tuple[str | None, dict[str, Any]]:
        """Return the recipe and the settings of the stages before the first of `names`.

        Without names, of every stage. A command that begins at the beginning recalls nothing.
        """
        order = [item.name for item in self._stages]
        first = min((order.index(name) for name in names), default=len(order))
        current = self.read()
        settings: dict[str, Any] = {}
        for name in order[:first]:
            settings |= current["stages"].get(name, {}).get("settings", {})
        # An earlier version of the program may have had others.
        known = {name: value for name, value in settings.items() if name in field_names()}
        return (current["recipe"] if first else None), known

    def select(
        self,
        stage: Stage,
        folder: str,
        recipe: str,
        settings: Mapping[str, Any],
        *,
        finished: bool = False,
    ) -> None:
        """Make a result, which exists or is about to be made, the one that later commands use.

        What was made from another result of this stage is no longer selected.

        Args:
            stage: the stage that makes it.
            folder: the name of its folder.
            recipe: the recipe in force.
            settings: `section.field` -> value of the stage's section.
            finished: whether it exists, so that it is the stage's last result, too.
        """
        current = self.read()
        entry = {"directory": folder, "settings": dict(settings)}
        lost = self._invalidated_by(stage, entry, recipe, current)
        kept = {name: value for name, value in current["stages"].items() if name not in lost}
        selected = {
            "recipe": recipe,
            "stages": kept | {stage.name: entry},
            "last": current["last"] | ({stage.name: folder} if finished else {}),
        }
        if selected != current:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._file, json.dumps(selected, indent=1))

    def rename_result(self, stage: str, before: str, after: str) -> None:
        """Follow a result that is now under another folder's name; what was made from it stays."""
        current = self.read()
        entry = current["stages"].get(stage)
        if entry is not None and entry.get("directory") == before:
            current["stages"] = current["stages"] | {stage: entry | {"directory": after}}
        if current["last"].get(stage) == before:
            current["last"] = current["last"] | {stage: after}
        write_text(self._file, json.dumps(current, indent=1))

    def _invalidated_by(
        self, stage: Stage, entry: Mapping[str, Any], recipe: str, current: Mapping[str, Any]
    ) -> set[str]:
        """Return the names of the stages whose selected results do not belong to this one."""
        if current["recipe"] != recipe:
            order = [other.name for other in self._stages]
            return set(order[order.index(stage.name) :])
        return set() if current["stages"].get(stage.name) == entry else self._made_from(stage)

    def _made_from(self, stage: Stage) -> set[str]:
        """Return the names of the stages that take what a stage makes, directly or not."""
        users = [other for other in self._stages if stage.output in other.inputs.values()]
        return {user.name for user in users}.union(*(self._made_from(user) for user in users))


def _is_selection(value: object) -> bool:
    """Return whether a JSON value has the shape of `current.json`."""
    if not isinstance(value, dict):
        return False
    stages, last = value.get("stages", {}), value.get("last", {})
    return (
        isinstance(stages, dict)
        and isinstance(last, dict)
        and all(isinstance(entry, dict) for entry in stages.values())
    )
