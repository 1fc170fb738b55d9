"""Errors that a person can act on.

    PipelineError                 exit 1: one message, no traceback
      ConfigError                 exit 2: a setting is unknown, missing or out of range
      MissingInputError           a stage was asked for before the stage it needs
      DatasetError                the data cannot be prepared or is not what was promised
      CheckpointError             a saved state is damaged or belongs to another run
      TrainingDivergedError       the loss is NaN or infinite
      OutOfMemoryError            a step does not fit into the device's memory
      HungError                   a step, or the images for it, did not come to an end
      LostWorkerError             exit 76: another worker of the training is gone
      WorkersFailedError          the exit code of workers that were started here
      TrackingError               the tracking store refused
      GateError                   exit 3: the model is not good enough to be released
      BusyError                   exit 75: another process holds the work directory

Every message says what is wrong, what was expected, what was received and what to type next.
Any other exception is a bug and keeps its traceback.
"""


class PipelineError(Exception):
    """The command cannot go on, for a reason that the message explains."""

    exit_code: int = 1


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


class OutOfMemoryError(PipelineError):
    """A step does not fit into the memory of the device."""


class HungError(PipelineError):
    """A step, or the images for it, did not come to an end.

    A thread of this process still waits for it.
    """


class LostWorkerError(PipelineError):
    """Another worker of the same training is gone.

    All are started again and go on from the last checkpoint.
    """

    exit_code = 76  # EX_PROTOCOL of sysexits.h, "remote error in protocol"


class WorkersFailedError(PipelineError):
    """Workers that were started here ended with an error, which the first of them has shown.

    The exit code is theirs.
    """

    def __init__(self, code: int):
        super().__init__(f"The workers ended with exit code {code}; the messages above say why.")
        self.exit_code = code


class TrackingError(PipelineError):
    """The tracking store refused what it was asked."""


class GateError(PipelineError):
    """The model is not good enough to be released, or is not proved to be."""

    exit_code = 3


class BusyError(PipelineError):
    """Another process is working in the same work directory."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Interrupted(KeyboardInterrupt):
    """SIGINT arrived: Ctrl-C. Not KeyboardInterrupt itself, for which Python kills the process when C code has met it once."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: stop as for Ctrl-C, but exit with 143."""
