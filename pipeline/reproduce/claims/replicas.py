"""Claim: the network trains slightly faster on two GPUs than half of it on one (section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.model import ModelConfig
from pipeline.config.train import TrainConfig
from pipeline.reports.claim_records import ArmRow, ClaimFigure, ClaimQuestion
from pipeline.reproduce.arms import list_no_arms
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.experiment import ArmMeasurements, Conclusion, Experiment
from pipeline.reproduce.timing import (
    describe_processors,
    list_visible_gpus,
    time_on_one_and_two_devices,
)
from pipeline.reproduce.verdict import judge_effects, make_unmeasured_finding

_REPLICA_PAIRS = 3
_REPLICA_STEPS, _REPLICA_SECONDS = 30, 4.0  # limits of a timing
_REPLICA_RATIO = ClaimQuestion(
    quantity=(
        "images/s of the two-tower network on two devices, over those of the network with half the"
        " filters on one"
    ),
    unit="times",
    published=None,
    source="qualitative: paper, section 3.2, 'slightly less time'",
    null_effect=1.0,
)
_REPLICA_LABELS = {
    "half": "half the filters, one device",
    "one": "two towers, one device",
    "two": "two towers, two devices",
}


def conclude_replicas(run: ClaimRun, _measured: ArmMeasurements) -> Conclusion:
    """Compare how fast the networks train."""
    # First, as it configures TensorFlow before anything else imports it.
    model, gpus = run.config.model, list_visible_gpus(run.config.train)
    from pipeline.model.alexnet_rows import AlexNetRow
    from pipeline.model.networks import find_network
    from pipeline.reports.claim_figures import draw_arms

    row = find_network(model.network)
    if not isinstance(row, AlexNetRow) or row.layers.towers < 2:
        why = (
            f"The network {model.network} has no two towers. Type `alexnet reproduce replicas --set"
            " model.network=small`, or `paper`."
        )
        return Conclusion((make_unmeasured_finding(_REPLICA_RATIO, why),))
    has_two_gpus = len(gpus) > 1
    devices = [f"gpu:{gpus[0]}", f"gpu:{gpus[0]},{gpus[1]}"] if has_two_gpus else ["cpu", "cpu:2"]
    train = fit_batch_to_devices(2, run.config.train)
    spec = {
        "devices": devices,
        "networks": {
            "half": halve_network(model).model_dump(mode="json"),
            "whole": model.model_dump(mode="json"),
        },
        "settings": train.model_dump(mode="json"),
        "pairs": _REPLICA_PAIRS,
        "steps": _REPLICA_STEPS,
        "seconds": _REPLICA_SECONDS,
    }
    made = run.perform_experiment(
        f"replicas-{devices[1].replace(':', '').replace(',', '-')}",
        spec,
        time_on_one_and_two_devices,
    )
    speeds = {
        arm: [made.numbers[f"{arm}/{pair}"] for pair in range(_REPLICA_PAIRS)]
        for arm in _REPLICA_LABELS
    }
    rows = tuple(
        ArmRow(
            arm=label,
            setting=devices[arm == "two"],
            values={"images_per_second": tuple(speeds[arm])},
        )
        for arm, label in _REPLICA_LABELS.items()
    )
    draw_arms(rows, "images_per_second", run.folder / "speeds.png", xlabel="training images/s")
    caption = (
        "Images/s while training, one dot per timing. The claim is that the lowest row is faster"
        " than the first."
    )
    ratios = [two / half for two, half in zip(speeds["two"], speeds["half"], strict=True)]
    why = (
        "There are no two GPUs here, and two replicas on the processor share its cores, so their"
        " speed does not predict that of two GPUs. `alexnet reproduce replicas` on a machine with"
        " two GPUs measures it."
    )
    finding = (
        judge_effects(_REPLICA_RATIO, ratios)
        if has_two_gpus
        else make_unmeasured_finding(_REPLICA_RATIO, why)
    )
    return Conclusion(
        (finding,),
        rows,
        (ClaimFigure(file="speeds.png", caption=caption),),
        _write_replica_notes(speeds, train.global_batch_size, on_gpus=has_two_gpus),
    )


def _write_replica_notes(
    speeds: Mapping[str, Sequence[float]], batch: int, *, on_gpus: bool
) -> tuple[str, ...]:
    """Return the speeds beside the claim, and how its two GPUs differed, as notes."""
    halves, ones, twos = (sum(speeds[arm]) / len(speeds[arm]) for arm in ("half", "one", "two"))
    where = "GPUs" if on_gpus else f"replicas on the same {describe_processors()}"
    return (
        (
            f"On two {where} the two-tower network trains at {twos / ones:.2f} times its images/s"
            f" on one, and at {twos / halves:.2f} times those of the network with half the filters;"
            f" {batch} images per step in each, noise of a fixed seed."
        ),
        (
            "In 2012 each GPU held half of the network, and they exchanged activations. Here each"
            " has all of it and half of each batch (MirroredStrategy), and they exchange gradients."
            " Half of the network is `single_tower`, as in 2012; of `small` it is half of every"
            " layer, including the hidden ones."
        ),
    )


def halve_network(model: ModelConfig) -> ModelConfig:
    """Return the one-GPU network of section 3.2, or one with half of every layer.

    Its last convolution and hidden layers are those of the whole network.
    """
    if model.network in ("paper", "caffenet"):
        return model.model_copy(update={"network": "single_tower"})
    half = {"width_multiplier": model.alexnet.width_multiplier / 2}
    return model.model_copy(update={"alexnet": model.alexnet.model_copy(update=half)})


def fit_batch_to_devices(devices: int, config: TrainConfig) -> TrainConfig:
    """Return the settings with the nearest smaller batch that some devices can share."""
    unit = devices * config.batch_multiple
    return config.model_copy(
        update={"global_batch_size": max(unit, config.global_batch_size // unit * unit)}
    )


EXPERIMENTS = (
    Experiment(
        name="replicas",
        position=100,
        title="Two GPUs train the whole network faster than one trains half of it",
        text=(
            "Section 3.2: the network on two GPUs takes slightly less time to train than one with"
            " half as many filters in each convolution, whose last convolution and hidden layers"
            " are those of the whole, on one GPU. Here: images/s of both while training, on two"
            " devices and on one, with the same batch, in alternating order and each in a process"
            " of its own. The claim is a ratio above 1; the paper gives no number."
        ),
        summary="the network on two GPUs is no slower than half of it on one",
        section="section 3.2",
        criterion="only on two GPUs",
        list_arms=list_no_arms,
        conclude=conclude_replicas,
    ),
)
