"""Settings of the `train` section."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config.section import Section


class TrainConfig(Section):
    """How the network is trained."""

    epochs: int = Field(30, ge=1, le=10_000, description="Passes over the training split.")
    global_batch_size: int = Field(
        128, ge=1, le=65_536, description="Images per optimizer step, over all replicas."
    )
    max_minutes: float = Field(
        0.0,
        ge=0,
        description=(
            "End after the last epoch that fits into so many minutes of training; 0 is no limit."
        ),
    )
    early_stopping: int = Field(
        0,
        ge=0,
        le=1000,
        description="End after so many epochs without a lower validation error; 0 is never.",
    )
    optimizer: Literal["sgd", "adamw", "lamb"] = Field(
        "sgd",
        description=(
            "`sgd` with momentum, as in 2012; `adamw` wants a learning_rate of about 0.001, `lamb`"
            " of about 0.005."
        ),
    )
    learning_rate: float = Field(
        0.01, gt=0, le=10, description="Learning rate at the first step after warm-up."
    )
    base_batch_size: int = Field(
        0,
        ge=0,
        le=65_536,
        description=(
            "Images per step that learning_rate is meant for; the rate grows in proportion to"
            " global_batch_size. 0: it does not."
        ),
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD, in [0, 1).")
    weight_decay: float = Field(
        5e-4,
        ge=0,
        lt=1,
        description=(
            "Weight decay: through the momentum of SGD, as the paper's rule; decoupled otherwise."
            " Biases have none."
        ),
    )
    bias_rate: Literal["auto", "same", "double"] = Field(
        "auto",
        description=(
            "Learning rate of SGD's biases: that of the weights, as the paper says, or twice;"
            " `auto` as model.alexnet.fidelity."
        ),
    )
    clip_norm: float = Field(
        0.0,
        ge=0,
        description="Maximum norm of a step's gradient, of all weights together; 0 is no limit.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of each label that is spread over all classes; 0.1 is usual.",
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description=(
            "Score and keep an exponential moving average of the weights with this decay per step;"
            " 0.999 is usual, 0 is none."
        ),
    )
    gradient_accumulation_steps: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description=(
            "Micro-batches per step and device, one after the other, to need less memory; `auto`:"
            " as few as fit."
        ),
    )
    schedule: Literal["plateau", "step", "cosine", "constant"] = Field(
        "plateau",
        description=(
            "`plateau`: /10 when validation error stops improving, three times at most, as in 2012;"
            " `step`: /10 every step_epochs; `cosine`: to zero; `constant`."
        ),
    )
    patience: int = Field(
        5,
        ge=1,
        le=1000,
        description="Epochs without a lower validation error before `plateau` divides the rate.",
    )
    step_epochs: int = Field(
        30, ge=1, le=10_000, description="Epochs after which `step` divides the rate."
    )
    warmup_epochs: int = Field(
        0,
        ge=0,
        le=1000,
        description="Epochs over which the learning rate rises linearly from zero.",
    )
    nan_restarts: int = Field(
        0,
        ge=0,
        le=10,
        description=(
            "Restarts from the last epoch, at half the rate, after a loss that is not finite; then"
            " training ends."
        ),
    )
    checkpoint_seconds: float = Field(
        10.0,
        ge=0,
        description=(
            "Minimum seconds between checkpoints; more where saving would take over 2.5 % of the"
            " time."
        ),
    )
    checkpoint_steps: int = Field(
        0,
        ge=0,
        description="Also save after every so many steps, however long that takes; 0 is never.",
    )
    watchdog_seconds: float = Field(
        600.0,
        ge=0,
        description=(
            "End, naming what hangs, when a step or a worker takes more than so many seconds; 0"
            " waits for ever."
        ),
    )
    profile_steps: int = Field(
        0,
        ge=0,
        le=1000,
        description=(
            "Write a trace of about so many steps for TensorBoard's profiler; 0 is none. Needs"
            " --rerun train."
        ),
    )
    finetune: Literal["auto", "head", "full", "off"] = Field(
        "auto",
        description=(
            "With pretrained weights, or those of your own function: `head` fits the classifier on"
            " the features of the frozen network; `full` then trains the upper blocks, too, and"
            " keeps that only where it is better beyond chance; `off` trains as from scratch."
            " `auto`: with `imagenet` weights `full` on GPUs and `head` on processors, else `off`."
        ),
    )
    finetune_epochs: int = Field(
        10, ge=1, le=1000, description="Epochs of the second phase of `full`, at most."
    )
    finetune_learning_rate: float = Field(
        0.005,
        gt=0,
        le=10,
        description="Learning rate of the second phase for the classifier, after warm-up.",
    )
    finetune_layer_decay: float = Field(
        0.7,
        gt=0,
        le=1,
        description=(
            "Each block's learning rate in the second phase, as a fraction of that of the block"
            " above it."
        ),
    )
    freeze: str = Field(
        "none",
        min_length=1,
        description=(
            "Layer or block whose weights are kept fixed, with all that it depends on, or"
            " `backbone`, all but the classifier: for `model.weights` and few images."
        ),
    )
    crop: Literal["random", "resized", "center"] = Field(
        "random",
        description=(
            "How training images are cropped: at `random` positions, as in 2012; `resized`: 8-100 %"
            " of the area, stretched; `center`."
        ),
    )
    flip: bool = Field(
        True, description="Mirror training images at random. Wrong for digits and text."
    )
    color_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description=(
            "Standard deviation of the noise along the principal colors of the training images; 0.1"
            " in 2012, 0 is none."
        ),
    )
    color_mode: Literal["auto", "code", "paper"] = Field(
        "auto",
        description=(
            "What color_noise counts: standard deviations, as the code of 2012, or variances on the"
            " 0-1 scale, as the paper; `auto` as model.alexnet.fidelity."
        ),
    )
    randaugment: int = Field(
        0,
        ge=0,
        le=4,
        description=(
            "RandAugment: random changes of shape and color per training image; 2 is usual, 0 is"
            " none."
        ),
    )
    randaugment_magnitude: int = Field(
        9, ge=1, le=30, description="RandAugment: strength of those changes, 1-30."
    )
    random_erasing: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Fraction of training images of which a rectangle is erased; 0.25 is usual.",
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        description=(
            "MixUp: both parameters of the Beta distribution of the fractions; 0.2 is usual, 0 is"
            " none."
        ),
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=10,
        description=(
            "CutMix: both parameters of the Beta distribution of the areas; 1 is usual. With MixUp,"
            " each in turn."
        ),
    )
    class_weights: bool = Field(
        False,
        description="Weight training images so that every class counts the same, however rare.",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description=(
            "What layers compute in; weights and the saved network stay float32. `bfloat16` where"
            " the device has it; `float16` scales the loss and is for GPUs without bfloat16."
        ),
    )
    data_services: str = Field(
        "",
        pattern=r"^([^\s,:]+:[0-9]+(,[^\s,:]+:[0-9]+)*)?$",
        description=(
            "Hosts that decode a streamed training split, `host:port` separated by commas; see"
            " docs/data.md. The result is the same."
        ),
    )
    devices: str = Field(
        "auto",
        pattern=r"^(auto|cpu(:[1-9][0-9]*)?|gpu(:[0-9]+(,[0-9]+)*)?)$",
        description=(
            "`auto` (all GPUs, else the CPU), `cpu`, `cpu:2` (two logical CPUs), `gpu`, `gpu:0,1`."
        ),
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="Seed of the order of images, of augmentation and of dropout.",
    )

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_seconds", "checkpoint_steps", "watchdog_seconds", "profile_steps"}
    )

    @property
    def batch_multiple(self) -> int:
        """The number that divides a device's images of a step.

        MixUp and CutMix join pairs, and micro-batches are equal.
        """
        return math.lcm(
            2 if self.mixup or self.cutmix else 1,
            1 if self.gradient_accumulation_steps == "auto" else self.gradient_accumulation_steps,
        )


def explain_batch_multiple(train: TrainConfig) -> str:
    """Return why a device's images of a step must be a multiple of a number, if they must."""
    reasons = ["MixUp and CutMix work on pairs"] if train.mixup or train.cutmix else []
    reasons += (
        [f"train.gradient_accumulation_steps is {train.gradient_accumulation_steps}"]
        if train.gradient_accumulation_steps not in ("auto", 1)
        else []
    )
    return f" ({', '.join(reasons)})" if reasons else ""
