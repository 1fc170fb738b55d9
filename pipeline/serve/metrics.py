"""Metrics of the service, in the text format of Prometheus."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class ServiceMetrics:
    """The numbers behind `/metrics`.

    Their registry is their own, so that two services in one process do not add up.
    """

    registry: CollectorRegistry
    requests: Counter
    images: Counter
    seconds: Histogram
    batches: Histogram
    rejected: Counter
    reloads: Counter
    queue: Gauge
    model: Gauge

    def set_model(self, name: str, version: str, sha256: str) -> None:
        """Record which model is served from now on."""
        self.model.clear()
        self.model.labels(name, version, sha256).set(1)


def make_metrics() -> ServiceMetrics:
    """Return the metrics of one service, all at 0."""
    registry = CollectorRegistry()
    reloads = Counter("alexnet_reloads", "Hot reloads by result.", ["result"], registry=registry)
    for result in ("ok", "failed", "no store"):
        # Present from the start: an alarm on an increase needs a first value.
        reloads.labels(result)
    return ServiceMetrics(
        registry=registry,
        requests=Counter(
            "alexnet_requests", "Requests by path and status.", ["path", "code"], registry=registry
        ),
        images=Counter("alexnet_images", "Images by result.", ["result"], registry=registry),
        seconds=Histogram(
            "alexnet_predict_seconds",
            "From a request of /predict to its answer, upload included.",
            registry=registry,
            buckets=_LATENCY_BUCKETS,
        ),
        batches=Histogram(
            "alexnet_batch_images", "Images per batch.", registry=registry, buckets=_BATCH_BUCKETS
        ),
        rejected=Counter(
            "alexnet_rejected",
            "Requests rejected with 429, by the limit that was reached.",
            ["reason"],
            registry=registry,
        ),
        reloads=reloads,
        queue=Gauge(
            "alexnet_queue_images", "Images accepted and not yet answered.", registry=registry
        ),
        model=Gauge(
            "alexnet_model_info",
            "The model that is served.",
            ["name", "version", "sha256"],
            registry=registry,
        ),
    )
