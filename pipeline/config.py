"""Settings: one section a folder, resolved as command line > environment > recipe > default.

A setting is named `section.field`. The command line gives `--set train.epochs=5`, the environment
`ALEXNET_TRAIN__EPOCHS=5`, a recipe is a YAML file of sections.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from pipeline.errors import ConfigError

# Below these, the pools of the 224-pixel networks have nothing left to see.
_LEAST_IMAGE_SIZE = {"small": 16, "paper": 64, "caffenet": 64, "owt": 63, "ungrouped": 64, "single_tower": 64, "cifar": 16}
# The networks that section 3.5 of the paper and the code of 2012 describe, each in its own way.
_OF_2012 = ("paper", "ungrouped", "single_tower")
_WITHOUT_LRN = ("owt", "cifar")
ENVIRONMENT_PREFIX = "ALEXNET_"
DEFAULT_RECIPE = "digits"
_ANY_PICTURES = "folder"
_SUFFIXES = (".yaml", ".yml")


class Section(BaseModel):
    """A frozen group of settings that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
    # Fields that cannot change a stage's result: another value is no reason to run it again.
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `epochs: yes`, which YAML reads as true and pydantic as 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("should be a number, not true or false")
        return value


class DataConfig(Section):
    """Which pictures, and how they are split and stored."""

    dataset: str = Field("digits", min_length=1, description="`digits`, a TFDS name, a folder of class folders, or a manifest (.csv, ...).")
    short_side: int = Field(36, ge=16, le=1024, description="Pixels that the shorter side is resized to; crops are cut from this.")
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="Share of the training images kept for validation where the source names none, in (0, 0.5)."
    )
    test_fraction: float = Field(0.2, gt=0, lt=0.5, description="Share kept for the test where the source names none, in (0, 0.5).")
    max_quarantined_fraction: float = Field(
        0.01, ge=0, le=1, description="Ingest fails when a larger share of the files cannot be used, in [0, 1]."
    )
    # Pillow's own limit, 1024^3 / 4 / 3: a PNG of some kilobytes can hold a picture that fills the memory when it is decoded.
    max_pixels: int = Field(89_478_485, ge=1, description="Files with more pixels are quarantined before they are decoded.")
    max_side: int = Field(65_500, ge=1, description="Files with a longer side, in pixels, are quarantined; 65,500 is libjpeg's own limit.")
    max_file_bytes: int = Field(100_000_000, ge=1, description="Files with more bytes are quarantined unread.")
    duplicates: Literal["set_aside", "report"] = Field(
        "set_aside", description="Copies, exact or near, of a picture of another split: `set_aside` leaves them out, `report` only tells."
    )
    renamed_classes: dict[str, str] = Field(
        {}, description="Old name: new name, for classes that an earlier ingest knew; an empty new name drops the class."
    )
    store: Literal["encoded", "pixels"] = Field(
        "encoded",
        description="`encoded`: the files' bytes alone; `pixels`: also each picture at short_side, uint8, about ten times faster to read.",
    )

    beam: str = Field(
        "",
        description="Apache Beam's options, to prepare very large sets on many machines: `--runner=FlinkRunner --flink_master=HOST:8081`.",
    )

    @field_validator("renamed_classes", mode="before")
    @classmethod
    def _from_words(cls, value: Any) -> Any:
        """Take `old=new,older=newer` of a command line."""
        if not isinstance(value, str):
            return value
        words = [word for word in value.split(",") if word.strip()]
        if not all("=" in word for word in words):
            raise ValueError("should be old=new, with commas between several")
        return {old.strip(): new.strip() for old, new in (word.split("=", 1) for word in words)}


