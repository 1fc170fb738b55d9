"""Settings of the claims for tests."""

from __future__ import annotations

from pipeline.workspace.reproduction import resolve_claims
from pipeline.workspace.workspace import Workspace


def reproduction_settings(profile="quick", *, settings=None):
    """Return the settings that the claims of a profile are measured with."""
    return resolve_claims(Workspace(settings=settings), profile)
