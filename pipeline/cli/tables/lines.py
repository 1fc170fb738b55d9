"""Lines that several tables have."""

from __future__ import annotations

from rich.console import Console


def print_location(output: Console, name: str, location: str) -> None:
    """Print where something is, on one line whatever its length."""
    output.print(f"{name:<7} {location}", markup=False, highlight=False, soft_wrap=True)
