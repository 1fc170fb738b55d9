"""MLflow's model registry: versions of a model, and the aliases that say which of them serves.

    champion    the version that serves
    candidate   the version that was judged last
    previous    the version that served before the champion

MLflow sets an alias without a condition, so a caller that moves one holds `lock` and compares the
expected old value first.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.tracking import TrackingConfig
from pipeline.errors import ConfigError
from pipeline.image_size import ImageSize
from pipeline.tracking.flavor import save_keras_flavor
from pipeline.tracking.registry_lock import call_or_none, lock_registry
from pipeline.tracking.store import (
    connect_store,
    get_or_create_experiment,
    get_store_uri,
    read_all_pages,
    translate_store_errors,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CANDIDATE, PREVIOUS = "champion", "candidate", "previous"
RELEASE_TAG = "release_sha256"
MODEL_TAG = "model_sha256"
GATE_TAG = "gate"
WITHDRAWN_TAG = "withdrawn"
# Of the settings that, besides the images, decide the gate's verdict.
SETTINGS_TAG = "settings_sha256"
# The scheduled run that made it.
SCHEDULED_RUN_TAG = "scheduled_run"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REFERENCE = re.compile(r"^models:/([^/@]+)(?:/([0-9]+)|@([A-Za-z0-9_-]+))$")


@dataclass(frozen=True)
class Version:
    """One version of a registered model.

    Attributes:
        name: of the registered model.
        number: of the version.
        release_sha256: digest of the release that it holds; empty where MLflow's own tools
            registered it, or where its tag does not hold a digest.
        model_sha256: digest of the `.keras` file.
        source: address of its files.
        created: time in seconds since 1970.
        aliases: that name it.
        tags: all of them.
        run_id: the MLflow run that trained it; empty where unknown.
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
        """The gate's verdict: `passed`, `waiting`, `refused`, or empty where it was not judged."""
        return self.tags.get(GATE_TAG, "")

    @property
    def withdrawn(self) -> bool:
        """Whether a rollback left it."""
        return self.tags.get(WITHDRAWN_TAG) == "yes"


@dataclass(frozen=True)
class Aliases:
    """The number of the version that each alias names; empty for none."""

    champion: str = ""
    candidate: str = ""
    previous: str = ""


