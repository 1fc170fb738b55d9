"""The description of the machine."""

from __future__ import annotations

import re

from pipeline.reproduce.machine import describe_machine


def test_the_machine_is_named():
    assert re.fullmatch(r"\S.* \(\d+ cores?\)", describe_machine())
