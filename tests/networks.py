"""Settings of networks for tests, from one flat list of names."""

from __future__ import annotations

from pipeline.config.model import AlexNetConfig, ModelConfig


def model_config(**settings):
    """Return the settings of a network; what only AlexNet has goes into its sub-section."""
    names = [name for name in settings if name in AlexNetConfig.model_fields]
    return ModelConfig(alexnet={name: settings.pop(name) for name in names}, **settings)
