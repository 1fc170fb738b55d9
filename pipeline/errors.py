"""Errors that a person can act on: one tree, with exit codes and whether trying again may help.

    PipelineError              exit 1          one sentence, no traceback
    +- ConfigError             exit 2          a setting is unknown, missing or out of range
    +- MissingInputError       exit 1          a stage was requested before the stage it needs
    +- DatasetError            exit 1          the data cannot be prepared or are not as recorded
    +- CheckpointError         exit 1          a saved state or model is damaged or of another run
    +- TrainingDivergedError   exit 1          the loss is NaN or infinite
    +- OutOfMemoryError        exit 1   retry  a step does not fit into the device's memory
    +- HungError               exit 1   retry  a step, or the images for it, did not finish in time
    +- LostWorkerError         exit 76  retry  another worker of the training is gone
    +- WorkersFailedError      theirs          workers that were started here failed
    +- TrackingError           exit 1   retry  the tracking store refused a request
    +- GateError               exit 3          the model is not good enough to be released
    +- BusyError               exit 75  retry  another process holds the work directory
    KeyboardInterrupt
    +- Interrupted             exit 130        SIGINT (Ctrl-C)
    +- Terminated              exit 143        SIGTERM
    OSError                    exit 1   retry  the operating system refused; `describe_os_error`

Three more are raised and caught inside one room, so they never reach the command line:
`RefusedRequestError` of `serve.requests` (an HTTP status and one sentence), `UnusableError` of
`release.classify` (why one image cannot be classified) and `BudgetSpentError` of `reproduce.lab`
(no time is left for another experiment).

Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
from typing import Any


class PipelineError(Exception):
    """A command cannot continue, for a reason that its sentence explains.

    The sentence is "<what>. Expected <expected>. Received <received>. <hint>.", without the fields
    that are empty. `what` alone may be a whole text of several sentences; it is shown as it is.

    Args:
        what: what is wrong.
        expected: what was expected instead.
        received: what was found.
        hint: what to type or do next.

    Attributes:
        exit_code: of the command that ends with this error.
        retryable: whether the same command may succeed later without any change by a person.
    """

    exit_code: int = 1
    retryable: bool = False

    def __init__(self, what: str, *, expected: str = "", received: str = "", hint: str = ""):
        super().__init__(what)
        self.what, self.expected, self.received = what, expected, received
        self.hint = hint.strip()  # it may begin with a suggestion that is empty

    def __str__(self) -> str:
        """Return the sentence that the fields make."""
        if not (self.expected or self.received or self.hint):
            return self.what
        sentences = [
            self.what,
            f"Expected {self.expected}" if self.expected else "",
            f"Received {self.received}" if self.received else "",
            self.hint,
        ]
        return " ".join(_end_sentence(sentence) for sentence in sentences if sentence)

    @property
    def summary(self) -> str:
        """The sentence of `what` alone, for an HTTP answer or a log line."""
        return _end_sentence(self.what)

    def as_dict(self) -> dict[str, Any]:
        """Return the error as `--json` shows it."""
        return {
            "type": type(self).__name__,
            "message": str(self),
            "what": self.what,
            "expected": self.expected,
            "received": self.received,
            "hint": self.hint,
            "retryable": self.retryable,
        }


class ConfigError(PipelineError):
    """A setting is unknown, missing, of the wrong type or out of range."""

    exit_code = 2  # as Click's own usage errors


class MissingInputError(PipelineError):
    """A stage was requested before the stage it needs."""


class DatasetError(PipelineError):
    """The data cannot be prepared, or are not as recorded."""


class CheckpointError(PipelineError):
    """A saved state or model is damaged, or belongs to another run."""


class TrainingDivergedError(PipelineError):
    """The loss became NaN or infinite."""


class OutOfMemoryError(PipelineError):
    """A step does not fit into the memory of the device; other processes may free theirs."""

    retryable = True


class HungError(PipelineError):
    """A step, or the images for it, did not finish in time.

    A thread of this process still waits for it.
    """

    retryable = True


class LostWorkerError(PipelineError):
    """Another worker of the same training is gone.

    All workers are started again and continue from the last checkpoint.
    """

    exit_code = 76  # EX_PROTOCOL of sysexits.h, "remote error in protocol"
    retryable = True


class WorkersFailedError(PipelineError):
    """Workers that were started here failed, and the first of them showed its error.

    Args:
        code: the exit code of the first worker that failed, which becomes this command's.
    """

    def __init__(self, code: int):
        super().__init__(f"The workers ended with exit code {code}; the messages above say why.")
        self.exit_code = code


class TrackingError(PipelineError):
    """The tracking store cannot be reached, or refused a request."""

    retryable = True


class GateError(PipelineError):
    """The model is not good enough to be released, or is not proved to be."""

    exit_code = 3


class BusyError(PipelineError):
    """Another process is working in the same work directory."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later
    retryable = True


