"""The retry policy of a scheduled run: retryable failures, number of retries, pauses.

A child process that ended without a result is tried again where its error is retryable
(`pipeline.errors`), or where a signal ended it: at most `retrain.retries` times, after
`retrain.backoff_seconds`, which doubles each time, up to a day.
"""

from __future__ import annotations

from pipeline.config.retrain import RetrainConfig
from pipeline.schedule.process import ChildEnd

# Attempts of one scheduled run, over all schedulers: a retraining that neither ends nor fails takes
# the scheduler, or the
# machine, down with it
MAX_ATTEMPTS = 100
_MAX_PAUSE_SECONDS = 86_400.0


def is_tried_again(config: RetrainConfig, child: ChildEnd, failures: int) -> bool:
    """Return whether a child that failed is tried again.

    Args:
        config: settings of the schedule's retrainings.
        child: how it ended.
        failures: of this scheduled run in this process before.
    """
    return child.how == "ended" and child.retryable and failures < config.retries


def compute_retry_pause(config: RetrainConfig, failures: int) -> float:
    """Return the pause before the next attempt, in seconds, after `failures` earlier retries."""
    return float(min(config.backoff_seconds * 2**failures, _MAX_PAUSE_SECONDS))
