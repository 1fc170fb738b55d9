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

# Below these, the pools of the 224-pixel networks have nothing left to see.
_MIN_IMAGE_SIZE = {
    "small": 16,
    "paper": 64,
    "caffenet": 64,
    "owt": 63,
    "ungrouped": 64,
    "single_tower": 64,
    "cifar": 16,
}
# The networks that section 3.5 of the paper and the code of 2012 describe, each in its own way.
_OF_2012 = ("paper", "ungrouped", "single_tower")
_WITHOUT_LRN = ("owt", "cifar")


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

    def _network_fits(self) -> None:
        """Refuse settings of a network that would change nothing, or leave nothing to see."""
        model = self.model
        least = _MIN_IMAGE_SIZE[model.variant]
        if model.image_size < least:
            raise ValueError(
                f"model.variant={model.variant} needs a model.image_size of at least {least}"
                f" pixels, and was made for 224. Received {model.image_size}; type --set"
                " data.short_side=256 --image-size 224, or keep --variant small"
            )
        if model.fidelity == "paper" and model.variant not in _OF_2012:
            raise ValueError(
                "model.fidelity=paper is a choice between the text and the code of 2012, for"
                f" model.variant {', '.join(_OF_2012)}. Received variant {model.variant}; leave"
                " fidelity out"
            )
        for name, why in self._settings_without_effect():
            if getattr(model, name) != ModelConfig.model_fields[name].default:
                raise ValueError(
                    f"model.{name} would change nothing: {why}. Received {getattr(model, name)};"
                    " leave it out"
                )
        if model.variant == "cifar" and (
            model.remove_layer in ("conv4", "conv5") or model.sixth_layer
        ):
            raise ValueError(
                "model.variant=cifar has three convolutions. Received"
                f" model.remove_layer={model.remove_layer}, sixth_layer={model.sixth_layer}"
            )

    def _settings_without_effect(self) -> list[tuple[str, str]]:
        """Return the settings of the network that this network has no place for, each with the reason."""
        model = self.model
        normalization = (
            "none"
            if model.normalization == "auto" and model.variant in _WITHOUT_LRN
            else model.normalization
        )
        useless: list[tuple[str, str]] = []
        if normalization in ("none", "batch"):
            why = (
                f"variant {model.variant} with normalization={model.normalization} has no LRN (add"
                " --set model.normalization=lrn)"
            )
            useless += [("lrn_alpha", why), ("lrn_across", why)]
        if normalization == "batch":
            why = (
                "with batch normalization the order is convolution, normalization, activation, pool"
            )
            useless += [("layer_order", why), ("spatial_norm", why)]
        if model.variant == "cifar":
            useless += [
                (name, "variant cifar has one order of its layers")
                for name in ("layer_order", "spatial_norm")
            ]
            useless += [
                (name, "variant cifar has no hidden layer, so no dropout")
                for name in ("dropout", "dropout_place")
            ]
            if model.initialization not in ("code", "he", "glorot"):
                useless.append(("initialization", "variant cifar knows auto, code, he and glorot"))
        return useless

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> Config:
        if (
            self.model.image_size > self.data.short_side
            and not self.model.classes
            and not self.evaluate.model
        ):
            raise ValueError(
                f"model.image_size ({self.model.image_size}) must not exceed data.short_side"
                f" ({self.data.short_side}): crops are cut from images of that side"
            )
        self._network_fits()
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
