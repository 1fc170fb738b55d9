"""The notified outcomes of scheduled runs: their content, and their record in the ledger."""

from __future__ import annotations

from pipeline.config.retrain import RetrainConfig
from pipeline.schedule.context import SchedulerContext
from pipeline.schedule.notifications import send_notification
from pipeline.schedule.records import ScheduledRun

_NOTIFIED = ("promoted", "refused", "waiting", "failed")  # waiting: for the approval of a person


def notify_outcome(
    context: SchedulerContext, scheduled_run: ScheduledRun, config: RetrainConfig
) -> None:
    """Send the notification of a run with a final state, and record that.

    A scheduler that is killed between the two makes the next one send it again.
    """
    if scheduled_run.state not in ("ran", "failed"):
        return
    event = "failed" if scheduled_run.state == "failed" else scheduled_run.outcome
    if not config.notify:
        recorded = "not configured"
    elif event not in _NOTIFIED:
        recorded = "not needed"
    else:
        reason = _send(context, scheduled_run, config, event, scheduled_run.why)
        recorded = f"failed: {reason}" if reason else "sent"
    context.ledger.record_notification(scheduled_run, recorded)


def notify_low_disk(
    context: SchedulerContext, scheduled_run: ScheduledRun, config: RetrainConfig, why: str
) -> None:
    """Send the notification `disk_low`."""
    _send(context, scheduled_run, config, "disk_low", why)


def _send(
    context: SchedulerContext,
    scheduled_run: ScheduledRun,
    config: RetrainConfig,
    event: str,
    why: str,
) -> str:
    """Send one notification, and return why it failed, or nothing."""
    content = {
        "event": event,
        "scheduled_run": scheduled_run.key,
        "schedule": scheduled_run.schedule,
        "outcome": scheduled_run.outcome,
        "why": why,
        "version": scheduled_run.version,
        "run_url": scheduled_run.run_url,
        "page": scheduled_run.page,
        "workdir": str(context.workdir),
    }
    reason = send_notification(config.notify, content)
    if reason:
        context.log(f"{scheduled_run.key}: the notification was not sent: {reason}.")
    return reason
