"""What the masking report asks, how much is too much, and its lines."""

from collections.abc import Sequence
from typing import NamedTuple

from lipreg import curves

__all__ = ["QUESTIONS", "Check", "answered", "to_markdown", "verdict"]

STATUSES = ("pass", "warn", "fail")
CHANCE = 2  # images: no flag for so few, whatever their share


class Check(NamedTuple):
    """One line of the report; `value` is the share of images where what should not happen did."""

    name: str
    value: float
    status: str
    sentence: str


# Shares of the images above which a check warns and fails.
NEVER = (0.03, 0.06)  # an honest model has no reason to be above 0
KINKS = (0.1, 0.25)  # a relu network has one here and there, within a step
# Where the error rises steeply with eps, two attacks differ a little in strength and much in error:
# by up to 10 % on honest networks of the digits, and 15 % behind a tanh.
ATTACKS = (0.2, 0.35)
# A name, its limits, what is counted and what it means where it is too much.
QUESTIONS = {
    "gradients": (
        NEVER,
        "The cross entropy's gradient is zero, no number, or rounding (logits 80 apart)",
        "Attacks that follow it stand still: attack the margin, or smaller logits.",
    ),
    "linearity": (
        KINKS,
        "The margin does not change as its gradient says, even within a hundredth of eps",
        "The gradient is shattered, quantised or made up: attack through a smooth stand-in.",
    ),
    "randomness": (
        (0.0, NEVER[0]),
        "Other logits when asked again at a distance of 1e-6",
        "The answers are random or hashed: attack their expectation.",
    ),
    "steps": (
        NEVER,
        "Broken by one step, more than by many",
        "The steps after the first mislead the attack.",
    ),
    "radius": (
        NEVER,
        "Broken at some radius, more than at a larger one, which includes it",
        "The attack loses its way in the larger ball.",
    ),
    "whole box": (
        NEVER,
        "Unbroken when any image of the box is allowed",
        "Another class's image would do: the attack is blind, not the model robust.",
    ),
    "scores": (
        NEVER,
        "Broken by a random search and by no attack with gradients",
        "The gradients hide errors that lie near.",
    ),
    "transfer": (
        NEVER,
        "Broken by the surrogate's adversarial image and by no attack on the model itself",
        "The gradients hide errors that another model's show.",
    ),
    "scale": (
        ATTACKS,
        "Broken with rescaled logits, which change no answer, more than without",
        "The softmax is saturated or flat: attack the margin, or the best scale.",
    ),
    "losses": (
        ATTACKS,
        "Broken by the best loss of cross entropy, margin and dlr, more than by the worst",
        "The number depends on the loss: report the worst case over several.",
    ),
    "restarts": (
        ATTACKS,
        "Broken by four random starts, more than by one",
        "One start is not enough: add starts until nothing changes.",
    ),
}


def answered(name: str, count: int, n: int) -> Check:
    """The line of a question, where so many images of n were counted."""
    (warn, fail), seen, bad = QUESTIONS[name]
    flagged = count > max(CHANCE if warn else 0, warn * n)
    status = STATUSES[flagged + (count > max(CHANCE, fail * n))]
    meaning = bad if flagged else "No sign of masking."
    sentence = f"{seen}: {count} of {n} images ({100 * count / n:.1f} %). {meaning}"
    return Check(name, count / n, status, sentence)


def verdict(checks: Sequence[Check]) -> str:
    """The worst status.

    >>> verdict([Check("steps", 0.0, "pass", ""), Check("scale", 0.07, "warn", "")])
    'warn'
    """
    return max((check.status for check in checks), key=STATUSES.index)


def to_markdown(checks: Sequence[Check]) -> str:
    """The report as a Markdown table, one check a line with its limits.

    >>> print(to_markdown([Check("steps", 0.0, "pass", "0 of 64 images.")]))
    |  | status | value | warns above | fails above | meaning |
    |---|---|---|---|---|---|
    | steps | pass | 0 | 0.03 | 0.06 | 0 of 64 images. |
    """

    def row(check: Check) -> dict[str, float | str]:
        (warn, fail), *_ = QUESTIONS[check.name]
        limits = {"warns above": warn, "fails above": fail}
        return {"status": check.status, "value": check.value, **limits, "meaning": check.sentence}

    return curves.to_markdown({check.name: row(check) for check in checks})
