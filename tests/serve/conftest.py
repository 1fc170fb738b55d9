"""Two releases of a tiny network, and a service of the first."""

import pytest

from pipeline.release.classify import load_classifier
from pipeline.serve import reload
from tests.serve.client import one_release, running


@pytest.fixture(scope="session")
def releases(tmp_path_factory):
    return [
        one_release(tmp_path_factory.mktemp("releases") / version, version, seed)
        for version, seed in (("1", 0), ("2", 40))
    ]


@pytest.fixture(scope="session")
def classifiers():
    return {}


@pytest.fixture(scope="module", autouse=True)
def opened_once(classifiers):
    """Compiling takes most of a second: a model that another test has opened is taken as it is."""
    with pytest.MonkeyPatch.context() as patch:

        def load(release, *, batch):
            key = release.model_path, batch
            return (
                classifiers[key]
                if key in classifiers
                else classifiers.setdefault(key, load_classifier(release, batch=batch))
            )

        patch.setattr(reload, "load_classifier", load)
        yield


@pytest.fixture(scope="module")
def served(releases):
    with running(lambda: releases[0].release) as service:
        yield service
