"""The rollback: an earlier version becomes the champion again. It needs no TensorFlow."""

from __future__ import annotations

from pipeline.errors import ConfigError, GateError
from pipeline.release.commit import get_user_and_host
from pipeline.release.package import open_version
from pipeline.tracking.registry import WITHDRAWN_TAG, Aliases, Registry, Version


def roll_back(registry: Registry, to: str | None) -> tuple[str, Version]:
    """Make an earlier version the champion again.

    The version that was the champion is marked as withdrawn if it is the newer one. Killed
    anywhere, the same call does the rest; called twice it does not go forward again.

    Args:
        registry: of the model.
        to: number of the version. None: the one that `previous` names.

    Returns:
        The number of the version that was the champion, and the version that is.

    Raises:
        ConfigError: there is no such version, or it is the champion.
        GateError: it never passed the gate.
        CheckpointError: its files are not those that were released.
    """
    with registry.lock():
        aliases = registry.read_aliases()
        target = _find_target(registry, aliases, to)
        open_version(target, registry.config, registry.workdir)
        if aliases.champion and int(target.number) < int(aliases.champion):
            registry.set_tags(
                aliases.champion, {WITHDRAWN_TAG: "yes", "withdrawn_by": get_user_and_host()}
            )
        reason = (
            f"{get_user_and_host()} rolled back to it from version {aliases.champion or 'none'}"
        )
        registry.set_tags(
            target.number,
            {WITHDRAWN_TAG: "no", "decision": "rolled back to", "decision_reason": reason},
        )
        registry.move_champion(target.number, expected=aliases.champion)
    return aliases.champion, target


def _find_target(registry: Registry, aliases: Aliases, to: str | None) -> Version:
    """Return the version to roll back to."""
    target = registry.read_version(to or aliases.previous)
    if target is None or target.number == aliases.champion:
        what = (
            f"Version {to} is {'the champion already' if target else 'not there'}"
            if to
            else "There is no version to roll back to"
        )
        known = ", ".join(
            item.number
            for item in registry.list_versions()
            if item.gate == "passed" and item.number != aliases.champion
        )
        raise ConfigError(
            what,
            expected="one that passed the gate and is not the champion of"
            f" {registry.name}: {known or 'there is none'}",
            received=f"champion {aliases.champion or 'none'}",
            hint="`alexnet model list` shows them",
        )
    if target.withdrawn and not to:
        raise ConfigError(
            f"Version {target.number}, the previous champion, was withdrawn",
            expected="a version that was not withdrawn",
            hint=f"Name one: `alexnet model rollback {target.number}` releases it all the same;"
            " `alexnet model list` shows the others",
        )
    if target.gate != "passed":
        why = target.tags.get("decision_reason", "it was not judged")
        raise GateError(
            f"Version {target.number} of {registry.name} never passed the gate ({why})",
            expected="one that did",
            hint="`alexnet model list` shows them",
        )
    return target
