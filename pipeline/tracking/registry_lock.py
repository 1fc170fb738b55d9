"""The lock of a registered model: the right to register versions and to move aliases.

A database in a file has a lock file beside it. In other stores a registered model named
`<name>.lock` is the lease, because a store makes each name once.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pipeline.config.tracking import TrackingConfig
from pipeline.errors import BusyError
from pipeline.tracking.store import connect_store, get_store_uri, translate_store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

# No alias takes longer to move; after that an owner on another machine is believed to be gone.
_LEASE_SECONDS = 600.0
_LOCK_SECONDS = 120.0
_LEASE_POLL_SECONDS = 0.2


@contextlib.contextmanager
def lock_registry(name: str, config: TrackingConfig, workdir: Path) -> Iterator[None]:
    """Hold the lock of a registered model, alone among all processes that use this function.

    Raises:
        BusyError: another process holds it for longer than any operation takes.
    """
    address = get_store_uri(config, workdir)
    if not address.startswith("sqlite:///"):
        with lease_registry(name, config, workdir):
            yield
        return
    lock = FileLock(
        f"{address.removeprefix('sqlite:///')}.{name}.lock", timeout=_LOCK_SECONDS, mode=0o644
    )
    try:
        lock.acquire()
    except TimeoutError as error:
        raise _make_busy_error(name, "another process") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def lease_registry(name: str, config: TrackingConfig, workdir: Path) -> Iterator[None]:
    """Hold the lease of a registered model: a second registered model, tagged with its owner.

    Raises:
        BusyError: another process holds it for longer than any operation takes.
    """
    client, lease, token = connect_store(config, workdir), f"{name}.lock", uuid.uuid4().hex
    owner = {"token": token, "host": os.uname().nodename, "pid": os.getpid(), "since": time.time()}
    tags = {"owner": json.dumps(owner)}
    with _translate_lock_errors(config, workdir):
        until = time.monotonic() + _LOCK_SECONDS
        while not _take_lease(client, lease, tags):
            holder = _read_owner(client, lease)
            if holder and _is_gone(holder):
                call_or_none(lambda: client.delete_registered_model(lease))
            elif time.monotonic() > until:
                raise _make_busy_error(name, f"process {holder.get('pid')} on {holder.get('host')}")
            time.sleep(_LEASE_POLL_SECONDS)
    try:
        yield
    finally:
        with _translate_lock_errors(config, workdir):
            if _read_owner(client, lease).get("token") == token:
                call_or_none(lambda: client.delete_registered_model(lease))


def _take_lease(client: MlflowClient, lease: str, tags: Mapping[str, str]) -> bool:
    made: RegisteredModel | None = call_or_none(
        lambda: client.create_registered_model(lease, tags=tags), "RESOURCE_ALREADY_EXISTS"
    )
    return made is not None


def _read_owner(client: MlflowClient, lease: str) -> dict[str, Any]:
    model = call_or_none(lambda: client.get_registered_model(lease))
    return json.loads(model.tags.get("owner", "{}")) if model is not None else {}


def _is_gone(owner: Mapping[str, Any]) -> bool:
    """Return whether the owner of a lease has ended, as far as this machine can tell."""
    if owner.get("host") == os.uname().nodename and not Path(f"/proc/{owner.get('pid')}").exists():
        return True
    return time.time() - float(owner.get("since", 0)) > _LEASE_SECONDS


def _make_busy_error(name: str, owner: str) -> BusyError:
    return BusyError(
        f"The registry of {name} is held by {owner}",
        expected=f"it to be free within {_LOCK_SECONDS:.0f} seconds",
        hint="Type the command again when that has finished",
    )


def _translate_lock_errors(
    config: TrackingConfig, workdir: Path
) -> contextlib.AbstractContextManager[None]:
    return translate_store_errors(
        f"The registry in {get_store_uri(config, workdir)} does not answer",
        ". Nothing was changed.",
    )


def call_or_none(call: Callable[[], Any], code: str = "RESOURCE_DOES_NOT_EXIST") -> Any:
    """Return what a call of MLflow returns, or None where it raises an error of a code."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if error.error_code != code:
            raise
        return None