class Interrupted(KeyboardInterrupt):
    """SIGINT arrived (Ctrl-C).

    Not KeyboardInterrupt itself, for which Python kills the process when C code has met it once.
    """

    exit_code = 130


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: stop as for Ctrl-C, but exit with 143."""

    exit_code = 143


_NO_ROOM = "Free some space there, or name a folder on another disk with --workdir"
_NO_ACCESS = "Change its permissions, or name a path that this user may use"
_OS_HINTS = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.EROFS: "Name a path on a disk that can be written",
    errno.ENOENT: "Check the path",
    errno.ENOTDIR: "Check the path: part of it is a file",
    errno.EISDIR: "Name a file, not a folder",
    errno.EEXIST: "Name another path, or move away what is there",
    errno.ENAMETOOLONG: "Name a shorter path",
    errno.ELOOP: "Check its symbolic links, which lead in a circle",
    errno.EMFILE: "Allow more open files, as with `ulimit -n 4096`",
    errno.ENFILE: "Close other programs: the system has too many open files",
    errno.EIO: "Check the disk",
    errno.ECONNREFUSED: "Check the address, and that its server is running",
    errno.EADDRINUSE: "Name another port",
}


def describe_os_error(error: OSError) -> str:
    """Return one sentence for an error of the operating system, with its path and what to do.

    Any `errno` is accepted, and none, as of errors that libraries raise with a text alone.
    """
    paths = [_text(path) for path in (error.filename, error.filename2) if path is not None]
    reason = error.strerror or str(error) or type(error).__name__
    what = f"{' -> '.join(paths)}: {reason}" if paths else reason
    hint = _OS_HINTS.get(error.errno or 0, "Correct this")
    return f"{_end_sentence(what)} {hint}, and type the command again; finished results are kept."


def describe_cause(error: BaseException, max_letters: int = 200) -> str:
    """Return the text of an exception of a library in one line, its class where it has no text."""
    return " ".join(str(error).split())[:max_letters] or type(error).__name__


def is_retryable(error: BaseException) -> bool:
    """Return whether the same command may succeed later without any change by a person."""
    return error.retryable if isinstance(error, PipelineError) else isinstance(error, OSError)


def error_as_dict(error: BaseException) -> dict[str, Any]:
    """Return any exception in the form of `PipelineError.as_dict`."""
    if isinstance(error, PipelineError):
        return error.as_dict()
    text = describe_os_error(error) if isinstance(error, OSError) else str(error)
    known = {"message": text, "what": text, "expected": "", "received": "", "hint": ""}
    return {"type": type(error).__name__, **known, "retryable": is_retryable(error)}


def _text(path: Any) -> str:
    """Return a path as `OSError.filename` holds it: text, bytes or a file descriptor."""
    return path.decode("utf-8", "replace") if isinstance(path, bytes) else str(path)


def _end_sentence(text: str) -> str:
    """Return a text that ends with a full stop, or a question mark that it has."""
    return text if text.endswith((".", "?", "!")) else f"{text}."
