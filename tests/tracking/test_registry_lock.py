"""The lock of a registered model, beside a database and as a lease."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from pipeline.errors import BusyError
from pipeline.tracking import registry_lock
from pipeline.tracking.registry_lock import lease_registry


def test_the_lock_lets_one_in_at_a_time(registry):
    inside, most = 0, 0

    def enter():
        nonlocal inside, most
        with registry.lock():
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_lease_of_a_store_elsewhere_lets_one_in_and_outlives_no_owner(registry, monkeypatch):
    monkeypatch.setattr(registry_lock, "_LOCK_SECONDS", 0.5)
    client = registry.connect()
    with lease_registry("alexnet", registry.config, registry.workdir):
        assert (
            json.loads(client.get_registered_model("alexnet.lock").tags["owner"])["pid"]
            == os.getpid()
        )
        with (
            pytest.raises(BusyError, match=f"is held by process {os.getpid()}"),
            lease_registry("alexnet", registry.config, registry.workdir),
        ):
            pass
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    owner = {
        "token": "x",
        "host": os.uname().nodename,
        "pid": int(gone.stdout),
        "since": time.time(),
    }
    client.create_registered_model("alexnet.lock", tags={"owner": json.dumps(owner)})
    with lease_registry("alexnet", registry.config, registry.workdir):
        pass
    client.create_registered_model(
        "alexnet.lock",
        tags={"owner": json.dumps({**owner, "host": "elsewhere", "since": time.time() - 3600})},
    )
    with lease_registry("alexnet", registry.config, registry.workdir):
        pass
    assert [model.name for model in client.search_registered_models()] == []
