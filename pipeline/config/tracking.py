"""Settings of the `tracking` section."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.section import Section


class TrackingConfig(Section):
    """Where runs are recorded; it never changes the result of a stage."""

    enabled: bool = Field(True, description="Record runs in MLflow.")
    uri: str = Field(
        "", description="Address of the tracking store; empty: mlflow.db in the work directory."
    )
    experiment: str = Field(
        "alexnet", min_length=1, description="MLflow experiment that holds the runs."
    )
