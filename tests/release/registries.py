"""Versions, offers and verdicts for the tests of the registry and of promotions."""

from pipeline.artifacts import GateCheck
from pipeline.release.commit import GateVerdict, Offer
from pipeline.tracking.registry import GATE_TAG, MODEL_TAG, RELEASE_TAG


def registered(registry, release, **tags):
    known = {
        "class_names": list(release.class_names),
        "sha256": release.model_sha256,
        "short_side": release.short_side,
    }
    tags = {
        RELEASE_TAG: release.sha256(),
        MODEL_TAG: release.model_sha256,
        GATE_TAG: "passed",
    } | tags
    with registry.lock():
        return registry.register(release.directory, release.image_size, known, tags, None)


def another(registry, release, gate="passed", digest=None):
    """A further version with the same files."""
    source, tags = (
        registry.read_version("1").source,
        {
            GATE_TAG: gate,
            RELEASE_TAG: digest or release.sha256(),
        },
    )
    return str(registry.connect().create_model_version("alexnet", source, tags=tags).version)


def verdict(passed):
    return GateVerdict(
        (
            GateCheck(
                name="test",
                passed=passed,
                measured="",
                required="",
                text="good" if passed else "bad",
            ),
        )
    )


def offered(release):
    return Offer(release, {RELEASE_TAG: release.sha256(), MODEL_TAG: release.model_sha256})
