"""One call that measures a model: clean error, distances, robust errors, and their worth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from lipreg.boundary import misclassified
from lipreg.box import Bounds, check_scale
from lipreg.contracts import LogitsFn
from lipreg.evaluation.autoattack import stages
from lipreg.evaluation.cascade import Outcome, Stage, run
from lipreg.evaluation.checks import Check
from lipreg.evaluation.masking import check_surrogate, masking_report
from lipreg.evaluation.protocols import (
    PROTOCOLS,
    Protocol,
    has_radius,
    outsider,
    pgd_for,
    search,
)
from lipreg.evaluation.record import Evaluation
from lipreg.evaluation.store import Store
from lipreg.evaluation.subject import Subject, admitted
from lipreg.norms import NORMS, Norm
from lipreg.progress import lines
from lipreg.tracing import captured, snapshot
from lipreg.trees import digest

__all__ = ["RADII", "evaluate"]

# The radii of 1810.00953's table and those of RobustBench's CIFAR-10 boards, in pixels of [0, 1].
RADII = {"l2": (0.1, 0.5), "linf": (8 / 255, 1 / 16)}


def evaluate(
    logits_fn: LogitsFn,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    *,
    protocol: str | Protocol = "full",
    radii: Mapping[str, Sequence[float]] = RADII,
    attacks: Mapping[str, Callable[..., Array]] | None = None,
    bounds: Bounds = (0.0, 1.0),
    seed: int = 0,
    batch_size: int = 256,
    surrogate: LogitsFn | None = None,
    channels: int | None = None,
    checked: int = 128,
    keep: bool = False,
    folder: str | Path | None = None,
    progress: Callable[[str], None] | None = lines(),
) -> Evaluation:
    """Clean error, distances, robust errors in the norms of `radii`, and the masking report.

    Protocols:
      pgd: distances by PGD at radii that are bisected; `evaluation.pgd(steps, restarts, grids)`
        is the same with other settings. No masking report.
      deck: distances as 1810.00953 measured them (`attacks.basic_iterative`).
      autoattack: AutoAttack at each of `radii`.
      full: deck and autoattack, and smaller distances by DeepFool, FMN and DDN.

    Options:
      radii: by norm, l1, l2 or linf. An attack of the protocol that does not serve a norm is left
        out there, and `left_out` of the result says so; one of `attacks` is refused.
      attacks: others to run beside those of the protocol, by name: `(key, logits_fn, x, y, eps, *,
        norm, bounds) -> x_adv` at each radius, or the nearest image, without `eps`. Each gets one
        image at a time, `[1, ...]`, under `vmap`. What it returns is classified again and measured.
      surrogate: an undefended model whose adversarial images the masking report tries.
      channels: the channel axis of images, for Square: 1 for `[B, C, H, W]`; None: the last.
      checked: images, from the first, that go into the masking report, at the smallest radius.
      keep: keep the nearest misclassified images as well.
      folder: where results are kept, from which a killed evaluation resumes; a folder of another
        model, data set, seed or other settings is refused.
      progress: is called with a line after each batch; by default it is printed, at most every ten
        seconds. None: silence.

    The model is measured as it is at this call. Any `logits_fn: [B, ...] -> [B, K]` on images
    inside `bounds` will do.

    Raises: ValueError, in one sentence, for an unknown protocol or norm, for options that the
      protocol does not use and for bad inputs.

    >>> x, y = jax.random.uniform(jax.random.key(0), (8, 4)), jnp.array([0, 1] * 4)
    >>> result = evaluate(lambda x: 9 * x[:, :2], x, y, protocol="deck", radii={"l2": (0.1,)})
    >>> result.error("l2", 0.0) == result.clean.mean(), result.error("l2", 9.0)
    (np.True_, 1.0)
    """
    radii = {norm: _numbers(norm, values) for norm, values in radii.items()}
    plan = _plan(pgd_for(radii, bounds) if protocol == "pgd" else protocol, attacks or {})
    _check(plan, radii, surrogate)
    if checked < 1:
        raise ValueError(f"checked = {checked}; the masking report needs an image.")
    key = jax.random.key(seed)
    model = snapshot(logits_fn)
    subject = admitted(key, model, x, y, bounds=bounds, batch_size=batch_size, progress=progress)
    if plan.masking or plan.autoattack:
        check_scale("evaluate", bounds)
    check_surrogate(surrogate, subject.model, subject.x)
    programs = (
        _programs(model, subject, attacks, radii) if attacks else ""
    )  # refused before all the work
    if folder is not None:
        settings = {"radii": {k: list(v) for k, v in radii.items()}, "bounds": list(bounds)}
        settings |= {"seed": seed, "batch_size": batch_size, "checked": checked}
        identity = _identity(model, subject, surrogate) | settings | _settings(plan)
        if channels is not None:
            identity["channels"] = channels
        if attacks:
            identity["attack code"] = programs
        subject = subject._replace(store=Store(folder, identity))

    def report(norm: str) -> tuple[Check, ...]:
        """The masking report at the smallest radius."""
        x, y = jnp.asarray(subject.x[:checked]), jnp.asarray(subject.y[:checked])
        options = {"norm": NORMS[norm], "bounds": bounds, "channels": channels}
        options |= {"batch_size": min(256, batch_size), "surrogate": surrogate}
        eps = min(radii[norm])
        return masking_report(key, subject.model, x, y, eps, **options)

    clean = subject.each("clean", _wrong)["wrong"]
    searched = {norm: _searched(subject, ~clean, plan, norm, keep) for norm in radii}
    return Evaluation(
        plan.name,
        clean,
        distances={norm: distances for norm, (distances, _) in searched.items()},
        outcomes={norm: _autoattack(subject, plan, norm, radii[norm], channels) for norm in radii},
        checks={norm: _checks(subject, norm, report) if plan.masking else () for norm in radii},
        radii=radii,
        others={norm: _others(subject, plan, norm, radii[norm]) for norm in radii},
        nearest_points={norm: points for norm, (_, points) in searched.items() if keep},
        left_out={norm: plan.left_out(norm) for norm in radii},
        reach={norm: max(grid) for norm, grid in plan.settings.get("grids", {}).items()},
    )


def _plan(protocol: str | Protocol, attacks: Mapping[str, Callable[..., Array]]) -> Protocol:
    """The protocol, with other attacks beside its own."""
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise ValueError(f"No protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}.")
        protocol = PROTOCOLS[protocol]
    own = {label for by_name in protocol.searches.values() for label in by_name}
    own |= {"clean", "known", "all attacks", "all together"}
    if protocol.autoattack:
        own |= {stage.name for norm in NORMS for stage in stages("standard", 10, norm)}
    if taken := sorted(own & set(attacks)):
        raise ValueError(f"The protocol {protocol.name} has an attack {taken[0]!r}: rename yours.")
    within = {name: outsider(name, f) for name, f in attacks.items() if has_radius(name, f)}
    nearest = {name: search(outsider(name, f)) for name, f in attacks.items() if name not in within}
    searches = {norm: {**by_name, **nearest} for norm, by_name in protocol.searches.items()}
    return protocol._replace(searches=searches, within=within)


def _numbers(norm: str, radii: Any) -> tuple[float, ...]:
    if np.ndim(radii) != 1:
        raise ValueError(f"radii of {norm} = {radii}; give a sequence, as in {{{norm!r}: (0.1,)}}.")
    return tuple(map(float, radii))


def _check(
    plan: Protocol, radii: Mapping[str, tuple[float, ...]], surrogate: LogitsFn | None
) -> None:
    """ValueError for norms and radii that cannot be measured, and for what would not be used."""
    served = [
        n for n, by_name in plan.searches.items() if by_name or plan.autoattack or plan.within
    ]
    if not radii:
        raise ValueError("radii has no norm; give {norm: (radius, ...)}.")
    for norm, values in radii.items():
        if norm not in NORMS:
            raise ValueError(f"No norm {norm!r} in radii; choose one of {', '.join(NORMS)}.")
        if norm not in served:
            raise ValueError(
                f"No attack of the protocol {plan.name} serves {norm}; choose {', '.join(served)}."
            )
        if not values or not all(0 < eps < np.inf for eps in values):
            raise ValueError(f"radii of {norm} = {values}; give finite radii greater than 0.")
        if len({f"{eps:g}" for eps in values}) < len(values):
            raise ValueError(f"radii of {norm} = {values}; two are the same to six digits.")
        grid = plan.settings.get("grids", {}).get(norm, values)
        if max(values) > max(grid) * (1 + 1e-5):
            raise ValueError(
                f"radii of {norm} = {values}; {plan.name} looks as far as {max(grid):g}: give it a "
                "grid of radii that reaches farther."
            )
    if surrogate is not None and not plan.masking:
        having = ", ".join(name for name, other in PROTOCOLS.items() if other.masking)
        raise ValueError(
            f"surrogate: the protocol {plan.name} has no masking report, only {having}."
        )


def _settings(plan: Protocol) -> dict[str, Any]:
    attacks = {norm: [*by_name, *plan.within] for norm, by_name in plan.searches.items()}
    return {"protocol": plan.name, "attacks": attacks} | dict(plan.settings)


def _programs(
    model: Partial,
    subject: Subject,
    attacks: Mapping[str, Callable[..., Array]],
    norms: Iterable[str],
) -> str:
    """A hash of what others' attacks compute: with another code, a name is another attack."""

    def text(name: str, attack: Callable[..., Array], norm: str) -> np.ndarray:
        eps = (0.5,) if has_radius(name, attack) else ()
        run = partial(outsider(name, attack), norm=NORMS[norm], bounds=subject.bounds)
        images = subject.keys[:1], model, subject.x[:1], subject.y[:1]
        program = jax.jit(lambda *args: run(*args)).lower(*images, *eps).as_text()
        return np.frombuffer(program.encode(), np.uint8)

    return digest({(name, n): text(name, f, n) for name, f in attacks.items() for n in norms})


