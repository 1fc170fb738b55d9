"""Measuring the claims of 2012 in a work directory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.resolution import Resolved
from pipeline.data.reference import require_source
from pipeline.data.stage import ingest
from pipeline.engine.stage import Tracker
from pipeline.errors import ConfigError
from pipeline.model.networks import require_network_settings
from pipeline.tracking.store import require_nameable_workdir
from pipeline.workspace.workspace import Workspace, resolve

if TYPE_CHECKING:
    from pipeline.reproduce.reproduction import Reproduction

PROFILES = ("quick", "paper")


def measure_claims(workspace: Workspace, claims: Sequence[str], profile: str) -> Reproduction:
    """Measure claims, each arm with several seeds, and judge them; done work is not repeated.

    Args:
        workspace: the work directory; its recipe replaces the profile's.
        claims: short names, or `all`.
        profile: `quick`, small images; `paper`, the protocol of 2012.

    Raises:
        PipelineError: one of its kinds; a claim that is not reproduced is a result.
    """
    from pipeline.reproduce.catalog import select_experiments
    from pipeline.reproduce.reproduction import measure_experiments

    wanted, resolved = select_experiments(claims), resolve_claims(workspace, profile)
    require_source(resolved.config.data)
    require_nameable_workdir(resolved.config.tracking, workspace.directory)
    with workspace.hold():

        def open_tracker(tags: Mapping[str, str]) -> Tracker:
            return workspace.tracker(resolved, tags)

        # Timings are taken by child processes, which find no room on a GPU where this one has taken
        # all of its memory.
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        # In a folder of their own, which `clean` leaves alone: nothing ever selects an experiment.
        runner = workspace.runner(resolved, stages=(ingest,), subfolder="reproduce", selects=False)
        recipe = workspace.recipe
        arguments = ("--recipe", recipe) if recipe else ("--profile", profile)
        return measure_experiments(wanted, runner, resolved, open_tracker, arguments)


def resolve_claims(workspace: Workspace, profile: str) -> Resolved:
    """Return the settings that the claims are measured with.

    Raises:
        ConfigError: there is no such profile, or a setting makes no sense for claims.
    """
    if profile not in PROFILES:
        raise ConfigError(
            f"Unknown profile {profile!r}",
            expected=f"one of {', '.join(PROFILES)}",
            hint="Or name a recipe of your own: --recipe FILE.yaml",
        )
    resolved = resolve(workspace.recipe or f"reproduce_{profile}", workspace.settings)
    require_network_settings(resolved.config)
    config = resolved.config
    if config.model.classes or config.evaluate.model or config.model.weights:
        raise ConfigError(
            "The claims are about networks that are trained from fresh weights on a dataset",
            expected="model.classes, model.weights and evaluate.model to be left out",
        )
    return resolved


def plan_claims(workspace: Workspace, claims: Sequence[str], profile: str) -> list[dict[str, Any]]:
    """Return what would be trained for each claim, each training once.

    Each row has `claim`, `trainings`, `short_trainings` and `images` seen.
    """
    from pipeline.reproduce.catalog import select_experiments
    from pipeline.reproduce.planning import tabulate_plan

    config = resolve_claims(workspace, profile).config
    return tabulate_plan(select_experiments(claims), config)


def publish_claims(measured: Reproduction | None, document: Path) -> None:
    """Put claims into a document; None only checks that it can be written."""
    from pipeline.reproduce.publishing import publish_results, read_results_document

    if measured is None:
        read_results_document(document)
    else:
        publish_results(measured.folder, document)
