"""One call that measures a model: clean error, distances, robust errors, and their worth."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg import attacks, curves
from lipreg.boundary import misclassified
from lipreg.box import Bounds, check_scale
from lipreg.contracts import LogitsFn
from lipreg.evaluation.autoattack import Outcome, admitted, cascade, stages
from lipreg.evaluation.masking import Check, check_surrogate, masking_report
from lipreg.evaluation.store import Store
from lipreg.keys import example_keys
from lipreg.norms import NORMS, Norm
from lipreg.parallel import gather, multiple, shard
from lipreg.tracing import captured, compiled, output, snapshot
from lipreg.trees import digest

__all__ = ["PROTOCOLS", "RADII", "Evaluation", "evaluate", "to_json", "to_markdown"]

# The radii of 1810.00953's table and those of RobustBench's CIFAR-10 boards, in pixels of [0, 1].
RADII = {"l2": (0.1, 0.5), "linf": (8 / 255, 1 / 16)}

DECK = {"basic_iterative": attacks.basic_iterative}
STRONG = {"deepfool": attacks.deepfool, "fmn": attacks.fmn}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "deck": {"l2": DECK, "linf": DECK, "autoattack": False},
    "autoattack": {"l2": {}, "linf": {}, "autoattack": True},
    "full": {
        "l2": DECK | STRONG | {"ddn": attacks.ddn},
        "linf": DECK | STRONG,
        "autoattack": True,
    },
}


class Evaluation(NamedTuple):
    """What `evaluate` has measured on N images.

    Attributes:
      protocol: deck, autoattack or full.
      clean: `[N]`, misclassified without an attack.
      distances: by norm and attack, the smallest perturbation found, `[N]`: 0 and inf as in
        `curves.distance`.
      outcomes: by norm and radius, what AutoAttack has done.
      checks: by norm, the masking report.
    """

    protocol: str
    clean: np.ndarray
    distances: dict[str, dict[str, np.ndarray]]
    outcomes: dict[str, dict[float, Outcome]]
    checks: dict[str, tuple[Check, ...]]

    def nearest(self, norm: str) -> np.ndarray:
        """The smallest distance that any minimum-norm attack has found, `[N]`."""
        if not self.distances[norm]:
            raise ValueError(f"The protocol {self.protocol} measures no distances; choose full.")
        return np.min(list(self.distances[norm].values()), axis=0)

    def error(self, norm: str, eps: float) -> float:
        """The fraction misclassified within eps by any of the attacks.

        Where AutoAttack ran, only 0 and the radii that it was given are measured.

        Raises: ValueError, with the choices, for an unknown norm and a radius not measured.
        """
        if norm not in self.outcomes:
            raise ValueError(f"No norm {norm!r}; choose one of {', '.join(self.outcomes)}.")
        measured = (0.0, *self.outcomes[norm])
        if not eps >= 0 or (len(measured) > 1 and not np.isclose(eps, measured, atol=0).any()):
            choices = ", ".join(f"{radius:g}" for radius in measured)
            raise ValueError(f"No error at {norm} {eps:g} was measured; choose one of {choices}.")
        broken = self.clean.copy()
        for found in self.distances[norm].values():
            broken |= found <= eps
        for radius, outcome in self.outcomes[norm].items():
            if radius <= eps * (1 + 1e-5):
                broken |= outcome.broken_by >= 0
        return float(broken.mean())


def evaluate(
    logits_fn: LogitsFn,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    *,
    protocol: str = "full",
    radii: Mapping[str, Sequence[float]] = RADII,
    bounds: Bounds = (0.0, 1.0),
    seed: int = 0,
    batch_size: int = 256,
    surrogate: LogitsFn | None = None,
    checked: int = 128,
    folder: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Clean error, distances, robust errors in l_2 and l_inf, and the masking report beside them.

    `deck` measures distances as 1810.00953 did (`attacks.basic_iterative`); `autoattack` runs
    AutoAttack at each of `radii`; `full` does both and looks for smaller distances by DeepFool, FMN
    and DDN. The first `checked` images go into the masking report, at the smallest radius of each
    norm, with the transfer of attacks from `surrogate`, an undefended model, where one is given.
    The model is measured as it is at this call.

    Any `logits_fn: [B, ...] -> [B, K]` on images inside `bounds` will do. With `folder` a killed
    evaluation resumes; a folder of another model, data set, seed or other settings is refused.

    Raises: ValueError, in one sentence, for an unknown protocol or norm and for bad inputs.

    >>> x, y = jax.random.uniform(jax.random.key(0), (8, 4)), jnp.array([0, 1] * 4)
    >>> found = evaluate(lambda x: 9 * x[:, :2], x, y, protocol="deck", radii={"l2": (0.1,)})
    >>> found.error("l2", 0.0) == found.clean.mean(), found.error("l2", 9.0)
    (np.True_, 1.0)
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"No protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}.")
    served = [name for name in NORMS if name in PROTOCOLS[protocol]]
    for name, values in radii.items():
        if name not in served:
            raise ValueError(f"No norm {name!r} in radii; choose one of {', '.join(served)}.")
        if not values or not all(eps > 0 for eps in values):
            raise ValueError(f"radii of {name} = {tuple(values)}; give radii greater than 0.")
    logits_fn = snapshot(logits_fn)
    x, y = admitted(logits_fn, x, y, bounds)
    check_scale("evaluate", bounds)
    check_surrogate(surrogate, logits_fn, x)
    key, plan = jax.random.key(seed), PROTOCOLS[protocol]
    store = None
    if folder is not None:
        settings = {"radii": {k: list(v) for k, v in radii.items()}, "bounds": list(bounds)}
        identity = {
            "protocol": protocol,
            "model": _identity(logits_fn, jnp.asarray(x[:8])),
            "data": digest((x, y)),
            "settings": settings | {"batch_size": batch_size},
            "seed": seed,
        }
        store = Store(folder, identity)
    tell = progress or (lambda message: None)
    clean = _batched(
        compiled(logits_fn, _wrong), key, logits_fn, x, y, batch_size, None, "clean", tell
    )
    found = Evaluation(protocol, clean, {}, {}, {})
    for name, values in radii.items():
        norm = NORMS[name]
        found.distances[name], found.outcomes[name] = {}, {}
        for label, attack in plan[name].items():
            run = compiled(logits_fn, _nearest, attack, norm, bounds)
            found.distances[name][label] = _batched(
                run, key, logits_fn, x, y, batch_size, store, f"{name}-{label}", tell
            )
        known, every = None, stages("standard", output(logits_fn, x[:1]).shape[1], norm, bounds)
        for eps in sorted(values) if plan["autoattack"] else ():
            outcome = cascade(
                key,
                logits_fn,
                x,
                y,
                eps,
                every,
                norm=norm,
                bounds=bounds,
                batch_size=batch_size,
                known=known,
                store=store,
                name=f"{name}-{eps:g}",
                progress=lambda message, n=name, e=eps: tell(f"{n} {e:.3g} {message}"),
            )
            found.outcomes[name][eps], known = outcome, outcome.x_adv
        tell(f"{name} masking report")
        found.checks[name] = masking_report(
            key,
            logits_fn,
            jnp.asarray(x[:checked]),
            jnp.asarray(y[:checked]),
            min(values),
            norm=norm,
            bounds=bounds,
            surrogate=surrogate,
        )
    return found


def _identity(logits_fn: LogitsFn, x: Array) -> str:
    """A hash of a model: its leaves, the arrays that it reads besides, and some of its logits."""
    return digest((logits_fn, captured(logits_fn, x), logits_fn(x)))


def _wrong(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    return misclassified(logits_fn, x, y)


def _nearest(
    attack: Callable[..., Array],
    norm: Norm,
    bounds: Bounds,
    keys: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
) -> Array:
    """The distances [B] that a minimum-norm attack finds."""
    x_adv = attack(keys, logits_fn, x, y, norm=norm, bounds=bounds)
    return curves.distance(logits_fn, x, y, x_adv, norm=norm, bounds=bounds)


def _batched(
    run: Callable[..., Array],
    key: Array,
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    store: Store | None,
    name: str,
    tell: Callable[[str], None],
) -> np.ndarray:
    """`run` over batches of one size, the last filled up; each kept in the store when done."""
    n, found = len(y), []
    keys = example_keys(key, n)
    size = min(batch_size, n)
    for start in range(0, n, size):
        kept = store.get(f"{name}-{start}") if store else None
        if kept is None:
            rows = np.minimum(np.arange(start, start + multiple(size)), n - 1)
            key, *images = shard((keys[jnp.asarray(rows)], x[rows], y[rows]))
            kept = {"found": gather(run(key, logits_fn, *images))[:size]}
            if store:
                store.put(f"{name}-{start}", **kept)
        found.append(kept["found"])
        tell(f"{name}: {min(start + size, n)} of {n} images")
    return np.concatenate(found)[:n]


def _finite_mean(distances: np.ndarray) -> float:
    finite = distances[np.isfinite(distances)]
    return float(finite.mean()) if len(finite) else float("inf")


def to_json(found: Evaluation) -> dict[str, Any]:
    """The numbers of an evaluation, ready for `json.dumps`; inf is written as None."""
    number = lambda value: None if not np.isfinite(value) else float(value)
    return {
        "protocol": found.protocol,
        "n": len(found.clean),
        "clean_error": float(found.clean.mean()),
        "norms": {
            norm: {
                "distances": {
                    label: {
                        "median": number(curves.median_distance(values)),
                        "mean_of_found": number(_finite_mean(values)),
                        "failures": int(np.isinf(values).sum()),
                    }
                    for label, values in found.distances[norm].items()
                },
                "errors": {
                    f"{eps:g}": outcome.breakdown() for eps, outcome in found.outcomes[norm].items()
                },
                "checks": [check._asdict() for check in found.checks[norm]],
            }
            for norm in found.distances
        },
    }


def to_markdown(found: Evaluation) -> str:
    """An evaluation as three tables a norm: distances, robust errors, the masking report."""
    n = len(found.clean)
    lines = [f"{n} images, {100 * found.clean.mean():.4g} % misclassified without an attack."]
    for norm, distances in found.distances.items():
        lines.append(f"\n### {norm}")
        if distances:
            every = distances | (
                {"all together": found.nearest(norm)} if len(distances) > 1 else {}
            )
            rows = {
                label: {
                    "median distance": float(curves.median_distance(values)),
                    "mean of those found": _finite_mean(values),
                    "failures": str(int(np.isinf(values).sum())),
                }
                for label, values in every.items()
            }
            lines += ["", curves.to_markdown(rows)]
        if found.outcomes[norm]:
            rows = {
                f"eps = {eps:.4g}": {
                    "clean": 100 * found.clean.mean(),
                    **{k: 100 * v for k, v in outcome.breakdown().items() if k not in _NOT_ATTACKS},
                    **({"all attacks": 100 * found.error(norm, eps)} if distances else {}),
                }
                for eps, outcome in found.outcomes[norm].items()
            }
            lines += ["", "% error after each attack of AutoAttack:", "", curves.to_markdown(rows)]
        lines += ["", "| masking check | | |", "|---|---|---|"]
        lines += [f"| {c.name} | {c.status} | {c.sentence} |" for c in found.checks[norm]]
    return "\n".join(lines) + "\n"


_NOT_ATTACKS = ("clean", "known")
