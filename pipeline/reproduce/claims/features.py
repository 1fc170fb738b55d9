"""Claim: features grow from edges to textures to objects (section 6.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from pipeline.reports.claim_records import ArmRow, ClaimFigure, ClaimQuestion
from pipeline.reports.store import read_report_data
from pipeline.reproduce.arms import list_baseline_arm
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.comparison import estimate_image_std
from pipeline.reproduce.experiment import ArmMeasurements, Conclusion, Experiment
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.probes import (
    NETWORKS,
    SEARCHED_IMAGES,
    measure_probes,
)
from pipeline.reproduce.verdict import judge_effects

# Maps are averaged over so many positions per side, at every depth: a first layer has a hundred
# times as many numbers as the last, which would give it the advantage of a longer description.
_POSITIONS = 4
_PROBE_TRAINING_IMAGES, _PROBE_TEST_IMAGES = 4000, 2000
_FEATURE_SOURCE = (
    "qualitative: Krizhevsky 2012, section 6.1 and figures 3 and 4; the phrase is of Zeiler and"
    " Fergus, 2014, figure 2"
)
_LEARNED = ClaimQuestion(
    quantity=(
        "error of a linear probe at the first convolution less that at the last hidden layer, less"
        " the same with fresh weights"
    ),
    unit="points",
    published=None,
    source=_FEATURE_SOURCE,
    null_effect=0.0,
)
_DROP = _LEARNED.model_copy(
    update={
        "quantity": (
            "error of a linear probe at the first convolution less that at the last hidden layer"
        )
    }
)


def conclude_features(run: ClaimRun, measured: ArmMeasurements) -> Conclusion:
    """Compare the errors of the probes at each depth."""
    from pipeline.reports.claim_feature_figures import draw_probes

    # No image that the network was not trained on.
    taken = min(_PROBE_TRAINING_IMAGES, run.config.reproduce.images or _PROBE_TRAINING_IMAGES)
    spec = {"training_images": taken, "test_images": _PROBE_TEST_IMAGES, "positions": _POSITIONS}
    probes = [
        run.examine_network(
            f"features-seed{seed}", {**spec, "features": seed == 0}, measure_probes, trained
        )
        for seed, trained in enumerate(measured["baseline"])
    ]
    errors = {network: list_errors_by_depth(probes, network) for network in NETWORKS}
    draw_probes(
        {"trained": errors["trained"], "fresh weights": errors["fresh"]}, run.folder / "probes.png"
    )
    drops = {
        network: [
            100 * (by_depth[0] - by_depth[-1])
            for by_depth in zip(*errors[network].values(), strict=True)
        ]
        for network in NETWORKS
    }
    wrong = [one.load_wrong() for one in probes]
    of_drop = estimate_image_std([one[0, 0] for one in wrong], [one[0, -1] for one in wrong])
    # Two differences of the same images: their difference, again by image.
    of_both = estimate_image_std(
        [one[0, 0] * 1.0 - one[0, -1] for one in wrong],
        [one[1, 0] * 1.0 - one[1, -1] for one in wrong],
    )
    findings = (
        judge_effects(
            _LEARNED,
            [one - other for one, other in zip(drops["trained"], drops["fresh"], strict=True)],
            image_std=of_both,
        ),
        judge_effects(_DROP, drops["trained"], image_std=of_drop),
    )
    rows = tuple(
        ArmRow(
            arm=label, values={f"{depth} error": seeds for depth, seeds in errors[network].items()}
        )
        for network, label in zip(NETWORKS, ("trained", "fresh weights"), strict=True)
    )
    return Conclusion(
        findings,
        rows,
        tuple(_collect_figures(run, probes[0])),
        _write_feature_notes(errors["trained"]),
    )


def list_errors_by_depth(
    probes: Sequence[Measurement], network: str
) -> dict[str, tuple[float, ...]]:
    """Return by depth the error of each seed's probe, fractions in [0, 1].

    Args:
        probes: one measurement per seed.
        network: `trained` or `fresh`.
    """
    depths = [
        name.partition("/")[2] for name in probes[0].numbers if name.startswith(f"{network}/")
    ]
    return {depth: tuple(one.numbers[f"{network}/{depth}"] for one in probes) for depth in depths}


def _collect_figures(run: ClaimRun, first: Measurement) -> Iterator[ClaimFigure]:
    """Yield the figures; those of features are drawn from what was stored of the first seed."""
    from pipeline.reports.claim_feature_figures import draw_stored_patches
    from pipeline.reports.evaluation.inspection_figures import draw_filters

    yield ClaimFigure(
        file="probes.png",
        caption=(
            "Test error of a linear classifier that reads one layer's activations alone, in the"
            " trained networks and in the same networks with the weights that their training began"
            " with; each seed a dot."
        ),
    )
    values, arrays = read_report_data(first.directory)
    if not values["layers"]:
        return
    draw_filters(arrays["filters"], values["towers"], run.folder / "filters.png")
    yield ClaimFigure(
        file="filters.png",
        caption=(
            "The filters of the first convolution of seed 0, as the paper's figure 3; gray is zero."
        ),
    )
    draw_stored_patches(values["layers"], arrays, run.folder / "patches.png")
    yield ClaimFigure(
        file="patches.png",
        caption=(
            "The patches that excite some maps of the first, the middle and the last convolution of"
            f" seed 0 most, among {SEARCHED_IMAGES} test images, cropped to the receptive field of"
            " a unit. The maps were chosen by how much they vary, not by how they look."
        ),
    )


def _write_feature_notes(errors: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Return the trend over the depths, and the limits of a probe, as notes."""
    means = {depth: 100 * sum(seeds) / len(seeds) for depth, seeds in errors.items()}
    steps = list(pairwise(means.items()))
    rises = [
        f"{two} ({after - before:+.1f})" for (_, before), (two, after) in steps if after >= before
    ]
    trend = (
        f"From layer to layer the mean error falls at {len(steps) - len(rises)} of {len(steps)}"
        " steps"
    )
    return (
        f"{trend}; not at {', '.join(rises)}." if rises else f"{trend}.",
        (
            "A probe measures what can be read off a layer linearly, and with that how far it is on"
            " its way from pixels to classes. Whether a person would call it an edge, a texture or"
            " an object only the images show, and they are of one network."
        ),
        (
            "Probes are fitted to images that the network was trained on, as it was itself, and"
            " scored on others."
        ),
    )


EXPERIMENTS = (
    Experiment(
        name="features",
        position=130,
        title="Training makes deeper layers know more of the object",
        text=(
            "Section 6.1 and figures 3 and 4: the first layer learns edges of many frequencies and"
            " orientations and blobs of color, and images with similar activations of the last"
            " hidden layer show similar objects; Zeiler and Fergus, 2014, named what lies between."
            " No number was published. Here: how well a linear classifier tells the classes by one"
            " layer's activations alone, from the first convolution to the last hidden layer, in"
            " the trained network and in the same one with fresh weights. Each reads a map's means"
            " over at most 4 x 4 positions, so that no depth has an advantage by sheer number;"
            " 4,000 training images, scored on 2,000 test images, or all where there are fewer."
        ),
        summary="deeper layers know more of the object",
        section="section 6.1",
        criterion="error of linear probes by depth",
        list_arms=list_baseline_arm,
        conclude=conclude_features,
    ),
)
