"""What the service counts, in the text format of Prometheus."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Counters:
    """The numbers behind `/metrics`, in a registry of their own, so that two services in one process do not add up."""

    registry: CollectorRegistry
    requests: Counter
    images: Counter
    seconds: Histogram
    batches: Histogram
    rejected: Counter
    reloads: Counter
    queue: Gauge
    model: Gauge

    def name_model(self, name: str, version: str, sha256: str) -> None:
        """Say which model answers from now on."""
        self.model.clear()
        self.model.labels(name, version, sha256).set(1)


def make_counters() -> Counters:
    """Return the counters of one service, all at 0."""
    registry = CollectorRegistry()
    reloads = Counter(
        "alexnet_reloads",
        "Attempts to change over to another model.",
        ["result"],
        registry=registry,
    )
    for result in ("ok", "failed", "no store"):
        reloads.labels(
            result
        )  # there from the start: an alarm on a rise from nothing would never ring
    return Counters(
        registry=registry,
        requests=Counter(
            "alexnet_requests", "Requests by path and status.", ["path", "code"], registry=registry
        ),
        images=Counter(
            "alexnet_images", "Images by what became of them.", ["result"], registry=registry
        ),
        seconds=Histogram(
            "alexnet_predict_seconds",
            "From a request of /predict to its answer, upload included.",
            registry=registry,
            buckets=_SECONDS,
        ),
        batches=Histogram(
            "alexnet_batch_images",
            "Images that were answered together.",
            registry=registry,
            buckets=_IMAGES,
        ),
        rejected=Counter(
            "alexnet_rejected",
            "Requests that found no room, by what there was too much of.",
            ["reason"],
            registry=registry,
        ),
        reloads=reloads,
        queue=Gauge(
            "alexnet_queue_images",
            "Images that were taken in and have no answer yet.",
            registry=registry,
        ),
        model=Gauge(
            "alexnet_model_info",
            "The model that answers.",
            ["name", "version", "sha256"],
            registry=registry,
        ),
    )
