"""What the registry is told of a release: a version, the gate's word on it, and the alias.

And the way back.

Nothing here knows a network: a function judges. So every order of writes can be tried, and a way
back needs no TensorFlow.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.artifacts import GateCheck
from pipeline.config.release import ReleaseConfig
from pipeline.errors import BusyError, CheckpointError, ConfigError, GateError
from pipeline.release.package import Release, open_version
from pipeline.tracking.registry import (
    CANDIDATE,
    GATE_TAG,
    WITHDRAWN_TAG,
    Aliases,
    Registry,
    Version,
)

_ROUNDS = 20  # champions that may come between judging and moving before this gives up


@dataclass(frozen=True)
class Verdict:
    """What the gate found on `images` test images.

    `test_images_note` says which these are, `advice` how many decide what.
    """

    checks: tuple[GateCheck, ...] = ()
    champion_top1_error: float | None = None
    advice: str = ""
    test_images_note: str = ""
    images: int = 0
    top1_error: float | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against a release, and something was looked at."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """Why not, or that nothing speaks against it."""
        failed = [check.text for check in self.checks if not check.passed]
        return " ".join(failed) or f"all {len(self.checks)} checks passed"


@dataclass(frozen=True)
class Offer:
    """A release that is offered to the registry, with the tags of its version and the MLflow run that trained it, if that is known."""

    release: Release
    tags: Mapping[str, str]
    run_id: str | None = None


@dataclass(frozen=True)
class Settled:
    """What became of an offer: the outcome as in `Decision`, its version, and the champion that it was judged against."""

    outcome: Any
    reason: str
    version: str
    champion: str
    verdict: Verdict = field(default_factory=Verdict)


def settle(
    registry: Registry,
    offer: Offer,
    judged: Callable[[Version | None], Verdict],
    config: ReleaseConfig,
) -> Settled:
    """Register a release, have it judged against the champion, and make it the champion if it passes.

    Killed anywhere, the same call does the rest: a release has one version, and a version's word is
    written before the alias moves.

    Args:
        registry: of the model.
        offer: the release.
        judged: judges it against a version, or against none.
        config: `dry_run` writes nothing; `approval` lets it wait; `approve` is a person's word.

    Raises:
        BusyError: other candidates become champion all the time.
    """
    if config.dry_run:
        return _tried(registry, offer, judged, config)
    with registry.lock():
        version = _registered(registry, offer)
        registry.set_alias(CANDIDATE, version.number)
    for _ in range(_ROUNDS):
        champion = registry.read_champion()
        settled = _settled(champion, version, offer, judged, config)
        _write_word(registry, version, settled)
        if settled.outcome != "promoted":
            return settled
        with registry.lock():
            if registry.move_champion(version.number, expected=settled.champion):
                return settled
    raise BusyError(
        f"The champion of {registry.name} changed {_ROUNDS} times while version {version.number}"
        " was judged. Expected a quiet moment. Type the command again when fewer candidates come."
    )


def _registered(registry: Registry, offer: Offer) -> Version:
    """Return the version that holds a release, made if there is none or if its files are not whole any more; the caller holds the lock."""
    release = offer.release
    existing = registry.find_release(release.sha256())
    if existing is not None and whole(existing, registry):
        return existing
    known = {
        "class_names": list(release.class_names),
        "sha256": release.model_sha256,
        "short_side": release.short_side,
    }
    made = registry.register(release.directory, release.image_size, known, offer.tags, offer.run_id)
    open_version(made, registry.config, registry.workdir)  # what was stored is what was judged
    return made


def whole(version: Version, registry: Registry) -> Release | None:
    """Return what a version holds, or None where its files are not those that were released."""
    try:
        return open_version(version, registry.config, registry.workdir)
    except CheckpointError:
        return None


def _settled(
    champion: Version | None,
    version: Version | None,
    offer: Offer,
    judged: Callable[[Version | None], Verdict],
    config: ReleaseConfig,
) -> Settled:
    """Return what should become of an offer while this version is the champion."""
    number, other = version.number if version else "", champion.number if champion else ""
    same = champion is not None and champion.release_sha256 == offer.release.sha256()
    if champion is not None and same and number in ("", other):
        return Settled(
            "unchanged", f"version {other} of {champion.name} is this very release", number, other
        )
    verdict = judged(None if same else champion)
    mended = (
        f"it replaces version {other}, the same release, whose files are damaged; " if same else ""
    )
    if verdict.passed and version is not None and version.withdrawn and not config.approve:
        verdict = replace(verdict, checks=(*verdict.checks, _withdrawn(version)))
    if not verdict.passed:
        return Settled("refused", verdict.reason, number, other, verdict)
    if config.approval == "required" and not config.approve:
        return Settled(
            "waiting", "it passed and waits for `alexnet promote --approve`", number, other, verdict
        )
    return Settled("promoted", mended + verdict.reason, number, other, verdict)


def _tried(
    registry: Registry,
    offer: Offer,
    judged: Callable[[Version | None], Verdict],
    config: ReleaseConfig,
) -> Settled:
    champion = registry.read_champion()
    settled = _settled(
        champion, registry.find_release(offer.release.sha256()), offer, judged, config
    )
    if settled.outcome != "promoted":
        return settled
    return Settled(
        "would promote", settled.reason, settled.version, settled.champion, settled.verdict
    )


def _withdrawn(version: Version) -> GateCheck:
    return GateCheck(
        name="withdrawn",
        passed=False,
        measured="yes",
        required="no, or --approve",
        text=(
            f"Somebody went back from version {version.number}, which is this release; `alexnet"
            " promote --approve` releases it again."
        ),
    )


def _write_word(registry: Registry, version: Version, settled: Settled) -> None:
    """Write what was decided on the version.

    One that passed once stays one that may be gone back to.
    """
    if settled.outcome == "unchanged":
        return
    failed = [check.name for check in settled.verdict.checks if not check.passed]
    gate = {"promoted": "passed", "waiting": "waiting"}.get(settled.outcome, "refused")
    word = {GATE_TAG: gate} if gate == "passed" or version.gate != "passed" else {}
    word |= {WITHDRAWN_TAG: "no"} if gate == "passed" else {}
    word |= {
        "decision": settled.outcome,
        "decision_reason": settled.reason[:1000],
        "failed_checks": json.dumps(failed),
    }
    word |= {
        "judged_against": settled.champion or "none",
        "judged_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    registry.set_tags(version.number, word | {"judged_by": _who()})


def go_back(registry: Registry, to: str | None) -> tuple[str, Version]:
    """Make an earlier version the champion again, and mark the one that was as withdrawn if it is the newer one.

    Killed anywhere, the same call does the rest; called twice it does not go forward again.

    Returns:
        The number of the version that was the champion, and the version that is.

    Raises:
        ConfigError: there is no such version, or it is the champion.
        GateError: it never passed the gate.
        CheckpointError: its files are not those that were released.
    """
    with registry.lock():
        aliases = registry.read_aliases()
        target = _earlier(registry, aliases, to)
        open_version(target, registry.config, registry.workdir)
        if aliases.champion and int(target.number) < int(aliases.champion):
            registry.set_tags(aliases.champion, {WITHDRAWN_TAG: "yes", "withdrawn_by": _who()})
        came = f"{_who()} went back to it from version {aliases.champion or 'none'}"
        registry.set_tags(
            target.number,
            {WITHDRAWN_TAG: "no", "decision": "rolled back to", "decision_reason": came},
        )
        registry.move_champion(target.number, expected=aliases.champion)
    return aliases.champion, target


def _earlier(registry: Registry, aliases: Aliases, to: str | None) -> Version:
    """Return the version to go back to, if there is one that may be."""
    target = registry.read_version(to or aliases.previous)
    if target is None or target.number == aliases.champion:
        what = (
            f"Version {to} is {'the champion already' if target else 'not there'}"
            if to
            else "There is no version to go back to"
        )
        known = ", ".join(
            item.number
            for item in registry.list_versions()
            if item.gate == "passed" and item.number != aliases.champion
        )
        raise ConfigError(
            f"{what}. Expected one that passed the gate and is not the champion of {registry.name}:"
            f" {known or 'there is none'}. Received champion {aliases.champion or 'none'}. `alexnet"
            " models` shows them."
        )
    if target.withdrawn and not to:
        raise ConfigError(
            f"Version {target.number}, the one before, was withdrawn. Expected one that was not."
            f" Received none from `previous`. Name one: `alexnet model rollback {target.number}`"
            " releases it all the same; `alexnet model list` shows the others."
        )
    if target.gate != "passed":
        why = target.tags.get("decision_reason", "it was not judged")
        raise GateError(
            f"Version {target.number} of {registry.name} never passed the gate ({why}). Expected"
            " one that did. `alexnet model list` shows them."
        )
    return target


def _who() -> str:
    return f"{os.environ.get('USER') or os.getuid()}@{os.uname().nodename}"
