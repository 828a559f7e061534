"""Attacks one after the other on the images that are left: `cascade`, and AutoAttack as one."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from lipreg.attacks import apgd, fab, square
from lipreg.attacks.copies import likeliest_wrong
from lipreg.boundary import misclassified
from lipreg.box import Bounds
from lipreg.contracts import LogitsFn, check_inputs, check_radius
from lipreg.evaluation.store import Store
from lipreg.keys import example_keys, fold_in
from lipreg.losses import cross_entropy, dlr
from lipreg.norms import L1, LINF, Norm, wide
from lipreg.parallel import gather, multiple, shard
from lipreg.tracing import compiled, output, snapshot

__all__ = ["VERSIONS", "Outcome", "Stage", "autoattack", "cascade", "stages"]

VERSIONS = ("standard", "plus", "rand")


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
    def error(self) -> float:
        """The fraction misclassified."""
        return float((self.broken_by >= 0).mean())

    def breakdown(self) -> dict[str, float]:
        """The error after each attack in turn."""
        return {
            name: float(((self.broken_by >= 0) & (self.broken_by <= n)).mean())
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
    norm: Norm = LINF,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 256,
    known: Array | np.ndarray | None = None,
    store: Store | None = None,
    name: str = "cascade",
    progress: Callable[[str], None] | None = None,
) -> Outcome:
    """Each attack on the survivors of those before it, so that no broken image is attacked again.

    The survivors are packed into full batches of `batch_size` (the rest into quarters), so the cost
    is proportional to their number. The model is measured as it is at this call; an attack compiles
    once per batch shape, whatever eps, and not again for a model that differs only in its weights.
    Attacks are not trusted: their points are classified again and measured. `known [N, ...]` are
    adversarial examples to begin with, from a smaller radius for instance. After each batch
    `progress` is called with the attack and the number of survivors. With a `store` a killed run
    resumes where it was.

    Raises: ValueError, before anything runs, for invalid images, labels or radii.

    >>> from lipreg.attacks import pgd
    >>> x, y = np.array([[0.6, 0.4], [0.9, 0.1]], np.float32), np.array([0, 0])
    >>> pgd_stage = Stage("pgd", lambda key, f, x, y, eps, round: pgd(key, f, x, y, eps, norm=LINF))
    >>> cascade(jax.random.key(0), lambda x: x, x, y, 0.2, [pgd_stage]).breakdown()
    {'clean': 0.0, 'pgd': 0.5}
    """
    logits_fn = snapshot(logits_fn)
    x, y = admitted(logits_fn, x, y, bounds)
    check_radius(eps)
    keys = example_keys(key, len(x))
    names = ("clean", *(["known"] if known is not None else []), *(stage.name for stage in attacks))
    x_adv, broken_by = x.copy(), np.full(len(x), -1)

    def run(place: int, label: str, attack: Callable, round_: int) -> None:
        program, left = (
            compiled(logits_fn, _attacked, attack, norm, bounds),
            np.flatnonzero(broken_by < 0),
        )
        for start, rows, count in _packed(left, batch_size):
            unit = f"{name}-{label}-{round_}-{start}"
            found = store.get(unit) if store else None
            if found is None or not np.array_equal(found["rows"], rows[:count]):
                images = shard((fold_in(keys[jnp.asarray(rows)], round_), x[rows], y[rows]))
                points, broken = gather(program(logits_fn, *images, eps, round_))
                found = {"points": points[:count], "broken": broken[:count]}
                if store:
                    store.put(unit, rows=rows[:count], **found)
            hit = rows[:count][found["broken"]]
            x_adv[hit], broken_by[hit] = found["points"][found["broken"]], place
            if progress:
                progress(f"{label}: {(broken_by < 0).sum()} of {len(x)} images left")

    run(0, "clean", _nothing, 0)
    x_adv[broken_by == 0] = x[broken_by == 0]
    if known is not None:
        _believe(
            logits_fn, x, y, np.asarray(known), eps, norm, bounds, x_adv, broken_by, batch_size
        )
    for place, stage in enumerate(attacks, len(names) - len(attacks)):
        for round_ in range(stage.rounds):
            run(place, stage.name, stage.attack, round_)
    return Outcome(x_adv, broken_by, names)


def admitted(
    logits_fn: LogitsFn, x: Array | np.ndarray, y: Array | np.ndarray, bounds: Bounds
) -> tuple[np.ndarray, np.ndarray]:
    """All images, clipped to `bounds`, and all labels in int32, checked on the host."""
    x, y = np.asarray(x), np.asarray(y)
    check_inputs(logits_fn, x, y, bounds)  # pyright: ignore[reportArgumentType]
    return np.clip(x, *(np.asarray(end, x.dtype) for end in bounds)), y.astype(np.int32)


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
) -> tuple[Array, Array]:
    """The attack's points, and which of them count, classified again and measured."""
    x_adv = attack(keys, logits_fn, x, y, eps, round_)
    return x_adv, _broken(norm, bounds, logits_fn, x, y, x_adv, eps)


def _broken(
    norm: Norm, bounds: Bounds, logits_fn: LogitsFn, x: Array, y: Array, x_adv: Array, eps: Array
) -> Array:
    inside = ((x_adv >= bounds[0]) & (x_adv <= bounds[1])).reshape(len(x), -1).all(1)
    near = norm.size(wide(x_adv) - wide(x)) <= eps * (1 + 1e-5)
    return misclassified(logits_fn, x_adv, y) & inside & near


