"""How a model is measured: which attacks look for the nearest images, and what runs beside them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from lipreg import attacks, curves
from lipreg.box import Bounds
from lipreg.contracts import LogitsFn
from lipreg.doors import told
from lipreg.norms import Norm, select

__all__ = ["PROTOCOLS", "Protocol", "grid", "has_radius", "outsider", "pgd", "pgd_for", "search"]

Search = Callable[..., tuple[Array, Array]]


class Protocol(NamedTuple):
    """A way to measure a model.

    Attributes:
      name: of the protocol.
      searches: by norm and attack, `(key, logits_fn, x, y, *, norm, bounds) -> (distance [B],
        x_adv)`: the smallest perturbation that it finds, measured.
      autoattack: whether AutoAttack runs at each radius.
      masking: whether the masking report is made.
      settings: what else tells it from another of its name.
      within: attacks with a radius that run at each, alone, by name.
    """

    name: str
    searches: Mapping[str, Mapping[str, Search]]
    autoattack: bool = False
    masking: bool = True
    settings: Mapping[str, Any] = {}
    within: Mapping[str, Callable[..., Array]] = {}

    def left_out(self, norm: str) -> tuple[str, ...]:
        """The attacks that serve other norms, but not this one."""
        every = dict.fromkeys(label for by_name in self.searches.values() for label in by_name)
        return tuple(label for label in every if label not in self.searches[norm])


def search(attack: Callable[..., Array]) -> Search:
    """A minimum-norm attack, measured: nobody believes it."""

    def run(
        key: Array, logits_fn: LogitsFn, x: Array, y: Array, *, norm: Norm, bounds: Bounds
    ) -> tuple[Array, Array]:
        x_adv = attack(key, logits_fn, x, y, norm=norm, bounds=bounds)
        distance = curves.distance(logits_fn, x, y, x_adv, norm=norm, bounds=bounds)
        return distance, select(distance > 0, x_adv, x)  # 0 is of an image that is wrong itself

    return run


def grid(largest: float, radii: int = 31, *also: float) -> np.ndarray:
    """Radii for `pgd`: so many in geometric steps from a hundredth of the largest, and `also`.

    >>> grid(1.0, 3, 0.5)
    array([0.01, 0.1 , 0.5 , 1.  ], dtype=float32)
    """
    end = max([largest, *also])
    steps = np.append(np.geomspace(end / 100, end, radii), [*also, end])  # one radius is its start
    return np.unique(steps.astype(np.float32))


GRIDS = {"l1": grid(40.0, 31, 12.0), "l2": grid(2.0, 31, 0.1), "linf": grid(0.2, 31, 1 / 16)}


def pgd(
    steps: int = 20, restarts: int = 1, grids: Mapping[str, Sequence[float] | np.ndarray] = GRIDS
) -> Protocol:
    """PGD at radii that are bisected for each image (`curves.nearest`): the error curve.

    `grids` are the radii by norm. No masking report: it is what is measured while one works.

    Raises: ValueError for less than one step or restart.

    >>> pgd(steps=40).settings["steps"]
    40
    """
    for name, value in (("steps", steps), ("restarts", restarts)):
        if value < 1:
            raise ValueError(f"pgd: {name} = {value}; it must be at least 1.")

    def along(radii: np.ndarray) -> Search:
        def run(
            key: Array, logits_fn: LogitsFn, x: Array, y: Array, *, norm: Norm, bounds: Bounds
        ) -> tuple[Array, Array]:
            attack = partial(attacks.pgd, norm=norm, bounds=bounds, steps=steps, restarts=restarts)
            options = {"attack": attack, "norm": norm, "bounds": bounds}
            return curves.nearest(key, logits_fn, x, y, radii, **options)

        return run

    radii = {norm: np.asarray(values, np.float32) for norm, values in grids.items()}
    searches = {norm: {"pgd": along(values)} for norm, values in radii.items()}
    settings: dict[str, Any] = {"steps": steps, "restarts": restarts}
    settings["grids"] = {norm: values.tolist() for norm, values in radii.items()}
    return Protocol("pgd", searches, masking=False, settings=settings)


def pgd_for(radii: Mapping[str, Sequence[float]], bounds: Bounds) -> Protocol:
    """`pgd` with grids that have these radii and reach beyond, in a box of this width."""
    width = bounds[1] - bounds[0] if np.isfinite(bounds).all() else 1.0
    served = {norm: values for norm, values in radii.items() if norm in GRIDS}
    grids = {n: grid(width * float(GRIDS[n][-1]), 31, *values) for n, values in served.items()}
    return pgd(grids=GRIDS | grids)


_DECK = {"basic_iterative": search(attacks.basic_iterative)}
_STRONG = {"deepfool": search(attacks.deepfool), "fmn": search(attacks.fmn)}
_FULL = {
    "l1": _STRONG,
    "l2": _DECK | _STRONG | {"ddn": search(attacks.ddn)},
    "linf": _DECK | _STRONG,
}
PROTOCOLS = {
    "pgd": pgd(),
    "deck": Protocol("deck", {"l1": {}, "l2": _DECK, "linf": _DECK}),
    "autoattack": Protocol("autoattack", {"l1": {}, "l2": {}, "linf": {}}, autoattack=True),
    "full": Protocol("full", _FULL, autoattack=True),
}


def has_radius(name: str, attack: Callable) -> bool:
    """Whether an attack takes `eps`; ValueError for one that takes other arguments than attacks do.

    >>> has_radius("fgsm", attacks.fgsm), has_radius("fmn", attacks.fmn)
    (True, False)
    """
    wanted = "(key, logits_fn, x, y, eps, *, norm, bounds), or without eps"
    try:
        signature = inspect.signature(attack)
    except (TypeError, ValueError):
        raise ValueError(f"attack {name!r} is no function; want {wanted}.") from None
    eps = signature.parameters.get("eps")
    radius = eps is not None and eps.kind is not eps.KEYWORD_ONLY
    try:
        signature.bind(*("key", "logits_fn", "x", "y", "eps")[: 4 + radius], norm=0, bounds=0)
    except TypeError as error:
        raise ValueError(f"attack {name!r} takes {signature}: {error}; want {wanted}.") from None
    return radius


def outsider(name: str, attack: Callable[..., Array]) -> Callable[..., Array]:
    """An attack that anybody wrote, on a batch: each image by itself, with one key of its own.

    So its random numbers do not depend on the batch, whatever it does with its key.

    Raises: ValueError where it cannot be traced, and where what it returns is no image.
    """

    def run(
        keys: Array, logits_fn: LogitsFn, x: Array, y: Array, *eps: Any, norm: Norm, bounds: Bounds
    ) -> Array:
        def one(key: Array, x: Array, y: Array) -> Array:
            with told(f"attack {name!r} cannot be traced"):
                x_adv = attack(key, logits_fn, x[None], y[None], *eps, norm=norm, bounds=bounds)
            if getattr(x_adv, "shape", None) != (1, *x.shape):
                got = getattr(x_adv, "shape", type(x_adv).__name__)
                raise ValueError(
                    f"attack {name!r} returned {got}; want images like x {x[None].shape}."
                )
            return x_adv[0].astype(x.dtype)

        return jax.vmap(one)(keys, x, y)

    return run
