"""What an evaluation has measured, as a record, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lipreg import curves
from lipreg.evaluation.cascade import Outcome
from lipreg.evaluation.checks import Check

__all__ = ["Evaluation", "to_json", "to_markdown"]


class Evaluation(NamedTuple):
    """What `evaluate` has measured on N images.

    Attributes:
      protocol: pgd, deck, autoattack or full.
      clean: `[N]`, misclassified without an attack.
      distances: by norm and attack, the smallest perturbation found, `[N]`: 0 and inf as in
        `curves.distance`.
      outcomes: by norm and radius, what AutoAttack has done.
      checks: by norm, the masking report; empty for a protocol without it.
      radii: by norm, those of the errors.
      others: by norm, attack and radius, what other attacks with a radius have done, each alone.
      nearest_points: by norm, the misclassified images at the distances of `nearest`, `[N, ...]`,
        the images themselves where no attack succeeded; empty unless they were asked for.
      left_out: by norm, the attacks of the protocol that do not serve it.
      reach: by norm, the largest radius that was looked at, where there is one.
    """

    protocol: str
    clean: np.ndarray
    distances: Mapping[str, Mapping[str, np.ndarray]]
    outcomes: Mapping[str, Mapping[float, Outcome]]
    checks: Mapping[str, tuple[Check, ...]]
    radii: Mapping[str, tuple[float, ...]]
    others: Mapping[str, Mapping[str, Mapping[float, Outcome]]]
    nearest_points: Mapping[str, np.ndarray]
    left_out: Mapping[str, tuple[str, ...]]
    reach: Mapping[str, float] = {}

    def nearest(self, norm: str) -> np.ndarray:
        """The smallest distance that any minimum-norm attack has found, `[N]`."""
        if not self.distances[norm]:
            raise ValueError(f"The protocol {self.protocol} measures no distances; choose full.")
        return np.min(list(self.distances[norm].values()), axis=0)

    def at(self, norm: str, eps: float) -> list[Outcome]:
        """What the attacks with a radius have done at this one: AutoAttack, then the others."""
        by_radius = (self.outcomes[norm], *self.others[norm].values())
        return [outcomes[eps] for outcomes in by_radius if eps in outcomes]

    def error(self, norm: str, eps: float) -> float:
        """The fraction misclassified within eps by any of the attacks.

        Where attacks with a radius ran, only 0 and the radii that they were given are measured.

        Raises: ValueError, with the choices, for an unknown norm and a radius not measured.
        """
        if norm not in self.outcomes:
            raise ValueError(f"No norm {norm!r}; choose one of {', '.join(self.outcomes)}.")
        ran = [radius for radius in self.radii[norm] if self.at(norm, radius)]
        measured = (0.0, *ran)
        if not eps >= 0 or (ran and not np.isclose(eps, measured, atol=0).any()):
            choices = ", ".join(f"{radius:g}" for radius in measured)
            raise ValueError(f"No error at {norm} {eps:g} was measured; choose one of {choices}.")
        if eps > self.reach.get(norm, np.inf) * (1 + 1e-5):
            reach = f"{self.protocol} looked as far as {self.reach[norm]:g}"
            raise ValueError(f"No error at {norm} {eps:g} was measured; {reach}.")
        broken, eps = self.clean.copy(), float(eps)
        for distances in self.distances[norm].values():
            broken |= distances <= eps
        for radius in ran:
            if radius <= eps * (1 + 1e-5):
                for outcome in self.at(norm, radius):
                    broken |= outcome.broken
        return float(broken.mean())


def _finite_mean(distances: np.ndarray) -> float:
    finite = distances[np.isfinite(distances)]
    return float(finite.mean()) if len(finite) else float("inf")


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The numbers of an evaluation, ready for `json.dumps`; inf is written as None."""
    number = lambda value: None if not np.isfinite(value) else float(value)
    return {
        "protocol": evaluation.protocol,
        "n": len(evaluation.clean),
        "clean_error": float(evaluation.clean.mean()),
        "norms": {
            norm: {
                "radii": list(evaluation.radii[norm]),
                "distances": {
                    label: {
                        "median": number(curves.median_distance(values)),
                        "mean_of_found": number(_finite_mean(values)),
                        "failures": int(np.isinf(values).sum()),
                    }
                    for label, values in evaluation.distances[norm].items()
                },
                "errors": {
                    f"{eps:g}": outcome.breakdown()
                    for eps, outcome in evaluation.outcomes[norm].items()
                },
                "others": {
                    label: {f"{eps:g}": outcome.error for eps, outcome in by_radius.items()}
                    for label, by_radius in evaluation.others[norm].items()
                },
                "checks": [check._asdict() for check in evaluation.checks[norm]],
                "left_out": list(evaluation.left_out[norm]),
            }
            for norm in evaluation.distances
        },
    }


def to_markdown(evaluation: Evaluation) -> str:
    """An evaluation as tables for each norm: distances, robust errors, the masking report."""
    lines = [
        f"{len(evaluation.clean)} images, {100 * evaluation.clean.mean():.4g} % misclassified "
        "without an attack."
    ]
    for norm in evaluation.distances:
        lines.append(f"\n### {norm}")
        if evaluation.left_out[norm]:
            lines += ["", f"Without {', '.join(evaluation.left_out[norm])}: no form for this norm."]
        if evaluation.distances[norm]:
            lines += ["", curves.to_markdown(_distances(evaluation, norm))]
        if errors := _errors(evaluation, norm):
            lines += [
                "",
                "% error under attacks with a radius, those of AutoAttack in turn:",
                "",
                curves.to_markdown(errors),
            ]
        if checks := evaluation.checks[norm]:
            lines += ["", "| masking check | | |", "|---|---|---|"]
            lines += [f"| {c.name} | {c.status} | {c.sentence} |" for c in checks]
    return "\n".join(lines) + "\n"


def _distances(evaluation: Evaluation, norm: str) -> dict[str, dict[str, float | str]]:
    """A row for each attack, and for all of them; the errors where no others are measured."""
    distances = dict(evaluation.distances[norm])
    if len(distances) > 1:
        distances["all together"] = evaluation.nearest(norm)
    errors = () if evaluation.outcomes[norm] else evaluation.radii[norm]
    return {
        label: {
            "median distance": float(curves.median_distance(values)),
            "mean of those found": _finite_mean(values),
            "failures": str(int(np.isinf(values).sum())),
            **{f"% error at {eps:g}": 100 * float((values <= eps).mean()) for eps in errors},
        }
        for label, values in distances.items()
    }


def _errors(evaluation: Evaluation, norm: str) -> dict[str, dict[str, float]]:
    """A row for each radius: clean, after each attack of AutoAttack in turn, by others, by all."""
    rows: dict[str, dict[str, float]] = {}
    for eps in evaluation.radii[norm]:
        auto, others = evaluation.outcomes[norm].get(eps), evaluation.others[norm]
        if not evaluation.at(norm, eps):
            continue
        after = auto.breakdown() if auto else {}
        alone = {label: by_radius[eps].error for label, by_radius in others.items()}
        row = {name: error for name, error in after.items() if name not in ("clean", "known")}
        row = {"clean": float(evaluation.clean.mean())} | row | alone
        if evaluation.distances[norm] or len(evaluation.at(norm, eps)) > 1:
            row["all attacks"] = evaluation.error(norm, eps)
        rows[f"eps = {eps:g}"] = {name: 100 * error for name, error in row.items()}
    return rows
