"""The checks of a candidate against the champion, on the test images that both answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.release.gate_records import (
    FirstGuesses,
    fail_unmeasured,
    format_change,
    format_fraction,
    make_check,
)
from pipeline.release.paired_difference import (
    SIGNIFICANCE,
    compute_lower_bound,
    compute_upper_bound,
    count_images_needed,
    count_images_to_win,
    find_decidable_margin,
)

if TYPE_CHECKING:
    from pipeline.arrays import Booleans, Integers, Labels
    from pipeline.artifacts import GateCheck
    from pipeline.config.release import ReleaseConfig


@dataclass(frozen=True)
class _Pairs:
    """The images on which the two are compared.

    Attributes:
        labels: int64 [images].
        only_candidate: bool [images], where the candidate alone is wrong.
        only_champion: bool [images], where the champion alone is wrong.
    """

    labels: Labels
    only_candidate: Booleans
    only_champion: Booleans

    @property
    def counts(self) -> tuple[int, int, int]:
        """Images that only the candidate gets wrong, those that only the champion does, and all."""
        return int(self.only_candidate.sum()), int(self.only_champion.sum()), len(self.labels)


def check_against_champion(
    guesses: FirstGuesses, class_names: Sequence[str], config: ReleaseConfig
) -> tuple[GateCheck, ...]:
    """Return the checks against the champion; none for a first model, which has no champion."""
    pairs = _pair_guesses(guesses)
    if pairs is None:
        return ()
    return (_check_error(pairs, config), _check_class_recalls(pairs, class_names, config))


def _pair_guesses(guesses: FirstGuesses) -> _Pairs | None:
    if guesses.champion is None:
        return None
    rows = slice(None) if guesses.compared is None else np.asarray(guesses.compared, bool)
    labels = guesses.labels[rows]
    wrong, champion_wrong = guesses.candidate[rows] != labels, guesses.champion[rows] != labels
    return _Pairs(labels, wrong & ~champion_wrong, champion_wrong & ~wrong)


def _check_error(pairs: _Pairs, config: ReleaseConfig) -> GateCheck:
    only_candidate, only_champion, images = pairs.counts
    allowed = config.margin if config.policy == "non_inferior" else 0.0
    required = f"below {format_change(allowed)}"
    if not images:
        return fail_unmeasured(
            "against_champion",
            required,
            "The difference on images whose class the champion knows",
        )
    difference, bound = (
        (only_candidate - only_champion) / images,
        compute_upper_bound(only_candidate, only_champion, images),
    )
    text = (
        f"The candidate's error less the champion's is {format_change(difference)} on {images:,}"
        f" test images, and with 95 % confidence below {format_change(bound)}, where"
        f" {format_change(allowed)} is required; {only_candidate:,} images are wrong with the"
        f" candidate alone, {only_champion:,} with the champion alone."
    )
    advice = "" if bound < allowed else f" {_advise(only_candidate, only_champion, images, config)}"
    return make_check(
        "against_champion", bound < allowed, format_change(bound), required, text + advice
    )


def _advise(only_candidate: int, only_champion: int, images: int, config: ReleaseConfig) -> str:
    """Return what would help a candidate that did not pass, in a sentence."""
    discordant, difference = (
        (only_candidate + only_champion) / images,
        (only_candidate - only_champion) / images,
    )
    if config.policy == "superior":
        if difference >= 0:
            return "Its error is not below the champion's, so more images would not help."
        return (
            f"Too few images for this lead: {count_images_to_win(discordant, -difference):,}"
            " would show it in 80 % of cases."
        )
    if difference >= config.margin:
        return "The difference itself is not within release.margin, so more images would not help."
    needed = count_images_needed(discordant, config.margin)
    if needed <= images:
        return (
            f"The images are enough: with {needed:,} an equally good candidate passes in 80 % of"
            " cases."
        )
    return (
        f"The difference is within release.margin, but the images are too few: with {needed:,} an"
        f" equally good candidate passes in 80 % of cases; {images:,} can decide a"
        f" release.margin of {find_decidable_margin(discordant, images):.4g}."
    )


def _check_class_recalls(
    pairs: _Pairs, class_names: Sequence[str], config: ReleaseConfig
) -> GateCheck:
    """Require that no class's recall fell, beyond chance, by more than the margin of a class.

    The chance that any class is named wrongly is 5 % for all classes together.
    """
    required = f"no fall beyond chance above {100 * config.class_margin:.2f} points"
    if not len(pairs.labels):
        return fail_unmeasured(
            "classes_against_champion",
            required,
            "The change of recall on images whose class the champion knows",
        )
    images, only_candidate, only_champion = (
        np.bincount(pairs.labels[rows], minlength=len(class_names))
        for rows in (slice(None), pairs.only_candidate, pairs.only_champion)
    )
    falls = (only_candidate - only_champion) / np.maximum(images, 1)
    significance = SIGNIFICANCE / int(np.sum(images > 0))  # Bonferroni
    fallen = [
        f"`{class_names[index]}` by {100 * falls[index]:.2f} points of {images[index]:,} images"
        for index in np.flatnonzero(falls > config.class_margin).tolist()
        if _fell_beyond_chance(
            int(only_candidate[index]),
            int(only_champion[index]),
            int(images[index]),
            significance,
            config.class_margin,
        )
    ]
    worst = int(np.argmax(np.where(images > 0, falls, -np.inf)))
    found = f"recall of `{class_names[worst]}` {format_change(-falls[worst])}"
    text = (
        f"Recall fell, beyond chance, by more than allowed: {', '.join(fallen)}."
        if fallen
        else _describe_no_fall(found, images, significance, config)
    )
    return make_check("classes_against_champion", not fallen, found, required, text)


def _fell_beyond_chance(
    only_candidate: int, only_champion: int, images: int, significance: float, margin: float
) -> bool:
    """Return whether a class's recall fell by more than the margin, beyond chance.

    One image is forgiven. Without that, classes that fell by just the margin are named twice as
    often as `significance` where there are ten of them, and three times where there are a hundred:
    so far out, counts are more uneven than the normal distribution.
    """
    return (
        compute_lower_bound(max(0, only_candidate - 1), only_champion, images, significance)
        > margin
    )


def _describe_no_fall(
    found: str, images: Integers, significance: float, config: ReleaseConfig
) -> str:
    """Return that no class fell, and for how many classes no fall could have been detected."""
    text = (
        "No class's recall fell, beyond chance, by more than"
        f" {100 * config.class_margin:.2f} points; the lowest change is {found}."
    )
    sizes, classes = np.unique(images[images > 0], return_counts=True)
    blind = [
        not _fell_beyond_chance(size, 0, size, significance, config.class_margin)
        for size in sizes.tolist()
    ]
    if not any(blind):
        return text
    return (
        f"{text} {classes[blind].sum():,} of {classes.sum():,} classes have too few images for any"
        " fall to be detected."
    )


def describe_images_needed(guesses: FirstGuesses, config: ReleaseConfig) -> str:
    """Return how many test images the gate needs, in a sentence."""
    pairs = _pair_guesses(guesses)
    only_candidate, only_champion, images = pairs.counts if pairs else (0, 0, 0)
    discordant = (only_candidate + only_champion) / max(images, 1)
    if config.policy == "superior":
        who, needed = (
            f"A candidate whose error is lower by {100 * config.margin:.2f} points",
            count_images_to_win(discordant, config.margin),
        )
    else:
        who, needed = (
            f"With release.margin {config.margin:.4g} an equally good candidate",
            count_images_needed(discordant, config.margin),
        )
    condition = (
        f", where the two disagree on {format_fraction(discordant)} of them, as on the {images:,}"
        " here"
        if images
        else " at least; how many more depends on how often it and its champion disagree, which is"
        " not known yet"
    )
    return f"{who} passes in 80 % of cases with {needed:,} test images{condition}."