class ModelConfig(Section):
    """Which network. docs/model.md says what each choice was in 2012 and where it comes from."""

    variant: Literal["small", "paper", "caffenet", "owt", "ungrouped", "single_tower", "cifar"] = Field(
        "small",
        description="`small`: the 2012 pattern for 28-96 pixel images; `paper`: two towers, 2012; `caffenet`: Caffe's; `owt`: one tower, "
        "2014, torchvision's; `ungrouped`: 2012 without towers; `single_tower`: half of 2012, its one-GPU control; `cifar`: four layers.",
    )
    fidelity: Literal["code", "paper"] = Field(
        "code",
        description="For paper, ungrouped, single_tower: `code`, the program that made the published numbers, or the `paper`'s text. "
        "Decides lrn_alpha, lrn_across, layer_order, spatial_norm, initialization and train.color_mode where they are `auto`.",
    )
    image_size: int = Field(32, ge=16, le=512, description="Height and width of the network's input, in pixels; 224 in 2012.")
    classes: int = Field(0, ge=0, le=1_000_000, description="Look at a network for so many classes, without a dataset; 0: the dataset's.")
    width_multiplier: float = Field(
        1.0, gt=0, le=4, description="Scales every layer's width but the last; less is faster. Recipes fit it to the machine's time."
    )
    activation: Literal["relu", "tanh", "sigmoid", "leaky_relu", "elu", "gelu", "silu"] = Field(
        "relu", description="What follows each layer but the last; the paper's figure 1 compares relu and tanh."
    )
    normalization: Literal["auto", "lrn", "batch", "none"] = Field(
        "auto",
        description="`lrn` after the first two convolutions, as in 2012; `batch`: after every convolution, over all replicas; `none`. "
        "`auto`: none for owt and cifar, else lrn.",
    )
    lrn_alpha: Literal["auto"] | float = Field(
        "auto", description="LRN's alpha in the paper's formula: 1e-4 in its text; 2e-5 in its code and in Caffe, which divide by 5 maps."
    )
    lrn_across: Literal["auto", "maps", "tower"] = Field(
        "auto",
        description="LRN sums over all neighbouring `maps`, as the paper and Caffe, or over those of one `tower`, as the code of 2012.",
    )
    layer_order: Literal["auto", "code", "paper", "caffe"] = Field(
        "auto", description="First layers: `code` conv, LRN, pool, ReLU; `paper` conv, ReLU, LRN, pool; `caffe` conv, ReLU, pool, LRN."
    )
    spatial_norm: Literal["auto"] | bool = Field(
        "auto", description="The unpublished normalisation over 5 x 5 positions after the second LRN, which the code of 2012 has."
    )
    overlapping_pooling: bool = Field(True, description="Pools of 3 x 3, 2 apart, as in 2012; without, 2 x 2.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of units dropped while training, in [0, 1).")
    dropout_place: Literal["after", "before"] = Field(
        "after", description="`after` fc6 and fc7, as in 2012; `before` them, as in torchvision."
    )
    remove_layer: Literal["none", "conv2", "conv3", "conv4", "conv5"] = Field(
        "none", description="Leave out one convolution, as section 7 of the paper does."
    )
    sixth_layer: bool = Field(
        False, description="One more convolution, over the last pool, as in the pre-trained networks of the paper's table 2."
    )
    initialization: Literal["auto", "code", "paper", "caffe", "caffenet", "he", "glorot"] = Field(
        "auto",
        description="Fresh weights: Gaussians of the 2012 `code`, of the `paper`, of Caffe's AlexNet or CaffeNet; `he`; `glorot`, Keras's.",
    )
    input_scale: Literal["auto", "levels", "unit", "fraction"] = Field(
        "auto",
        description="Pixels inside the network: `levels` 0-255 less the mean; `unit` also divided by the deviation; `fraction`: 0-1. A "
        "pair with initialization; `auto` is unit for he and glorot, else levels.",
    )
    weights: str = Field(
        "",
        description="File to start from: `.keras`; torchvision's AlexNet, `.pth` or `.safetensors`; Caffe's, `.npy` or `.npz`.",
    )
    classifier: Literal["auto", "keep", "fresh"] = Field(
        "auto", description="The last layer of `weights`: `auto` keeps it where the classes are the same, else it starts afresh."
    )
    signal_check: Literal["stop", "warn", "off"] = Field(
        "stop", description="What becomes of a network through which no signal passes, so that it would not learn."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the initial weights.")


class TrainConfig(Section):
    """How the network is trained."""

    epochs: int = Field(30, ge=1, le=10_000, description="Passes over the training split.")
    global_batch_size: int = Field(128, ge=1, le=65_536, description="Images per optimiser step, over all replicas.")
    minutes: float = Field(
        0.0, ge=0, description="End when these minutes of training would be exceeded, after whole epochs; 0 is no such end."
    )
    early_stopping: int = Field(0, ge=0, le=1000, description="End after so many epochs without a better validation error; 0 is never.")
    optimizer: Literal["sgd", "adamw", "lamb"] = Field(
        "sgd", description="`sgd` with momentum, as in 2012; `adamw` wants a learning_rate of about 0.001, `lamb` of about 0.005."
    )
    learning_rate: float = Field(0.01, gt=0, le=10, description="Learning rate at the first step after warm-up.")
    base_batch_size: int = Field(
        0,
        ge=0,
        le=65_536,
        description="Images a step that learning_rate is meant for; it grows in proportion to global_batch_size. 0: it does not.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD, in [0, 1).")
    weight_decay: float = Field(
        5e-4,
        ge=0,
        lt=1,
        description="Weight decay: through the momentum of SGD, as the paper's rule; decoupled otherwise. Biases have none.",
    )
    bias_rate: Literal["auto", "same", "double"] = Field(
        "auto", description="Learning rate of SGD's biases: that of the weights, as the paper says, or twice; `auto` as model.fidelity."
    )
    clip_norm: float = Field(0.0, ge=0, description="Greatest length of a step's gradient, of all weights together; 0 is no bound.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of each label that is spread over all classes; 0.1 is usual.")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Judge and keep a running mean of the weights, of which each step keeps this share; 0.999 is usual, 0 is none.",
    )
    accumulate: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="Parts that a device takes its images of a step in, one after the other, to need less memory; `auto`: as few as fit.",
    )
    schedule: Literal["plateau", "step", "cosine", "constant"] = Field(
        "plateau",
        description="`plateau`: /10 when validation error stops improving, three times at most, as in 2012; `step`: /10 every step_epochs; "
        "`cosine`: to zero; `constant`.",
    )
    patience: int = Field(5, ge=1, le=1000, description="Epochs without a better validation error before `plateau` divides the rate.")
    step_epochs: int = Field(30, ge=1, le=10_000, description="Epochs after which `step` divides the rate.")
    warmup_epochs: int = Field(0, ge=0, le=1000, description="Epochs over which the learning rate rises linearly from zero.")
    setbacks: int = Field(
        0,
        ge=0,
        le=10,
        description="How often training may go back to the last epoch, at half the rate, when the loss is not finite; else it ends.",
    )
    checkpoint_seconds: float = Field(
        10.0, ge=0, description="Least time between checkpoints; they are rarer where they would take more than 2.5 % of the time."
    )
    checkpoint_steps: int = Field(0, ge=0, description="Also save after every so many steps, however long that takes; 0 is never.")
    hang_seconds: float = Field(
        600.0, ge=0, description="End when a step, or a worker, does not come for so long, and say what hangs; 0 is to wait for ever."
    )
    profile: int = Field(
        0,
        ge=0,
        le=1000,
        description="Write a trace of about so many steps, for TensorBoard's profiler; 0 is none. With --rerun train.",
    )
    freeze: Literal["none", "conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"] = Field(
        "none", description="Keep the weights of the layers up to and including this one: for `model.weights` and few pictures."
    )
    crop: Literal["random", "resized", "center"] = Field(
        "random",
        description="How training images are cut: at `random` places, as in 2012; `resized`: 8-100 % of the area, stretched; `center`.",
    )
    flip: bool = Field(True, description="Mirror training images at random. Wrong for digits and text.")
    color_noise: float = Field(
        0.0, ge=0, le=1, description="Spread of the noise along the principal colours of the training images; 0.1 in 2012, 0 is none."
    )
    color_mode: Literal["auto", "code", "paper"] = Field(
        "auto",
        description="What color_noise counts: standard deviations, as the code of 2012, or variances on the 0-1 scale, as the paper; "
        "`auto` as model.fidelity.",
    )
    randaugment: int = Field(
        0, ge=0, le=4, description="Random changes of shape and colour a training image, as RandAugment draws them; 2 is usual, 0 is none."
    )
    randaugment_magnitude: int = Field(9, ge=1, le=30, description="How strong those changes are, on RandAugment's scale of 30.")
    erasing: float = Field(0.0, ge=0, le=1, description="Share of the training images of which a rectangle is erased; 0.25 is usual.")
    mixup: float = Field(
        0.0, ge=0, le=10, description="MixUp: both parameters of the Beta distribution of the shares; 0.2 is usual, 0 is none."
    )
    cutmix: float = Field(
        0.0, ge=0, le=10, description="CutMix: both parameters of the Beta distribution of the areas; 1 is usual. With MixUp, each in turn."
    )
    class_weights: bool = Field(False, description="Weigh each training image so that every class counts the same, however rare.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="What layers compute in; weights and the saved network stay float32. `bfloat16` where the device has it; `float16` "
        "scales the loss and is for GPUs without bfloat16.",
    )
    data_services: str = Field(
        "",
        pattern=r"^([^\s,:]+:[0-9]+(,[^\s,:]+:[0-9]+)*)?$",
        description="Hosts that decode a streamed training split, `host:port` with commas; see docs/data.md. The result is the same.",
    )
    devices: str = Field(
        "auto",
        pattern=r"^(auto|cpu(:[1-9][0-9]*)?|gpu(:[0-9]+(,[0-9]+)*)?)$",
        description="`auto` (all GPUs, else the CPU), `cpu`, `cpu:2` (two logical CPUs), `gpu`, `gpu:0,1`.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the order of images, of augmentation and of dropout.")

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"checkpoint_seconds", "checkpoint_steps", "hang_seconds", "profile"})

    @property
    def unit(self) -> int:
        """What a device's share of a batch must be a multiple of: MixUp and CutMix join pairs, and parts are equal."""
        return math.lcm(2 if self.mixup or self.cutmix else 1, 1 if self.accumulate == "auto" else self.accumulate)


