"""Every public function, called once: tests/api_calls.py, in a process of its own.

TensorFlow is set up once per process, by the first command that needs it; the tests of other files
may have set it up otherwise.
"""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import api

ROOT = Path(__file__).parents[1]


def test_every_public_function_is_there_documented_and_among_the_calls():
    """What `api` offers has a docstring and types, and tests/api_calls.py calls it."""
    text = (ROOT / "tests" / "api_calls.py").read_text(encoding="utf-8")
    called = set(re.findall(r"\bcall\(\s*\"(\w+)\"", text))
    assert called | {"PipelineResult", "Workspace"} == set(api.__all__)
    for name in called:
        function = getattr(api, name)
        assert function.__doc__, name
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty, name


@pytest.mark.slow
def test_every_public_function_is_called(tmp_path):
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ALEXNET_", "PYTEST_"))
    }
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'calls'}", str(ROOT / "tests" / "api_calls.py")],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "6 passed" in done.stdout