@dataclass(frozen=True)
class Registry:
    """One registered model in the tracking store.

    Every method raises a TrackingError where the store fails.
    """

    name: str
    config: TrackingConfig
    workdir: Path

    def connect(self) -> MlflowClient:
        """Return MLflow's client of the store."""
        return connect_store(self.config, self.workdir)

    def read_aliases(self) -> Aliases:
        """Return which versions the aliases name; none where the model is not registered yet."""
        with self.translate_errors():
            model = call_or_none(lambda: self.connect().get_registered_model(self.name))
            if model is None:
                return Aliases()
            found = {
                alias: str(model.aliases.get(alias, ""))
                for alias in (CHAMPION, CANDIDATE, PREVIOUS)
            }
            return Aliases(**found)

    def read_champion(self) -> Version | None:
        """Return the version that serves, or None."""
        return self.read_version(self.read_aliases().champion)

    def read_version(self, number: str) -> Version | None:
        """Return a version by its number, or None."""
        with self.translate_errors():
            client = self.connect()
            found = (
                call_or_none(lambda: client.get_model_version(self.name, number))
                if number
                else None
            )
            return (
                None
                if found is None
                else _describe_version(found, self._read_aliases_by_version(client))
            )

    def list_versions(self) -> list[Version]:
        """Return all versions, the newest first."""
        return self._search(f"name = '{self.name}'")

    def _search(self, condition: str) -> list[Version]:
        with self.translate_errors():
            client = self.connect()
            aliases, found = (
                self._read_aliases_by_version(client),
                _search_versions(client, condition),
            )
            return sorted(
                (_describe_version(item, aliases) for item in found),
                key=lambda item: -int(item.number),
            )

    def _read_aliases_by_version(self, client: MlflowClient) -> dict[str, tuple[str, ...]]:
        model = call_or_none(lambda: client.get_registered_model(self.name))
        by_version: dict[str, tuple[str, ...]] = {}
        for alias, number in sorted(model.aliases.items()) if model else ():
            by_version[str(number)] = (*by_version.get(str(number), ()), alias)
        return by_version

    def find_release(self, release_sha256: str) -> Version | None:
        """Return the version that holds a release, the newest of several, or None."""
        return next(
            iter(
                self._search(f"name = '{self.name}' and tags.`{RELEASE_TAG}` = '{release_sha256}'")
            ),
            None,
        )

    def register(
        self,
        package: Path,
        image_size: ImageSize,
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
        with self.translate_errors():
            import mlflow

            client = self.connect()
            # A registry in a database looks the logged model up there.
            mlflow.set_tracking_uri(get_store_uri(self.config, self.workdir))
            experiment = get_or_create_experiment(client, self.config, self.workdir)
            scratch = package.with_name(f"{package.name}.mlflow")
            shutil.rmtree(scratch, ignore_errors=True)
            save_keras_flavor(package / "data" / "model.keras", scratch, image_size, known)
            shutil.copytree(package, scratch, dirs_exist_ok=True)
            # So that files whose version was never made are known as ours.
            released = {RELEASE_TAG: tags.get(RELEASE_TAG, "")}
            logged = client.create_logged_model(
                experiment, name=self.name, source_run_id=run_id, tags=released
            )
            client.log_model_artifacts(logged.model_id, str(scratch))
            client.finalize_logged_model(logged.model_id, "READY")
            shutil.rmtree(scratch)
            call_or_none(
                lambda: client.create_registered_model(self.name), "RESOURCE_ALREADY_EXISTS"
            )
            made = client.create_model_version(
                self.name,
                f"models:/{logged.model_id}",
                run_id=run_id,
                tags=dict(tags),
                model_id=logged.model_id,
            )
            return _describe_version(made, {})

    def set_alias(self, alias: str, number: str) -> None:
        """Make an alias name a version."""
        with self.translate_errors():
            self.connect().set_registered_model_alias(self.name, alias, number)

    def set_tags(self, number: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self.translate_errors():
            client = self.connect()
            for key, value in tags.items():
                client.set_model_version_tag(self.name, number, key, value)

    def delete_version(self, number: str) -> bool:
        """Delete a version, unless an alias names it meanwhile.

        Deleting its files is the caller's task.

        Returns:
            Whether it is deleted.
        """
        with self.lock():
            version = self.read_version(number)
            if version is not None and not version.aliases:
                with self.translate_errors():
                    self.connect().delete_model_version(self.name, number)
        return version is None or not version.aliases

    def move_champion(self, number: str, expected: str) -> bool:
        """Make a version the champion; the caller holds the lock.

        The earlier champion becomes `previous`, unless it was withdrawn or holds the same release:
        a rollback to it would be useless.

        Args:
            number: of the version.
            expected: the champion that it was judged against, empty for none.

        Returns:
            Whether it is the champion; False where the champion is not the expected one any more,
            and then nothing is changed.
        """
        if self.read_aliases().champion != expected:
            return False
        before, after = self.read_version(expected), self.read_version(number)
        if (
            before
            and after
            and not before.withdrawn
            and before.release_sha256 != after.release_sha256
        ):
            self.set_alias(PREVIOUS, expected)
        self.set_alias(CHAMPION, number)
        return True

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the right to register and to move aliases, alone among all processes.

        Raises:
            BusyError: another process holds it for longer than any operation takes.
        """
        return lock_registry(self.name, self.config, self.workdir)

    def translate_errors(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which an error of the store is a TrackingError."""
        return _translate_registry_errors(self.config, self.workdir)


def _describe_version(found: ModelVersion, aliases: Mapping[str, tuple[str, ...]]) -> Version:
    tags = dict(found.tags)
    return Version(
        name=found.name,
        number=str(found.version),
        # It names a folder where files from elsewhere are kept: a text that is not a digest could
        # name any other folder.
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


def resolve_version(reference: str, config: TrackingConfig, workdir: Path) -> Version:
    """Return the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        ConfigError: there is none.
    """
    match = _REFERENCE.match(reference)
    if match is None:
        raise ConfigError(
            f"{reference!r} does not name a version of a model",
            expected="models:/NAME@ALIAS or models:/NAME/VERSION",
            hint="Check --model",
        )
    name, number, alias = match.groups()
    registry = Registry(name, config, workdir)
    number = number or _find_number(registry, alias)
    version = registry.read_version(number)
    if version is None:
        known = ", ".join(
            " @".join((item.number, *item.aliases)) for item in registry.list_versions()[:5]
        )
        raise ConfigError(
            f"There is no model {reference} in {get_store_uri(config, workdir)}",
            expected=f"a version of {name}: {known or 'none yet'}",
            hint="Type `alexnet run promote` to make one, or name a file with --model",
        )
    return version


def _find_number(registry: Registry, alias: str) -> str:
    with registry.translate_errors():
        model = call_or_none(lambda: registry.connect().get_registered_model(registry.name))
        return str(model.aliases.get(alias, "")) if model else ""


def _search_versions(client: MlflowClient, condition: str) -> list[ModelVersion]:
    return read_all_pages(
        lambda token: client.search_model_versions(condition, max_results=1000, page_token=token)
    )


def list_released_models(config: TrackingConfig, workdir: Path) -> tuple[str, ...]:
    """Return the names of the registered models that have a version of ours.

    Raises:
        TrackingError: the registry does not answer.
    """
    with _translate_registry_errors(config, workdir):
        versions = _search_versions(connect_store(config, workdir), "")
        return tuple(sorted({version.name for version in versions if RELEASE_TAG in version.tags}))


def list_files_in_use(config: TrackingConfig, workdir: Path) -> dict[str, frozenset[str]]:
    """Return id of a logged model or run -> versions made of it, such as `alexnet 3`.

    Versions of every registered model count.

    Raises:
        TrackingError: the registry does not answer.
    """
    with _translate_registry_errors(config, workdir):
        used = dict[str, frozenset[str]]()
        for version in _search_versions(connect_store(config, workdir), ""):
            for made_of in {
                version.source.removeprefix("models:/"),
                version.model_id,
                version.run_id,
            } - {"", None}:
                used[made_of] = used.get(made_of, frozenset()) | {
                    f"{version.name} {version.version}"
                }
        return used


def _translate_registry_errors(
    config: TrackingConfig, workdir: Path
) -> contextlib.AbstractContextManager[None]:
    return translate_store_errors(
        f"The registry in {get_store_uri(config, workdir)} does not answer",
        ". Nothing was changed.",
    )