class EvaluateConfig(Section):
    """How the trained network is judged."""

    split: Literal["test", "validation"] = Field("test", description="Which split to score.")
    view: Literal["center", "ten"] = Field(
        "center",
        description="`center`: the central crop; `ten`: the mean of ten crops as in the paper, ten times slower.",
    )
    global_batch_size: int = Field(
        256, ge=1, le=65_536, description="Images per forward step; logits may depend on it in their last digit, nothing else does."
    )
    report: Literal["full", "short"] = Field(
        "full", description="`short` leaves out corrupted pictures, the network's inside and its speed, which take most of the time."
    )
    model: str = Field(
        "",
        description="Judge this model instead of the trained one: a `.keras` file, models:/NAME@ALIAS, or the id of an MLflow run.",
    )

    # With a model of its own the stage is another one, which knows it by its bytes and not by its name.
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"model"})


class ReleaseConfig(Section):
    """When a trained network may take the champion's place. docs/release.md says what each check decides, and with how many pictures."""

    name: str = Field("alexnet", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the model in MLflow's registry.")
    policy: Literal["non_inferior", "superior"] = Field(
        "non_inferior",
        description="`non_inferior`: fresh data counts when quality holds; `superior`: the candidate must be better, beyond chance.",
    )
    margin: float = Field(
        0.01, gt=0, lt=1, description="How much higher than the champion's the top-1 error may be, as a share of the test pictures."
    )
    class_margin: float = Field(0.1, gt=0, le=1, description="By how much no class's recall may fall, as a share of its pictures.")
    most_top1_error: float = Field(1.0, ge=0, le=1, description="Highest top-1 error of a model that is released, in [0, 1].")
    least_class_recall: float = Field(0.0, ge=0, le=1, description="Lowest recall of any class, in [0, 1].")
    most_calibration_error: float = Field(
        0.1, ge=0, le=1, description="Highest calibration error with the fitted temperature, beyond chance, in [0, 1]."
    )
    most_latency_milliseconds: float = Field(1000.0, gt=0, description="Longest time that 95 of 100 single pictures may take here.")
    most_megabytes: float = Field(1000.0, gt=0, description="Largest model file.")
    test_pictures: Literal["frozen", "current"] = Field(
        "frozen",
        description="`frozen`: judged on the test pictures, and labels, that the champion was released by, and on those of new classes; "
        "`current`: on the test split as it is now.",
    )
    approval: Literal["none", "required"] = Field(
        "none", description="`required`: what passed waits as the candidate until a person types `alexnet promote --approve`."
    )
    approve: bool = Field(False, description="The approval, by the person who types the command.")
    dry_run: bool = Field(False, description="Judge, and say what would happen; nothing is registered and no alias moves.")


class RetrainConfig(Section):
    """When a slot of the schedule retrains, and what a retraining is. docs/retraining.md says what each trigger looks at."""

    triggers: tuple[Literal["always", "new_data", "drift", "champion_fall", "age"], ...] = Field(
        ("new_data", "drift", "champion_fall", "age"),
        min_length=1,
        description="What a slot retrains for, with commas between several; one that fires is enough. `always`: the schedule decides.",
    )
    least_new_images: int = Field(
        0, ge=0, description="`new_data` fires from so many pictures on that are new, gone or labelled otherwise; 0: their share decides."
    )
    least_new_share: float = Field(
        0.05, ge=0, le=100, description="The same as a share of the champion's pictures; 0: their number decides. Either is enough."
    )
    level: float = Field(
        0.05, ge=0.01, lt=0.5, description="How often a slot may take chance for a drift, and how often for a fall of the champion."
    )
    fall_margin: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="By how much the champion's top-1 error must be higher on newly labelled pictures to be a fall.",
    )
    most_age_days: float = Field(90.0, gt=0, description="`age` fires for a champion that is older, in days.")

    start: Literal["fresh", "champion"] = Field(
        "fresh",
        description="`fresh`: train from fresh weights; `champion`: go on from the champion's, quicker, and with its habits.",
    )
    timeout_hours: float = Field(24.0, gt=0, le=8760, description="A retraining that takes longer is ended and counts as failed, in hours.")
    retries: int = Field(
        3, ge=0, le=100, description="How often a retraining is tried again that failed for a reason which may pass, such as a busy folder."
    )
    backoff_seconds: float = Field(60.0, gt=0, le=86_400, description="Pause before the first such try, in seconds; it doubles each time.")
    drain_seconds: float = Field(
        20.0,
        ge=0,
        le=86_400,
        description="How long a retraining may go on when the scheduler is asked to end; the next start goes on with it.",
    )
    hook: str = Field(
        "",
        description="Told of what was promoted, refused, failed or waits: a shell command, which reads JSON, or an http(s) address.",
    )
    keep: int = Field(5, ge=1, le=10_000, description="How many retrainings are kept besides the champion, the one before and the best.")

    @field_validator("triggers", mode="before")
    @classmethod
    def _from_words(cls, value: Any) -> Any:
        """Take `drift,age` of a command line."""
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _new_data_can_fire(self) -> Self:
        if "new_data" in self.triggers and not (self.least_new_images or self.least_new_share):
            raise ValueError("new_data needs least_new_images or least_new_share above 0; leave it out of triggers, or give one of them")
        return self


