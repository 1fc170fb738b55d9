"""Every setting, by section, and the rules between sections."""

from __future__ import annotations

from pydantic import model_validator

from pipeline.config.data import DataConfig
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.model import ModelConfig
from pipeline.config.release import ReleaseConfig
from pipeline.config.reproduce import ReproduceConfig
from pipeline.config.retrain import RetrainConfig
from pipeline.config.section import Section
from pipeline.config.serve import ServeConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.config.train import TrainConfig, explain_batch_multiple
from pipeline.image_size import sides_of, write_image_size


class Config(Section):
    """Every setting, by section."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    release: ReleaseConfig = ReleaseConfig()
    serve: ServeConfig = ServeConfig()
    retrain: RetrainConfig = RetrainConfig()
    reproduce: ReproduceConfig = ReproduceConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> Config:
        if (
            max(sides_of(self.model.image_size)) > self.data.short_side
            and not self.model.classes
            and not self.evaluate.model
        ):
            raise ValueError(
                f"model.image_size ({write_image_size(self.model.image_size)}) must not exceed"
                f" data.short_side ({self.data.short_side}): crops are cut from images of that side"
            )
        kind, _, replicas = self.train.devices.partition(":")
        unit = self.train.batch_multiple * (int(replicas or 1) if kind == "cpu" else 1)
        batch = self.train.global_batch_size
        if batch % unit:
            raise ValueError(
                f"train.global_batch_size ({batch}) must be a multiple of {unit} for its"
                f" devices{explain_batch_multiple(self.train)}; type --set"
                f" train.global_batch_size={-(-batch // unit) * unit}"
            )
        return self
