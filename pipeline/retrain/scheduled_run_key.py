"""The key of a scheduled run: SCHEDULE/20261127T030000Z, from its schedule and its run time in UTC.

The key names the run in the ledger, its folder below `retrainings/`, and the tag of its runs and
versions in MLflow.
"""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime

from pipeline.errors import ConfigError

BY_HAND = "by-hand"  # the schedule part of the key of a retraining without a schedule
_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_SCHEDULE_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
)  # names a folder, and is not an option


def format_scheduled_run_key(schedule: str, run_time: datetime) -> str:
    """Return the key of a scheduled run: SCHEDULE/20261127T030000Z."""
    return f"{schedule}/{run_time.astimezone(UTC).strftime(_TIME_FORMAT)}"


def parse_scheduled_run_key(key: str) -> tuple[str, datetime]:
    """Return the schedule and the run time, in UTC, of a key.

    Raises:
        ConfigError: the text is not a key.
    """
    name, _, run_time = key.partition("/")
    if _SCHEDULE_NAME.fullmatch(name):
        with contextlib.suppress(ValueError):
            return name, datetime.strptime(run_time, _TIME_FORMAT).replace(tzinfo=UTC)
    raise ConfigError(
        f"{key[:100]!r} is not the key of a scheduled run",
        expected="NAME/20261127T030000Z",
        hint="`alexnet schedule history` lists them",
    )


def check_schedule_name(name: str) -> None:
    """Refuse a name of a schedule that cannot name a folder.

    Raises:
        ConfigError: the name has other characters, is too long, or is reserved.
    """
    if not _SCHEDULE_NAME.fullmatch(name) or name == BY_HAND:
        raise ConfigError(
            "The name of the schedule cannot name a folder",
            expected="letters, digits and . _ - with a letter or a digit first, 64 at most",
            received=repr(name[:80]),
            hint="Give the schedule another name",
        )