class ReproduceConfig(Section):
    """How large the experiments are that measure the claims of 2012 again. docs/reproduction.md says what each of them does."""

    seeds: int = Field(3, ge=1, le=100, description="Trainings of each arm, each with a seed of its own; intervals need two at least.")
    images: int = Field(0, ge=0, description="Training pictures of the ablations, the first so many of the split; 0: all.")
    tuning_epochs: int = Field(
        2, ge=1, le=1000, description="Epochs of the short trainings that a learning rate is chosen by, for each arm and seed."
    )
    race_images: int = Field(6_400, ge=0, description="Training pictures of the race of activations, the paper's figure 1; 0: all.")
    race_epochs: int = Field(75, ge=1, le=10_000, description="Epochs after which an arm of that race is given up.")
    plain_images: int = Field(6_400, ge=0, description="Training pictures of the plain networks of 4 to 16 layers; 0: all.")
    plain_epochs: int = Field(10, ge=1, le=10_000, description="Epochs of those.")
    budget_minutes: float = Field(0, ge=0, description="Begin no training after so many minutes; the next command goes on. 0: no end.")

    # What an experiment depends on is in its own account.
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"seeds", "images", "tuning_epochs", "race_images", "race_epochs", "plain_images", "plain_epochs", "budget_minutes"}
    )


