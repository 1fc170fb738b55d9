"""The errors of a training that failed: what went wrong, what was expected, what to type."""

from __future__ import annotations

from pipeline.errors import HungError, OutOfMemoryError

# Above this fraction of the weights a layer's step is called the reason.
_LARGE_UPDATE = 0.1


def advise_on_divergence(
    *,
    steps: int,
    epochs: int,
    learning_rate: float,
    precision: str,
    weights_finite: bool,
    largest_update: float,
) -> str:
    """Return the likely cause of a loss that is not finite, and what to type.

    Args:
        steps: optimizer steps done.
        epochs: epochs finished.
        learning_rate: of the step.
        precision: what layers compute in.
        weights_finite: whether every weight is finite.
        largest_update: greatest update ratio of a layer after the last epoch, as a fraction of its
            weights; NaN if there is none.
    """
    if steps <= 1:
        return (
            "It was so at the first step, before any weight had changed: the initial weights and"
            " the scale of the pixels do not fit each other. Look at the file of model.weights and"
            " at the preprocessing inside the network; of an AlexNet, leave"
            " model.alexnet.initialization and model.alexnet.input_scale at auto"
        )
    if precision == "float16" and weights_finite:
        return (
            "Every weight is finite, so a number within the network has left float16's range,"
            " which ends at 65,504. Type --set train.precision=bfloat16, or --set"
            f" train.learning_rate={learning_rate / 10:g}"
        )
    seen = (
        f"; a layer's gradient asked for steps of {largest_update:.0%} of its weights after epoch"
        f" {epochs}"
        if largest_update > _LARGE_UPDATE
        else ""
    )
    return (
        f"The learning rate {learning_rate:g} is probably too high{seen}: try --set"
        f" train.learning_rate={learning_rate / 10:g}, or --set train.warmup_epochs=2, or --set"
        " train.nan_restarts=3 to go on from the last epoch at half the rate"
    )


def make_hung_error(
    *, watchdog_seconds: float, input_stage: str, stage_seconds: float, workers: int
) -> HungError:
    """Return the error for a step that did not end in time.

    Args:
        watchdog_seconds: time that training waited.
        input_stage: the stage of the input that did not answer; empty if all did.
        stage_seconds: time that each stage of the input had, in seconds.
        workers: how many train together.
    """
    start = f"No step ended within {watchdog_seconds:g} s, which is train.watchdog_seconds"
    hint = (
        "Only the steps since the last checkpoint are lost: mend that and type the same command"
        " again"
    )
    if input_stage:
        return HungError(
            f"{start}, and what hangs is {input_stage}",
            expected=f"an answer within {stage_seconds:g} s",
            received="none",
            hint=hint,
        )
    others = " or another worker" if workers > 1 else ""
    return HungError(
        f"{start}. Images do arrive, so what hangs is the step itself: its device{others}",
        expected="a step to end",
        hint=f"{hint}. If steps really take so long, set train.watchdog_seconds higher",
    )


def make_unfitting_error() -> OutOfMemoryError:
    """Return the error for a network of which not even one image fits into memory."""
    return OutOfMemoryError(
        "A step does not fit into the device's memory, not even with one image at a time",
        expected="a smaller network or image",
        hint="Try a smaller --image-size, or a smaller --network",
    )


def make_memory_error(
    *, images: int, fitting_images: int, steps: int, batch_size: int, automatic: bool
) -> OutOfMemoryError:
    """Return the error for a step that does not fit into memory, with settings that do.

    Args:
        images: that a device took at a time.
        fitting_images: that fit; at least 1.
        steps: train.gradient_accumulation_steps with which they fit.
        batch_size: train.global_batch_size with which they fit.
        automatic: whether the micro-batches were chosen by the program.
    """
    accumulation = f"train.gradient_accumulation_steps={steps}"
    smaller = f"--set train.global_batch_size={batch_size}"
    if automatic:
        return OutOfMemoryError(
            f"A micro-batch of {images} images a device does not fit into its memory after all;"
            f" {fitting_images} do",
            hint=f"Type --set {accumulation}, or {smaller}",
        )
    return OutOfMemoryError(
        f"A step of {images} images a device does not fit into its memory; {fitting_images} images"
        " do",
        hint=(
            "Type --auto-batch, which trains the same in micro-batches that fit, or --set"
            f" {accumulation}, or {smaller}"
        ),
    )
