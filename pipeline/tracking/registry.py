"""MLflow's model registry: versions of a model, and the aliases that say which one people use.

    champion    the version that answers
    candidate   the version that was judged last
    previous    the version that answered before the champion

Beside `tracking` this is the only file that imports MLflow. Its aliases are set without a
condition, so whoever moves them holds `lock` and looks at the expected old value first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from filelock import FileLock

from pipeline.config.tracking import TrackingConfig
from pipeline.errors import BusyError, ConfigError, TrackingError
from pipeline.tracking.journal import connect, experiment_of, save_keras_flavour, store_uri

CHAMPION, CANDIDATE, PREVIOUS = "champion", "candidate", "previous"
RELEASE_TAG, MODEL_TAG, GATE_TAG, WITHDRAWN_TAG = (
    "release_sha256",
    "model_sha256",
    "gate",
    "withdrawn",
)
SETTINGS_TAG, SLOT_TAG = (
    "settings_sha256",
    "slot",
)  # what decided, besides the images, what became of it; the retraining that made it
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REFERENCE = re.compile(r"^models:/([^/@]+)(?:/([0-9]+)|@([A-Za-z0-9_-]+))$")
# No alias takes longer to move; after that its owner on another machine is believed to be gone
_LEASE_SECONDS = 600.0
_LOCK_SECONDS = 120.0


@dataclass(frozen=True)
class Version:
    """One version of a registered model.

    `release_sha256` names what it holds; it is empty where nobody but MLflow registered it, or
    where its tag is no digest. `gate` is `passed`, `waiting`, `refused` or empty.
    """

    name: str
    number: str
    release_sha256: str
    model_sha256: str
    source: str
    created: float
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""

    @property
    def gate(self) -> str:
        """What the gate said of it."""
        return self.tags.get(GATE_TAG, "")

    @property
    def withdrawn(self) -> bool:
        """Whether somebody went back from it."""
        return self.tags.get(WITHDRAWN_TAG) == "yes"


@dataclass(frozen=True)
class Aliases:
    """Which version each alias names, `` where there is none."""

    champion: str = ""
    candidate: str = ""
    previous: str = ""


@dataclass(frozen=True)
class Registry:
    """One registered model in the tracking store.

    Every method raises a TrackingError where the store does not do what it is asked.
    """

    name: str
    config: TrackingConfig
    workdir: Path

    def client(self) -> Any:
        """Return MLflow's client of the store."""
        return connect(self.config, self.workdir)

    def aliases(self) -> Aliases:
        """Return where the aliases stand; nowhere where the model is not registered yet."""
        with _answering(self):
            model = _or_none(lambda: self.client().get_registered_model(self.name))
            if model is None:
                return Aliases()
            found = {
                alias: str(model.aliases.get(alias, ""))
                for alias in (CHAMPION, CANDIDATE, PREVIOUS)
            }
            return Aliases(**found)

    def version(self, number: str) -> Version | None:
        """Return a version by its number, or None."""
        with _answering(self):
            client = self.client()
            found = (
                _or_none(lambda: client.get_model_version(self.name, number)) if number else None
            )
            return None if found is None else _version(found, self._aliases_of(client))

    def versions(self) -> list[Version]:
        """Return all versions, the newest first."""
        return self._found(f"name = '{self.name}'")

    def _found(self, condition: str) -> list[Version]:
        with _answering(self):
            client = self.client()
            aliases, found = self._aliases_of(client), _all_versions(client, condition)
            return sorted(
                (_version(item, aliases) for item in found), key=lambda item: -int(item.number)
            )

    def _aliases_of(self, client: Any) -> dict[str, tuple[str, ...]]:
        model = _or_none(lambda: client.get_registered_model(self.name))
        by_version: dict[str, tuple[str, ...]] = {}
        for alias, number in sorted(model.aliases.items()) if model else ():
            by_version[str(number)] = (*by_version.get(str(number), ()), alias)
        return by_version

    def of_release(self, release_sha256: str) -> Version | None:
        """Return the version that holds a release, the newest of several, or None."""
        return next(
            iter(
                self._found(f"name = '{self.name}' and tags.`{RELEASE_TAG}` = '{release_sha256}'")
            ),
            None,
        )

    def register(
        self,
        package: Path,
        image_size: int,
        known: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None,
    ) -> Version:
        """Store a release's folder and give it a version; the caller holds the lock.

        Args:
            package: the folder, with `data/model.keras` in it.
            image_size: height and width of its input, in pixels.
            known: what MLflow's description of the model holds: `class_names`, `sha256`.
            tags: of the version; `release_sha256` among them.
            run_id: the MLflow run that trained it.
        """
        with _answering(self):
            import mlflow

            client = self.client()
            mlflow.set_tracking_uri(
                store_uri(self.config, self.workdir)
            )  # a registry in a database looks the logged model up there
            experiment = experiment_of(client, self.config, self.workdir)
            scratch = package.with_name(f"{package.name}.mlflow")
            shutil.rmtree(scratch, ignore_errors=True)
            save_keras_flavour(package / "data" / "model.keras", scratch, image_size, known)
            shutil.copytree(package, scratch, dirs_exist_ok=True)
            released = {
                RELEASE_TAG: tags.get(RELEASE_TAG, "")
            }  # so that files whose version never came are known as ours
            logged = client.create_logged_model(
                experiment, name=self.name, source_run_id=run_id, tags=released
            )
            client.log_model_artifacts(logged.model_id, str(scratch))
            client.finalize_logged_model(logged.model_id, "READY")
            shutil.rmtree(scratch)
            _or_none(lambda: client.create_registered_model(self.name), "RESOURCE_ALREADY_EXISTS")
            made = client.create_model_version(
                self.name,
                f"models:/{logged.model_id}",
                run_id=run_id,
                tags=dict(tags),
                model_id=logged.model_id,
            )
            return _version(made, {})

    def set_alias(self, alias: str, number: str) -> None:
        """Let an alias name a version."""
        with _answering(self):
            self.client().set_registered_model_alias(self.name, alias, number)

    def tag(self, number: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with _answering(self):
            client = self.client()
            for key, value in tags.items():
                client.set_model_version_tag(self.name, number, key, value)

    def delete_version(self, number: str) -> bool:
        """Delete a version, unless an alias names it meanwhile.

        Its files are deleted by whoever asks for this.

        Returns:
            Whether it is gone.
        """
        with self.lock():
            version = self.version(number)
            if version is not None and not version.aliases:
                with _answering(self):
                    self.client().delete_model_version(self.name, number)
        return version is None or not version.aliases

    def move_champion(self, number: str, expected: str) -> bool:
        """Make a version the champion.

        The caller holds the lock. The one before is `previous` then.

        Not if it was withdrawn, or holds the same release: nobody would want to go back to it.

        Returns:
            Whether it is; not where another one than the expected is the champion meanwhile, and
            then nothing is changed.

        Args:
            number: of the version.
            expected: the champion that it was judged against, empty for none.
        """
        now = self.aliases()
        if now.champion != expected:
            return False
        before, after = self.version(expected), self.version(number)
        if (
            before
            and after
            and not before.withdrawn
            and before.release_sha256 != after.release_sha256
        ):
            self.set_alias(PREVIOUS, expected)
        self.set_alias(CHAMPION, number)
        return True

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the right to register and to move aliases, against every other process that uses this class.

        A database in a file has a lock beside it. In other stores a registered model of a name of
        its own stands for it, because a store makes each name once.

        Raises:
            BusyError: another process holds it for longer than anything here takes.
        """
        address = store_uri(self.config, self.workdir)
        if not address.startswith("sqlite:///"):
            with self._lease():
                yield
            return
        lock = FileLock(
            f"{address.removeprefix('sqlite:///')}.{self.name}.lock",
            timeout=_LOCK_SECONDS,
            mode=0o644,
        )
        try:
            lock.acquire()
        except TimeoutError as error:
            raise self._busy("another process") from error
        try:
            yield
        finally:
            lock.release()

    def _busy(self, owner: str) -> BusyError:
        return BusyError(
            f"The registry of {self.name} is held by {owner}. Expected it to be free within"
            f" {_LOCK_SECONDS:.0f} seconds. Type the command again when that has finished."
        )

    @contextlib.contextmanager
    def _lease(self) -> Iterator[None]:
        client, name, token = self.client(), f"{self.name}.lock", uuid.uuid4().hex
        owner = {
            "token": token,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "since": time.time(),
        }
        until = time.monotonic() + _LOCK_SECONDS
        with _answering(self):
            tags = {"owner": json.dumps(owner)}
            while (
                _or_none(
                    lambda: client.create_registered_model(name, tags=tags),
                    "RESOURCE_ALREADY_EXISTS",
                )
                is None
            ):
                held = _owner(_or_none(lambda: client.get_registered_model(name)))
                if held and _is_gone(held):
                    _or_none(lambda: client.delete_registered_model(name))
                elif time.monotonic() > until:
                    raise self._busy(f"process {held.get('pid')} on {held.get('host')}")
                time.sleep(0.2)
        try:
            yield
        finally:
            with _answering(self):
                if (
                    _owner(_or_none(lambda: client.get_registered_model(name))).get("token")
                    == token
                ):
                    _or_none(lambda: client.delete_registered_model(name))


def _owner(model: Any) -> dict[str, Any]:
    return json.loads(model.tags.get("owner", "{}")) if model is not None else {}


def _is_gone(owner: Mapping[str, Any]) -> bool:
    """Return whether the owner of a lease does not live any more, as far as this machine can tell."""
    if owner.get("host") == os.uname().nodename and not Path(f"/proc/{owner.get('pid')}").exists():
        return True
    return time.time() - float(owner.get("since", 0)) > _LEASE_SECONDS


def _version(found: Any, aliases: Mapping[str, tuple[str, ...]]) -> Version:
    tags = dict(found.tags)
    return Version(
        name=found.name,
        number=str(found.version),
        # It names a folder where files from elsewhere are kept: what is no digest could name any
        # other.
        release_sha256=(
            tags.get(RELEASE_TAG, "") if _DIGEST.fullmatch(tags.get(RELEASE_TAG, "")) else ""
        ),
        model_sha256=tags.get(MODEL_TAG, ""),
        source=found.source,
        created=found.creation_timestamp / 1000,
        aliases=aliases.get(str(found.version), ()),
        tags=tags,
        run_id=found.run_id or "",
    )


def find(reference: str, config: TrackingConfig, workdir: Path) -> Version:
    """Return the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        ConfigError: there is none.
    """
    match = _REFERENCE.match(reference)
    if match is None:
        raise ConfigError(
            f"{reference!r} names no version of a model. Expected models:/NAME@ALIAS or"
            " models:/NAME/VERSION. Check --model."
        )
    name, number, alias = match.groups()
    registry = Registry(name, config, workdir)
    number = number or _number(registry, alias)
    version = registry.version(number)
    if version is None:
        known = ", ".join(
            " @".join((item.number, *item.aliases)) for item in registry.versions()[:5]
        )
        raise ConfigError(
            f"There is no model {reference} in {store_uri(config, workdir)}. Expected a version of"
            f" {name}: {known or 'none yet'}. Type `alexnet run promote` to make one, or name a"
            " file with --model."
        )
    return version


def _number(registry: Registry, alias: str) -> str:
    with _answering(registry):
        model = _or_none(lambda: registry.client().get_registered_model(registry.name))
        return str(model.aliases.get(alias, "")) if model else ""


def _all_versions(client: Any, condition: str) -> list[Any]:
    found, token = list[Any](), None
    while True:
        page = client.search_model_versions(condition, max_results=1000, page_token=token)
        found, token = [*found, *page], page.token
        if not token:
            return found


def released_models(config: TrackingConfig, workdir: Path) -> tuple[str, ...]:
    """Return the names of the registered models that have a version of ours.

    Raises:
        TrackingError: the registry does not answer.
    """
    with _answering(Registry("", config, workdir)):
        versions = _all_versions(connect(config, workdir), "")
        return tuple(sorted({version.name for version in versions if RELEASE_TAG in version.tags}))


def files_in_use(config: TrackingConfig, workdir: Path) -> dict[str, frozenset[str]]:
    """Return, for the ids of logged models and of runs, the versions that are made of them, such as `alexnet 3`, of any registered model.

    Raises:
        TrackingError: the registry does not answer.
    """
    with _answering(Registry("", config, workdir)):
        used = dict[str, frozenset[str]]()
        for version in _all_versions(connect(config, workdir), ""):
            for made_of in {
                version.source.removeprefix("models:/"),
                version.model_id,
                version.run_id,
            } - {"", None}:
                used[made_of] = used.get(made_of, frozenset()) | {
                    f"{version.name} {version.version}"
                }
        return used


def fetch(version: Version, config: TrackingConfig, workdir: Path, *, again: bool = False) -> Path:
    """Return the folder of a version's files.

    Where they lie, or where they are copied to from a store elsewhere; not verified yet.

    Args:
        version: with a digest.
        config: the tracking store.
        workdir: the work directory, which keeps copies.
        again: a copy that was kept is damaged, and another one is to be had.
    """
    registry = Registry(version.name, config, workdir)
    with _answering(registry):
        client = registry.client()
        logged = (
            version.source.removeprefix("models:/") if version.source.startswith("models:/") else ""
        )
        location = client.get_logged_model(logged).artifact_location if logged else version.source
        parsed = urlparse(location)
        if parsed.scheme in ("", "file"):
            return Path(unquote(parsed.path))
        target = workdir / "fetched" / version.release_sha256
        if again:
            shutil.rmtree(target, ignore_errors=True)
        if not target.exists():
            import mlflow

            partial = workdir / "fetched" / f".{version.release_sha256}.{os.getpid()}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            mlflow.set_tracking_uri(store_uri(config, workdir))
            mlflow.artifacts.download_artifacts(artifact_uri=version.source, dst_path=str(partial))
            with contextlib.suppress(OSError):  # another process was quicker
                partial.rename(target)
            shutil.rmtree(partial, ignore_errors=True)
        return target


def _or_none(call: Any, code: str = "RESOURCE_DOES_NOT_EXIST") -> Any:
    """Return what a call of MLflow returns, or None where it says that something is not there, or another code."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if error.error_code != code:
            raise
        return None


@contextlib.contextmanager
def _answering(registry: Registry) -> Iterator[None]:
    """Turn what the store does not do into a TrackingError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(
            f"The registry in {store_uri(registry.config, registry.workdir)} does not answer"
            f" ({' '.join(str(error).split())[:150]}). Expected a running MLflow server or a"
            " writable folder. Check tracking.uri. Nothing was changed."
        ) from error
