"""Attacks one after the other on the images that are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from lipreg.batching import in_batches
from lipreg.boundary import misclassified
from lipreg.box import Bounds
from lipreg.contracts import LogitsFn, check_radius
from lipreg.evaluation.store import Store
from lipreg.evaluation.subject import Subject, admitted
from lipreg.keys import fold_in
from lipreg.norms import LINF, Norm, NormLike, by_name, wide
from lipreg.tracing import compiled

__all__ = ["Outcome", "Stage", "cascade", "run"]


class Stage(NamedTuple):
    """An attack of a cascade, run `rounds` times: restarts, or one target class after the other.

    `attack(key, logits_fn, x, y, eps, round) -> x_adv`, with round traced.
    """

    name: str
    attack: Callable[..., Array]
    rounds: int = 1


class Outcome(NamedTuple):
    """What a cascade has done to N images.

    Attributes:
      x_adv: `[N, ...]`, misclassified within eps where an attack succeeded, else the image.
      broken_by: `[N]`, the place in `names` of the attack that succeeded first; -1 for none.
      names: "clean" (wrong to begin with), then the attacks in their order.
    """

    x_adv: np.ndarray
    broken_by: np.ndarray
    names: tuple[str, ...]

    @property
    def broken(self) -> np.ndarray:
        """`[N]`, misclassified, the images that were wrong to begin with among them."""
        return self.broken_by >= 0

    @property
    def error(self) -> float:
        """The fraction misclassified."""
        return float(self.broken.mean())

    def breakdown(self) -> dict[str, float]:
        """The error after each attack in turn."""
        return {
            name: float((self.broken & (self.broken_by <= n)).mean())
            for n, name in enumerate(self.names)
        }


def cascade(
    key: Array,
    logits_fn: LogitsFn,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    eps: float,
    attacks: Sequence[Stage],
    *,
    norm: NormLike = LINF,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 256,
    known: Array | np.ndarray | None = None,
    store: Store | None = None,
    name: str = "",
    progress: Callable[[str], None] | None = None,
) -> Outcome:
    """Each attack on the survivors of those before it, so that no broken image is attacked again.

    The survivors are packed into full batches of `batch_size` (the rest into quarters), so the cost
    is proportional to their number. The model is measured as it is at this call; an attack compiles
    once per batch shape, whatever eps, and not again for a model that differs only in its weights.
    Attacks are not trusted: their points are classified again and measured. `known [N, ...]` are
    adversarial examples to begin with, from a smaller radius for instance. After each batch
    `progress` is called with the attack and the number of survivors. With a `store` a killed run
    resumes where it was; what it keeps has the `name`, by default of norm and radius.

    Raises: ValueError, before anything runs, for invalid images, labels or radii, and for two
      attacks of one name.

    >>> from lipreg.attacks import pgd
    >>> x, y = np.array([[0.6, 0.4], [0.9, 0.1]], np.float32), np.array([0, 0])
    >>> pgd_stage = Stage("pgd", lambda key, f, x, y, eps, round: pgd(key, f, x, y, eps, norm=LINF))
    >>> cascade(jax.random.key(0), lambda x: x, x, y, 0.2, [pgd_stage]).breakdown()
    {'clean': 0.0, 'pgd': 0.5}
    """
    options = {"bounds": bounds, "batch_size": batch_size, "store": store, "progress": progress}
    subject = admitted(key, logits_fn, x, y, **options)
    known = None if known is None else np.asarray(known)
    return run(subject, eps, attacks, by_name(norm), known=known, name=name)


def run(
    subject: Subject,
    eps: float,
    attacks: Sequence[Stage],
    norm: Norm,
    *,
    known: np.ndarray | None = None,
    name: str = "",
) -> Outcome:
    """`cascade` on what an evaluation hands on."""
    check_radius(eps)
    labels = ["clean", "known", *(stage.name for stage in attacks)]
    if twice := [label for k, label in enumerate(labels) if label in labels[:k]]:
        raise ValueError(f"Two attacks of the cascade have the name {twice[0]!r}: rename one.")
    name = name or f"cascade-{norm.name}-{eps:.9g}"
    model, x, y, bounds = subject.model, subject.x, subject.y, subject.bounds
    x_adv, broken_by, names = x.copy(), np.full(len(x), -1), ["clean"]

    def attacked(label: str, attack: Callable, round_: int) -> None:
        program = compiled(model, _attacked, attack, norm, bounds)
        batches = in_batches(
            lambda *images: program(model, *images, eps, round_),
            np.flatnonzero(broken_by < 0),
            subject.batch_size,
            *(fold_in(subject.keys, round_), x, y),
            parts=4,
            store=subject.store,
            name=f"{name}-{label}-{round_}",
        )
        for rows, results in batches:
            hit = rows[results["broken"]]
            x_adv[hit], broken_by[hit] = results["points"][results["broken"]], len(names) - 1
            left = (broken_by < 0).sum()
            subject.tell(f"{name} {label}: {left} of {len(x)} images left")

    attacked("clean", _nothing, 0)
    if known is not None:
        names.append("known")
        check = compiled(model, _broken, norm, bounds)
        survivors, believe = (
            np.flatnonzero(broken_by < 0),
            lambda *images: check(model, *images, eps),
        )
        for rows, broken in in_batches(
            believe, survivors, subject.batch_size, x, y, known, parts=4
        ):
            x_adv[rows[broken]], broken_by[rows[broken]] = known[rows[broken]], 1
    for stage in attacks:
        names.append(stage.name)
        for round_ in range(stage.rounds):
            attacked(stage.name, stage.attack, round_)
    return Outcome(x_adv, broken_by, tuple(names))


def _nothing(
    key: Array, logits_fn: LogitsFn, x: Array, y: Array, eps: Array, round_: Array
) -> Array:
    return x


def _attacked(
    attack: Callable,
    norm: Norm,
    bounds: Bounds,
    logits_fn: LogitsFn,
    keys: Array,
    x: Array,
    y: Array,
    eps: Array,
    round_: Array,
) -> dict[str, Array]:
    """The attack's points, and which of them count, classified again and measured."""
    x_adv = attack(keys, logits_fn, x, y, eps, round_)
    broken = _broken(norm, bounds, logits_fn, x, y, x_adv, eps)
    return {"points": x_adv, "broken": broken}


def _broken(
    norm: Norm, bounds: Bounds, logits_fn: LogitsFn, x: Array, y: Array, x_adv: Array, eps: Array
) -> Array:
    inside = ((x_adv >= bounds[0]) & (x_adv <= bounds[1])).reshape(len(x), -1).all(1)
    # To the rounding of a sum x + d, which is no share of eps.
    change = wide(x_adv) - wide(x)
    room = jnp.finfo(change.dtype).eps * jnp.abs(wide(x_adv))
    near = norm.size(jnp.maximum(jnp.abs(change) - room, 0.0)) <= eps * (1 + 1e-5)
    return misclassified(logits_fn, x_adv, y) & inside & near
