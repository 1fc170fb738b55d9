"""Settings of the `tracking` section."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.section import Section


class TrackingConfig(Section):
    """Where runs are recorded; never changes what a stage makes."""

    enabled: bool = Field(True, description="Record runs in MLflow.")
    uri: str = Field(
        "", description="MLflow tracking store; empty means mlflow.db in the work directory."
    )
    experiment: str = Field(
        "alexnet", min_length=1, description="MLflow experiment that holds the runs."
    )