class ServeConfig(Section):
    """How the champion answers over HTTP. Nothing here changes an answer."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen at; another than the loopback lets other machines in.")
    port: int = Field(8080, ge=1, le=65_535, description="Port to listen at.")
    batch: int = Field(32, ge=1, le=1024, description="Most pictures that are answered together.")
    wait_milliseconds: float = Field(2.0, ge=0, le=1000, description="How long the first picture waits for others to be answered with.")
    queue: int = Field(256, ge=1, le=65_536, description="Pictures that may wait; what comes on top is told to try again: 429.")
    most_megabytes: float = Field(10.0, gt=0, le=1000, description="Largest request.")
    most_pixels: int = Field(50_000_000, ge=1, le=89_478_485, description="Largest picture, known before it is decoded.")
    most_pictures: int = Field(64, ge=1, le=1024, description="Most pictures in a request.")
    upload_seconds: float = Field(30.0, gt=0, le=3600, description="How long a request may take to come in.")
    reload_seconds: float = Field(5.0, gt=0, le=86_400, description="How often the alias is looked up, for a new champion.")


class TrackingConfig(Section):
    """Where runs are recorded; never changes what a stage makes."""

    enabled: bool = Field(True, description="Record runs in MLflow.")
    uri: str = Field("", description="MLflow tracking store; empty means mlflow.db in the work directory.")
    experiment: str = Field("alexnet", min_length=1, description="MLflow experiment that holds the runs.")


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
        least = _LEAST_IMAGE_SIZE[model.variant]
        if model.image_size < least:
            raise ValueError(
                f"model.variant={model.variant} needs a model.image_size of at least {least} pixels, and was made for 224. Received "
                f"{model.image_size}; type --set data.short_side=256 --image-size 224, or keep --variant small"
            )
        if model.fidelity == "paper" and model.variant not in _OF_2012:
            raise ValueError(
                f"model.fidelity=paper is a choice between the text and the code of 2012, for model.variant {', '.join(_OF_2012)}. "
                f"Received variant {model.variant}; leave fidelity out"
            )
        for name, why in self._settings_without_effect():
            if getattr(model, name) != ModelConfig.model_fields[name].default:
                raise ValueError(f"model.{name} would change nothing: {why}. Received {getattr(model, name)}; leave it out")
        if model.variant == "cifar" and (model.remove_layer in ("conv4", "conv5") or model.sixth_layer):
            raise ValueError(
                f"model.variant=cifar has three convolutions. Received model.remove_layer={model.remove_layer}, "
                f"sixth_layer={model.sixth_layer}"
            )

    def _settings_without_effect(self) -> list[tuple[str, str]]:
        """Return the settings of the network that this network has no place for, each with the reason."""
        model = self.model
        normalization = "none" if model.normalization == "auto" and model.variant in _WITHOUT_LRN else model.normalization
        useless: list[tuple[str, str]] = []
        if normalization in ("none", "batch"):
            why = f"variant {model.variant} with normalization={model.normalization} has no LRN (add --set model.normalization=lrn)"
            useless += [("lrn_alpha", why), ("lrn_across", why)]
        if normalization == "batch":
            why = "with batch normalisation the order is convolution, normalisation, activation, pool"
            useless += [("layer_order", why), ("spatial_norm", why)]
        if model.variant == "cifar":
            useless += [(name, "variant cifar has one order of its layers") for name in ("layer_order", "spatial_norm")]
            useless += [(name, "variant cifar has no hidden layer, so no dropout") for name in ("dropout", "dropout_place")]
            if model.initialization not in ("code", "he", "glorot"):
                useless.append(("initialization", "variant cifar knows auto, code, he and glorot"))
        return useless

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> Config:
        if self.model.image_size > self.data.short_side and not self.model.classes and not self.evaluate.model:
            raise ValueError(
                f"model.image_size ({self.model.image_size}) must not exceed data.short_side ({self.data.short_side}): "
                "crops are cut from images of that side"
            )
        self._network_fits()
        kind, _, replicas = self.train.devices.partition(":")
        unit = self.train.unit * (int(replicas or 1) if kind == "cpu" else 1)
        batch = self.train.global_batch_size
        if batch % unit:
            raise ValueError(
                f"train.global_batch_size ({batch}) must be a multiple of {unit} for its devices{why_unit(self.train)}; type "
                f"--set train.global_batch_size={-(-batch // unit) * unit}"
            )
        return self


def why_unit(train: TrainConfig) -> str:
    """Say why a device's share of a batch must be a multiple of something, if it must."""
    reasons = ["MixUp and CutMix work on pairs"] if train.mixup or train.cutmix else []
    reasons += [f"train.accumulate is {train.accumulate}"] if train.accumulate not in ("auto", 1) else []
    return f" ({', '.join(reasons)})" if reasons else ""


