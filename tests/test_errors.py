"""The tree of errors, the sentences that their fields make, and what is shown of the rest."""

import errno
import inspect
import pickle
import re
from pathlib import Path

import pytest

from pipeline import errors
from pipeline.errors import (
    BusyError,
    ConfigError,
    DatasetError,
    GateError,
    Interrupted,
    LostWorkerError,
    OutOfMemoryError,
    PipelineError,
    Terminated,
    TrackingError,
    WorkersFailedError,
    describe_cause,
    describe_os_error,
    error_as_dict,
    is_retryable,
)

CLASSES = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if found.__module__ == errors.__name__
]


def test_the_fields_of_an_error_make_its_sentence():
    error = ConfigError(
        "The work directory x cannot be written (Permission denied)",
        expected="a folder of your own",
        received="x",
        hint="Name another with --workdir",
    )

    assert str(error) == (
        "The work directory x cannot be written (Permission denied). Expected a folder of your own."
        " Received x. Name another with --workdir."
    )


def test_empty_fields_leave_no_trace_in_the_sentence():
    assert str(DatasetError("No image", hint="Name a folder")) == "No image. Name a folder."
    assert str(DatasetError("No image.", expected="one")) == "No image. Expected one."
    assert str(ConfigError("No setting `x`", hint="Did you mean `y`?")) == (
        "No setting `x`. Did you mean `y`?"
    )


def test_what_alone_is_shown_as_it_is():
    assert str(DatasetError("Two sentences. As they are")) == "Two sentences. As they are"


def test_as_dict_holds_every_field():
    assert BusyError("Busy", expected="a", received="b", hint="Wait").as_dict() == {
        "type": "BusyError",
        "message": "Busy. Expected a. Received b. Wait.",
        "what": "Busy",
        "expected": "a",
        "received": "b",
        "hint": "Wait",
        "retryable": True,
    }


def test_a_cause_is_one_line_or_its_class():
    assert describe_cause(ValueError("two\n  lines")) == "two lines"
    assert describe_cause(ValueError("x" * 300), 10) == "x" * 10
    assert describe_cause(KeyError()) == "KeyError"


def test_a_hint_may_begin_with_an_empty_suggestion():
    assert str(ConfigError("No `x`", hint=" Type y")) == "No `x`. Type y."


def test_an_error_survives_a_process_border():
    error = pickle.loads(pickle.dumps(ConfigError("A", expected="b", hint="C")))  # noqa: S301
    failed = pickle.loads(pickle.dumps(WorkersFailedError(7)))  # noqa: S301

    assert str(error) == "A. Expected b. C."
    assert (failed.exit_code, str(failed)) == (7, str(WorkersFailedError(7)))


@pytest.mark.parametrize(
    ("kind", "code"),
    [(PipelineError, 1), (ConfigError, 2), (GateError, 3), (BusyError, 75), (LostWorkerError, 76),
     (Interrupted, 130), (Terminated, 143)],
)  # fmt: skip
def test_every_class_knows_its_exit_code(kind, code):
    assert kind.exit_code == code


def test_what_may_pass_is_retryable_and_what_a_person_must_change_is_not():
    retryable = {kind.__name__ for kind in CLASSES if getattr(kind, "retryable", False)}

    assert retryable == {
        "BusyError", "HungError", "LostWorkerError", "OutOfMemoryError", "TrackingError"
    }  # fmt: skip
    assert is_retryable(OSError(errno.ENOSPC, "No space left on device"))
    assert is_retryable(TrackingError("Gone")) and is_retryable(OutOfMemoryError("Too large"))
    assert not is_retryable(ConfigError("No")) and not is_retryable(ValueError("a bug"))


def test_the_tree_in_the_docstring_is_complete_and_true():
    drawn = dict(re.findall(r"^    (?:\+- )?(\w+) +(?:exit )?(\d+|theirs)", errors.__doc__, re.M))
    retryable = set(re.findall(r"^    (?:\+- )?(\w+) .* retry  ", errors.__doc__, re.M))
    own = {kind.__name__: kind for kind in CLASSES}

    assert set(drawn) == {*own, "OSError"}
    assert {name: drawn[name] for name in own if name != "WorkersFailedError"} == {
        name: str(kind.exit_code) for name, kind in own.items() if name != "WorkersFailedError"
    }
    assert retryable == {
        *(name for name, kind in own.items() if getattr(kind, "retryable", False)), "OSError"
    }  # fmt: skip


def test_every_error_class_of_the_package_is_named_in_the_docstring():
    package = Path(errors.__file__).parent
    classes = {
        name
        for path in package.rglob("*.py")
        for name in re.findall(
            r"^class (\w+)\(.*(?:Error|Exception|Interrupt)\):", path.read_text(), re.M
        )
        if not name.startswith("_")  # caught in its own file
    }

    assert classes
    assert not {name for name in classes if name not in " ".join(errors.__doc__.split())}


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/run"),
            "/data/run: No space left on device. Free some space there, or name a folder on another"
            " disk with --workdir, and type the command again; finished results are kept.",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", b"/x"),
            "/x: Permission denied. Change its permissions, or name a path that this user may use,"
            " and type the command again; finished results are kept.",
        ),
        (
            OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"),
            "/a -> /b: Invalid cross-device link. Correct this, and type the command again;"
            " finished results are kept.",
        ),
        (
            OSError("it was cut off"),
            "it was cut off. Correct this, and type the command again; finished results are kept.",
        ),
    ],
)
def test_every_error_of_the_system_is_a_sentence_with_its_path(error, sentence):
    assert describe_os_error(error) == sentence
    assert error_as_dict(error)["message"] == sentence
    assert error_as_dict(error)["type"] == type(error).__name__


def test_an_exception_that_is_a_bug_has_the_same_form():
    assert error_as_dict(KeyError("x")).keys() == ConfigError("x").as_dict().keys()