def _believe(
    logits_fn: Partial,
    x: np.ndarray,
    y: np.ndarray,
    known: np.ndarray,
    eps: float,
    norm: Norm,
    bounds: Bounds,
    x_adv: np.ndarray,
    broken_by: np.ndarray,
    batch_size: int,
) -> None:
    check = compiled(logits_fn, _broken, norm, bounds)
    for _, rows, count in _packed(np.flatnonzero(broken_by < 0), batch_size):
        broken = np.asarray(check(logits_fn, x[rows], y[rows], known[rows], eps))[:count]
        hit = rows[:count][broken]
        x_adv[hit], broken_by[hit] = known[hit], 1


def _packed(rows: np.ndarray, batch_size: int) -> Iterator[tuple[int, np.ndarray, int]]:
    """Batches of one size, the rest in quarters of it, filled up by repeating the last row.

    Each is (place of its first row, rows, how many of them count).
    """
    quarter, batch_size, start = multiple(-(-batch_size // 4)), multiple(batch_size), 0
    while start < len(rows):
        left = len(rows) - start
        size = batch_size if left > batch_size - quarter else quarter
        places = np.minimum(np.arange(start, start + size), len(rows) - 1)
        yield start, rows[places], min(size, left)
        start += size


def _round(attack: Callable, key: Array, *inputs: Any, **options: Any) -> Array:
    # A restart: the cascade has folded its number, the last input, into the key.
    return attack(key, *inputs[:-1], **options)


def _target(
    attack: Callable,
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    eps: Array,
    round_: Array,
    *,
    most: int,
    **options: Any,
) -> Array:
    target = likeliest_wrong(logits_fn(x), y, most)[:, round_]
    return attack(key, logits_fn, x, y, eps, targets=target[:, None], **options)


def stages(
    version: str,
    classes: int,
    norm: Norm = LINF,
    bounds: Bounds = (0.0, 1.0),
    channels: int | None = None,
) -> Sequence[Stage]:
    """The attacks of AutoAttack (2003.01690), in their order, with the authors' settings.

    `standard`: APGD on cross entropy, targeted APGD on DLR, targeted FAB (the 9 likeliest wrong
    classes, or as many as there are), Square with 5,000 queries. `plus`: APGD on cross entropy and
    on DLR and FAB, 5 starts each, Square, and the targeted two. `rand`, for random models given as
    `attacks.expectation.expectation`: APGD on both losses. `channels` is the channel axis, for
    Square.

    In l_1 (2103.01208) both forms of APGD of `standard` begin at three times the radius, the one on
    cross entropy with 5 starts and the targeted one on 5 classes. Square is left out in l_1.

    Raises: ValueError, with the choices, for another version.

    >>> [stage.name for stage in stages("standard", 10)]
    ['apgd-ce', 'apgd-t', 'fab-t', 'square']
    """
    if version not in VERSIONS:
        raise ValueError(f"No version {version!r}; choose one of {', '.join(VERSIONS)}.")
    common: dict[str, Any] = {"norm": norm, "bounds": bounds}
    larger = norm is L1 and version == "standard"
    ce, by_dlr = ({"loss": loss, "from_larger": larger, **common} for loss in (cross_entropy, dlr))

    def targeted(name: str, attack: Callable, targets: int, options: dict[str, Any]) -> Stage:
        most = min(targets, classes - 1)
        return Stage(name, partial(_target, attack, most=most, **options), most)

    by_target = [
        targeted("apgd-t", apgd, 5 if larger else 9, by_dlr),
        targeted("fab-t", fab, 9, common),
    ]
    if version == "rand":
        return (
            Stage("apgd-ce", partial(_round, apgd, **ce)),
            Stage("apgd-dlr", partial(_round, apgd, **by_dlr)),
        )
    scores = [Stage("square", partial(_round, square, channels=channels, **common))]
    scores = [] if norm is L1 else scores
    if version == "standard":
        return (
            Stage("apgd-ce", partial(_round, apgd, **ce), 5 if larger else 1),
            *by_target,
            *scores,
        )
    return (
        Stage("apgd-ce", partial(_round, apgd, **ce), 5),
        Stage("apgd-dlr", partial(_round, apgd, **by_dlr), 5),
        Stage("fab", partial(_round, fab, **common), 5),
        *scores,
        *by_target,
    )


def autoattack(
    key: Array,
    logits_fn: LogitsFn,
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    eps: float,
    *,
    norm: Norm = LINF,
    bounds: Bounds = (0.0, 1.0),
    version: str = "standard",
    channels: int | None = None,
    **options: Any,
) -> Outcome:
    """The `stages` of AutoAttack as a `cascade`, whose options it accepts (2003.01690).

    `channels` is the channel axis where it is not the last: 1 for `[B, C, H, W]`.

    >>> x, y = np.array([[0.6, 0.3, 0.1, 0.0], [1.0, 0.0, 0.0, 0.0]], np.float32), np.array([0, 0])
    >>> autoattack(jax.random.key(0), lambda x: x, x, y, 0.2).error
    0.5
    """
    classes = output(logits_fn, jnp.asarray(x[:1])).shape[1]
    attacks = stages(version, classes, norm, bounds, channels)
    return cascade(key, logits_fn, x, y, eps, attacks, norm=norm, bounds=bounds, **options)