@dataclass(frozen=True)
class Resolved:
    """The settings in force, and where each came from."""

    config: Config
    recipe: str
    origins: dict[str, str]

    def flat(self) -> dict[str, Any]:
        """Return `section.field` -> value for every setting."""
        return flatten(self.config.model_dump())


def flatten(nested: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return {section: {field: value}} as {`section.field`: value}."""
    return {f"{section}.{name}": value for section, fields in nested.items() for name, value in fields.items()}


def field_names() -> tuple[str, ...]:
    """Return every `section.field` there is."""
    return tuple(flatten(Config().model_dump()))


def words_of(key: str) -> tuple[str, ...]:
    """Return the words that a setting may be, such as `small` for `model.variant`."""
    section, _, name = key.partition(".")
    return tuple(word for word in get_args(type(getattr(Config(), section)).model_fields[name].annotation) if isinstance(word, str))


def recipe_names() -> tuple[str, ...]:
    """Return the names of the packaged recipes."""
    folder = resources.files("pipeline.recipes")
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(_SUFFIXES)))


def recipe_for(dataset: str) -> str:
    """Return the packaged recipe that fits a dataset when none was asked for.

    A recipe of the same name if there is one, else `folder`: settings for pictures of unknown content.
    """
    name = dataset.partition(":")[0].partition("/")[0]
    return name if name in recipe_names() else _ANY_PICTURES


def near_miss(word: str, known: tuple[str, ...]) -> str:
    """Return ` Did you mean ...?`, or nothing when no known word is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean `{close[0]}`?" if close else ""


def read_recipe(recipe: str) -> dict[str, Any]:
    """Return a recipe, packaged or a YAML file, as {`section.field`: value}.

    Raises:
        ConfigError: there is no such recipe, or it is not a mapping of sections.
    """
    try:
        if recipe.endswith(_SUFFIXES):
            text = Path(recipe).expanduser().read_text(encoding="utf-8")
        else:
            text = (resources.files("pipeline.recipes") / f"{recipe}.yaml").read_text(encoding="utf-8")
        parsed = yaml.safe_load(text)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: `~somebody` has no home
        known = recipe_names()
        raise ConfigError(
            f"There is no readable recipe `{recipe}` ({getattr(error, 'strerror', None) or error}). Expected one of "
            f"{', '.join(known)}, or a .yaml file.{near_miss(recipe, known)}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The recipe {recipe} is not valid YAML: {' '.join(str(error).split())}. Mend the file and try again.") from error
    parsed = {} if parsed is None else parsed
    if not isinstance(parsed, dict) or not all(isinstance(fields, dict) for fields in parsed.values()):
        raise ConfigError(
            f"The recipe {recipe} must map sections to settings, such as `train: {{epochs: 5}}`. Received {type(parsed).__name__}: "
            f"{str(parsed)[:80]!r}."
        )
    for section in parsed:
        if section not in Config.model_fields:
            known = tuple(Config.model_fields)
            raise ConfigError(
                f"There is no section `{section}` (from recipe {recipe}). Expected {', '.join(known)}.{near_miss(str(section), known)}"
            )
    return flatten(parsed)


def environment_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings given as `ALEXNET_SECTION__FIELD`."""
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".", 1): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX) and "__" in name
    }


def parse_assignments(assignments: tuple[str, ...]) -> dict[str, str]:
    """Return `--set section.field=value` words as a mapping."""
    for word in assignments:
        if "=" not in word:
            raise ConfigError(f"--set expects section.field=value, such as train.epochs=5. Received {word!r}.")
    return dict(word.split("=", 1) for word in assignments)


def resolve(
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    remembered: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Resolved:
    """Return the settings in force.

    Args:
        recipe: name of a packaged recipe or a YAML file; by default the one that fits `data.dataset`.
        overrides: `section.field` -> value from the command line; the last word.
        remembered: `section.field` -> value of stages already finished in the work directory; above the recipe.
        environment: variables to read `ALEXNET_SECTION__FIELD` from; `os.environ` by default.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range.
    """
    overrides = dict(overrides or {})
    from_environment = environment_settings(os.environ if environment is None else environment)
    dataset = overrides.get("data.dataset", from_environment.get("data.dataset"))
    name = recipe or (recipe_for(str(dataset)) if dataset is not None else DEFAULT_RECIPE)
    from_recipe = read_recipe(name)
    if dataset == name and "data.dataset" in from_recipe and not Path(name).is_dir():
        overrides.pop("data.dataset", None)  # `--dataset imagenette` means what the recipe of that name says
        from_environment.pop("data.dataset", None)
    if name == _ANY_PICTURES and dataset is None and "data.dataset" not in (remembered or {}):
        raise ConfigError(
            "The recipe `folder` is for pictures of your own. Expected a folder or a CSV manifest. Type --dataset PATH as well."
        )
    layers: tuple[tuple[str, Mapping[str, Any]], ...] = (
        (f"recipe {name}", from_recipe),
        ("last command here", remembered or {}),
        ("environment", from_environment),
        ("command line", overrides),
    )
    nested: dict[str, dict[str, Any]] = {section: {} for section in Config.model_fields}
    origins = dict.fromkeys(field_names(), "default")
    for origin, settings in layers:
        for key, value in settings.items():
            _require_known(key, origin)
            section, _, field = key.partition(".")
            nested[section][field] = value
            origins[key] = origin
    try:
        config = Config.model_validate(nested)
    except ValidationError as error:
        raise ConfigError(_sentence(error, origins)) from error
    return Resolved(config=config, recipe=name, origins=origins)


def _require_known(key: str, origin: str) -> None:
    """Raise a ConfigError for a setting that does not exist."""
    known = field_names()
    if key not in known:
        raise ConfigError(f"There is no setting `{key}` (from {origin}).{near_miss(key, known)} Type `alexnet config` to see them all.")


def _sentence(error: ValidationError, origins: Mapping[str, str]) -> str:
    """Return pydantic's complaints as one sentence a setting."""
    sentences = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        where = f"`{key}` " if key else ""
        received = f" Received {item['input']!r} (from {origins.get(key, 'settings')})." if key else ""
        sentences.append(f"{where}{message}.{received}")
    return " ".join(sentences) + " Type `alexnet config` to see every setting."