def _identity(model: Partial, subject: Subject, surrogate: LogitsFn | None) -> dict[str, Any]:
    """Hashes of the data and the models: leaves, arrays that they read besides, some logits."""
    x = jnp.asarray(subject.x[:8])
    hashed = lambda f: None if f is None else digest((snapshot(f), captured(f, x), f(x)))
    data = digest((subject.x, subject.y))
    return {"model": hashed(model), "surrogate": hashed(surrogate), "data": data}


def _wrong(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> dict[str, Array]:
    return {"wrong": misclassified(logits_fn, x, y)}


def _searched(
    subject: Subject, right: np.ndarray, plan: Protocol, norm: str, keep: bool
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each minimum-norm attack's distances `[N]`, and with `keep` the nearest of all its points.

    Images that are not classified `right` are their own nearest points, and are not attacked.
    """
    rows, points = np.flatnonzero(right), subject.x.copy() if keep else subject.x
    distances = {label: np.zeros(len(right), np.float32) for label in plan.searches[norm]}
    nearest = np.full(len(rows), np.inf)
    settings = NORMS[norm], subject.bounds, keep
    for label, attack in plan.searches[norm].items() if len(rows) else ():
        unit = f"{norm}-{label}" + "-kept" * keep
        results = subject.each(unit, _measured, attack, *settings, rows=rows)
        distances[label] = np.zeros(len(right), results["distance"].dtype)
        distances[label][rows] = results["distance"]
        if keep:
            closer = results["distance"] < nearest
            nearest = np.minimum(nearest, results["distance"])
            points[rows[closer]] = results["points"][closer]
    return distances, points


def _measured(
    attack: Callable, norm: Norm, bounds: Bounds, keep: bool, *args: Any
) -> dict[str, Array]:
    distances, x_adv = attack(*args, norm=norm, bounds=bounds)
    return {"distance": distances} | ({"points": x_adv} if keep else {})


def _autoattack(
    subject: Subject, plan: Protocol, norm: str, radii: Sequence[float], channels: int | None
) -> dict[float, Outcome]:
    """AutoAttack at each radius, what it found at a smaller one being known at the next."""
    outcomes, known = {}, None
    every = stages("standard", subject.classes, NORMS[norm], subject.bounds, channels)
    for eps in sorted(radii) if plan.autoattack else ():
        name = f"{norm}-{eps:g}"
        outcomes[eps] = run(subject, eps, every, NORMS[norm], known=known, name=name)
        known = outcomes[eps].x_adv
    return outcomes


def _others(
    subject: Subject, plan: Protocol, norm: str, radii: Sequence[float]
) -> dict[str, dict[float, Outcome]]:
    """Others' attacks with a radius, each alone on the images that are classified right."""

    def alone(label: str, attack: Callable[..., Array]) -> dict[float, Outcome]:
        options = {"norm": NORMS[norm], "bounds": subject.bounds}
        stage = Stage(label, lambda *args: attack(*args[:5], **options))
        name = f"{norm}-alone"
        return {
            eps: run(subject, eps, [stage], NORMS[norm], name=f"{name}-{eps:g}")
            for eps in sorted(radii)
        }

    return {label: alone(label, attack) for label, attack in plan.within.items()}


def _checks(
    subject: Subject, norm: str, report: Callable[[str], tuple[Check, ...]]
) -> tuple[Check, ...]:
    """The masking report, which the store keeps as well."""
    unit, store = f"{norm}-masking", subject.store
    kept = store.get(unit) if store else None
    if kept is None:
        subject.tell(f"{norm} masking report")
        kept = {"checks": np.array(json.dumps([check._asdict() for check in report(norm)]))}
        if store:
            store.put(unit, **kept)
    return tuple(Check(**line) for line in json.loads(str(kept["checks"])))
