"""The attacks of torchattacks and foolbox on torch copies of the library's networks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import foolbox  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torchattacks  # pyright: ignore[reportMissingImports]
from torch_networks import CNN

from lipreg.norms import Norm

# `(x [B, C, H, W], y [B]) -> points`, one for each radius tried.
Attack = Callable[[Any, Any], Iterable[Any]]
# `(network, eps) -> attack`.
Peer = Callable[[CNN, float | None], Attack]


def by_torchattacks(name: str, *, alpha: float | None = None, **options: Any) -> Peer:
    """An attack of torchattacks; the step size `alpha` is a fraction of the radius."""

    def peer(network: CNN, eps: float | None) -> Attack:
        chosen = dict(options)
        if eps is not None:
            chosen |= {"eps": eps} | ({"alpha": alpha * eps} if alpha else {})
        attack = getattr(torchattacks, name)(network, **chosen)
        return lambda x, y: (attack(x, y),)

    return peer


def by_foolbox(name: str, *, radii: Sequence[float] = (), **options: Any) -> Peer:
    """An attack of foolbox: at the radius, or else at each of `radii`, or else without one."""

    def peer(network: CNN, eps: float | None) -> Attack:
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        attack = getattr(foolbox.attacks, name)(**options)
        at = radii if eps is None else [eps]
        if not at:
            return lambda x, y: (attack.run(model, x, y),)
        return lambda x, y: (attack.run(model, x, y, epsilon=r) for r in at)

    return peer


def distance(network: CNN, x: Any, y: Any, points: Iterable[Any], norm: Norm) -> np.ndarray:
    """`lipreg.curves.distance` of the nearest of several points, by the torch network, `[B]`."""
    with torch.no_grad():
        least = torch.where(network(x).argmax(1) == y, torch.inf, 0.0)
    for point in points:
        with torch.no_grad():
            fooled = network(point).argmax(1) != y
            fooled &= ((point >= 0) & (point <= 1)).flatten(1).all(1)  # NaN is neither
            size = torch.linalg.vector_norm((point - x).flatten(1), norm.p, 1)
            least = torch.where(fooled, torch.minimum(least, size), least)
    return least.numpy()
