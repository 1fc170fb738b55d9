"""What writing shards and preparing TFDS's own datasets share: the settings of a TFDS builder."""

from __future__ import annotations

import contextlib
import io
import shlex
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from pipeline.data.shards import quiet_log
from pipeline.errors import DatasetError


@contextlib.contextmanager
def quiet_builder(tfds: ModuleType) -> Iterator[None]:
    """Keep TFDS from writing to the terminal, which is the command line's."""
    tfds.disable_progress_bar()
    with quiet_log(), contextlib.redirect_stdout(io.StringIO()):
        yield


def make_download_config(tfds: ModuleType, beam_options: str) -> Any:
    """Return TFDS's DownloadConfig, with Beam's options where there are any.

    Raises:
        DatasetError: Apache Beam is needed and not installed.
    """
    if not beam_options:
        return tfds.download.DownloadConfig()
    options = import_beam().options.pipeline_options.PipelineOptions(
        shlex.split(beam_options), save_main_session=False
    )
    return tfds.download.DownloadConfig(beam_options=options)


def import_beam() -> ModuleType:
    """Return the package `apache_beam`.

    Raises:
        DatasetError: it is not installed.
    """
    try:
        import apache_beam
    except ImportError as error:
        raise DatasetError(
            "data.beam needs the package apache-beam, which is not installed",
            expected="the extra `beam`",
            hint='Type pip install "alexnet-pipeline[beam]", or leave data.beam empty',
        ) from error
    return apache_beam
