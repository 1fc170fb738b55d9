"""Errors that a person can act on.

    PipelineError                 exit 1: one message, no traceback
      ConfigError                 exit 2: a setting is unknown, missing or out of range
      MissingInputError           a stage was asked for before the stage it needs
      DatasetError                the data cannot be prepared or is not what was promised
      CheckpointError             a saved state is damaged or belongs to another run
      TrainingDivergedError       the loss is NaN or infinite
      TrackingError               the tracking store refused
      BusyError                   exit 75: another process holds the work directory

Every message says what is wrong, what was expected, what was received and what to type next.
Any other exception is a bug and keeps its traceback.
"""

from typing import ClassVar


class PipelineError(Exception):
    """The command cannot go on, for a reason that the message explains."""

    exit_code: ClassVar[int] = 1


class ConfigError(PipelineError):
    """A setting is unknown, missing, of the wrong type or out of range."""

    exit_code = 2  # as Click's own usage errors


class MissingInputError(PipelineError):
    """A stage was asked for before the stage it needs."""


class DatasetError(PipelineError):
    """The data cannot be prepared, or is not what was promised."""


class CheckpointError(PipelineError):
    """A saved state is damaged or belongs to another run."""


class TrainingDivergedError(PipelineError):
    """The loss became NaN or infinite."""


class TrackingError(PipelineError):
    """The tracking store refused what it was asked."""


class BusyError(PipelineError):
    """Another process is working in the same work directory."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Interrupted(KeyboardInterrupt):
    """SIGINT arrived: Ctrl-C. Not KeyboardInterrupt itself, for which Python kills the process when C code has met it once."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: stop as for Ctrl-C, but exit with 143."""
