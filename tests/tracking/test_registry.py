"""The registry before anything is registered, and a store that fails."""

import pytest

from pipeline.config.tracking import TrackingConfig
from pipeline.errors import ConfigError, TrackingError
from pipeline.release.package import open_release
from pipeline.tracking.registry import Aliases, Registry


def test_nothing_is_registered_at_first(registry):
    assert registry.read_aliases() == Aliases()
    assert registry.list_versions() == []
    assert registry.read_version("1") is None
    with pytest.raises(
        ConfigError,
        match=r"There is no model models:/alexnet@champion .* none yet. Type `alexnet run promote`",
    ):
        open_release("models:/alexnet@champion", registry.config, registry.workdir)


def test_a_database_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "mlflow.db").write_text("junk")
    with pytest.raises(
        TrackingError, match=r"The registry in sqlite:.* does not answer \(.*not a database"
    ):
        Registry("alexnet", TrackingConfig(), tmp_path).list_versions()


def test_a_store_that_does_not_answer_is_one_sentence(tmp_path):
    dead = Registry("alexnet", TrackingConfig(uri="http://127.0.0.1:9"), tmp_path)
    with pytest.raises(TrackingError, match=r"The registry in http://127.0.0.1:9 does not answer"):
        dead.read_aliases()
