"""The commit of a promotion to the registry: a version, the gate's verdict on it, and the alias.

Nothing here knows a network: a function judges. So every order of writes can be tested without
TensorFlow.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.artifacts import GateCheck
from pipeline.config.release import ReleaseConfig
from pipeline.errors import BusyError, CheckpointError
from pipeline.release.package import Release, open_version
from pipeline.tracking.registry import (
    CANDIDATE,
    GATE_TAG,
    WITHDRAWN_TAG,
    Registry,
    Version,
)

# Champions that may come between judging and moving the alias before this gives up.
_MAX_ROUNDS = 20

PromotionOutcome = Literal["promoted", "refused", "unchanged", "waiting", "would promote"]


@dataclass(frozen=True)
class GateVerdict:
    """The findings of the gate.

    Attributes:
        checks: all of them; empty when nothing was judged.
        champion_top1_error: on the images that it knows the classes of, in [0, 1].
        advice: how many test images decide what, in a sentence.
        test_images_note: which test images counted, in a sentence.
        images: how many these are.
        top1_error: the candidate's, in [0, 1].
    """

    checks: tuple[GateCheck, ...] = ()
    champion_top1_error: float | None = None
    advice: str = ""
    test_images_note: str = ""
    images: int = 0
    top1_error: float | None = None

    @property
    def passed(self) -> bool:
        """Whether there are checks and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """The sentences of the checks that failed, or that all passed."""
        failed = [check.text for check in self.checks if not check.passed]
        return " ".join(failed) or f"all {len(self.checks)} checks passed"


@dataclass(frozen=True)
class Offer:
    """A release that is offered to the registry.

    Attributes:
        release: the package.
        tags: of its version.
        run_id: the MLflow run that trained it. None: unknown.
    """

    release: Release
    tags: Mapping[str, str]
    run_id: str | None = None


@dataclass(frozen=True)
class CommittedPromotion:
    """The result of an offer.

    Attributes:
        outcome: as in `Decision`.
        reason: in a sentence.
        version: number of the version that holds the release; empty for none.
        champion: number of the version that it was judged against; empty for none.
        verdict: the gate's.
    """

    outcome: PromotionOutcome
    reason: str
    version: str
    champion: str
    verdict: GateVerdict = field(default_factory=GateVerdict)


def commit_promotion(
    registry: Registry,
    offer: Offer,
    judge: Callable[[Version | None], GateVerdict],
    config: ReleaseConfig,
) -> CommittedPromotion:
    """Register a release, judge it against the champion, and make it the champion if it passes.

    Killed anywhere, the same call does the rest: a release has one version, and the verdict on a
    version is written before the alias moves.

    Args:
        registry: of the model.
        offer: the release.
        judge: judges it against a version, or against none.
        config: `dry_run` writes nothing; `approval` lets it wait; `approve` is the approval.

    Raises:
        BusyError: other candidates become champion all the time.
    """
    if config.dry_run:
        return _try_promotion(registry, offer, judge, config)
    with registry.lock():
        version = _register_release(registry, offer)
        registry.set_alias(CANDIDATE, version.number)
    for _ in range(_MAX_ROUNDS):
        champion = registry.read_champion()
        decided = _decide_outcome(champion, version, offer, judge, config)
        _write_verdict(registry, version, decided)
        if decided.outcome != "promoted":
            return decided
        with registry.lock():
            if registry.move_champion(version.number, expected=decided.champion):
                return decided
    raise BusyError(
        f"The champion of {registry.name} changed {_MAX_ROUNDS} times while version"
        f" {version.number} was judged",
        expected="a champion that stays while a candidate is judged",
        hint="Type the command again when fewer candidates are promoted",
    )


def _register_release(registry: Registry, offer: Offer) -> Version:
    """Return the version that holds a release; the caller holds the lock.

    It is made if there is none, or if its files are damaged.
    """
    release = offer.release
    existing = registry.find_release(release.sha256())
    if existing is not None and open_if_intact(existing, registry):
        return existing
    known = {
        "class_names": list(release.class_names),
        "sha256": release.model_sha256,
        "short_side": release.short_side,
        "fit": release.fit,
    }
    made = registry.register(release.directory, release.image_size, known, offer.tags, offer.run_id)
    open_version(made, registry.config, registry.workdir)  # the stored files are the judged ones
    return made


def open_if_intact(version: Version, registry: Registry) -> Release | None:
    """Return what a version holds, or None where its files are not those that were released."""
    try:
        return open_version(version, registry.config, registry.workdir)
    except CheckpointError:
        return None


def _decide_outcome(
    champion: Version | None,
    version: Version | None,
    offer: Offer,
    judge: Callable[[Version | None], GateVerdict],
    config: ReleaseConfig,
) -> CommittedPromotion:
    """Return the outcome of an offer while a version is the champion."""
    number = version.number if version else ""
    other = champion.number if champion else ""
    same = champion is not None and champion.release_sha256 == offer.release.sha256()
    if champion is not None and same and number in ("", other):
        return CommittedPromotion(
            "unchanged", f"version {other} of {champion.name} is this very release", number, other
        )
    verdict = judge(None if same else champion)
    replacement = (
        f"it replaces version {other}, the same release, whose files are damaged; " if same else ""
    )
    if verdict.passed and version is not None and version.withdrawn and not config.approve:
        verdict = replace(verdict, checks=(*verdict.checks, _fail_withdrawn(version)))
    if not verdict.passed:
        return CommittedPromotion("refused", verdict.reason, number, other, verdict)
    if config.approval == "required" and not config.approve:
        return CommittedPromotion(
            "waiting", "it passed and waits for `alexnet promote --approve`", number, other, verdict
        )
    return CommittedPromotion("promoted", replacement + verdict.reason, number, other, verdict)


def _try_promotion(
    registry: Registry,
    offer: Offer,
    judge: Callable[[Version | None], GateVerdict],
    config: ReleaseConfig,
) -> CommittedPromotion:
    champion = registry.read_champion()
    version = registry.find_release(offer.release.sha256())
    decided = _decide_outcome(champion, version, offer, judge, config)
    return replace(decided, outcome="would promote") if decided.outcome == "promoted" else decided


def _fail_withdrawn(version: Version) -> GateCheck:
    return GateCheck(
        name="withdrawn",
        passed=False,
        measured="yes",
        required="no, or --approve",
        text=(
            f"A rollback left version {version.number}, which is this release; `alexnet promote"
            " --approve` releases it again."
        ),
    )


def _write_verdict(registry: Registry, version: Version, decided: CommittedPromotion) -> None:
    """Write the decision on the version.

    A version that passed once remains one that a rollback may choose.
    """
    if decided.outcome == "unchanged":
        return
    failed = [check.name for check in decided.verdict.checks if not check.passed]
    gate = {"promoted": "passed", "waiting": "waiting"}.get(decided.outcome, "refused")
    tags = {GATE_TAG: gate} if gate == "passed" or version.gate != "passed" else {}
    tags |= {WITHDRAWN_TAG: "no"} if gate == "passed" else {}
    tags |= {
        "decision": decided.outcome,
        "decision_reason": decided.reason[:1000],
        "failed_checks": json.dumps(failed),
    }
    tags |= {
        "judged_against": decided.champion or "none",
        "judged_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    registry.set_tags(version.number, tags | {"judged_by": get_user_and_host()})


def get_user_and_host() -> str:
    """Return `USER@HOST` of this process, for the tags of a version."""
    return f"{os.environ.get('USER') or os.getuid()}@{os.uname().nodename}"
