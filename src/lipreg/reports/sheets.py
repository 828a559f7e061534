"""Pictures of images: a sheet, images beside what fools a model, one image at growing eps.

What a model gets wrong has a frame, whose colour is that of the class it names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipreg.reports import style

__all__ = ["attacked", "images", "nearest_boundary", "visible_attack"]


@style.drawn
def images(x: ArrayLike, *, titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """A sheet of images `[N, H, W, C]` in [0, 1], C = 1 or 3, `columns` a row, a title above each.

    Values outside [0, 1] are clipped.

    >>> len(images(np.zeros((3, 8, 8, 1)), columns=2).axes)
    3
    """
    pixels = np.asarray(x, float)
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or not len(pixels):
        raise ValueError(f"images of shape {pixels.shape}; want [N, H, W, 1] or [N, H, W, 3].")
    if titles is not None and len(titles) != len(pixels):
        raise ValueError(f"{len(titles)} titles for {len(pixels)} images.")
    if columns < 1:
        raise ValueError(f"columns = {columns}; it must be at least 1.")
    columns = min(columns, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    figure = Figure(figsize=(1.25 * columns, 1.45 * rows))
    for number, image in enumerate(pixels.clip(0, 1)):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(image, vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if titles is not None:
            axes.set_title(titles[number], fontsize=8)
    return figure


def _answer(axes: Axes, text: str, wrong: bool) -> None:
    """What a model answers, below the image; framed where it is wrong."""
    color = style.FOOLED if wrong else "black"
    axes.text(0.5, -0.06, text, c=color, size=8, ha="center", va="top", transform=axes.transAxes)
    if wrong:
        axes.spines[:].set(visible=True, color=color, linewidth=2.5)


@style.drawn
def attacked(
    x: ArrayLike,
    x_adv: ArrayLike,
    y: ArrayLike,
    *,
    before: ArrayLike,
    after: ArrayLike,
    names: Sequence[str] = (),
    norm_name: str,
    eps: float,
) -> Figure:
    """Images `[N, H, W, C]`, the change and `x_adv` below each other, with the classes predicted.

    Above an image its class, `y`; below it `before`, and below the attacked one `after`, classes
    `[N]` by their `names` where there are any. A frame marks what is misclassified. The changes are
    on middle grey, all times one factor, which makes the largest entry of them black or white.

    >>> x, zeros, options = np.zeros((2, 8, 8, 1)), [0, 0], {"norm_name": "l2", "eps": 0.5}
    >>> figure = attacked(x, x + 0.1, zeros, before=zeros, after=[0, 1], names="ab", **options)
    >>> [below.get_text() for axes in figure.axes for below in axes.texts]
    ['a', 'a', 'a', 'b']
    """
    x, x_adv, y, before, after = map(np.asarray, (x, x_adv, y, before, after))
    if x.shape != x_adv.shape or not y.shape == before.shape == after.shape == x.shape[:1]:
        shapes = ", ".join(str(list(a.shape)) for a in (x, x_adv, y, before, after))
        raise ValueError(f"Shapes {shapes}; want [N, H, W, C] twice, and [N] three times.")
    called = lambda k: str(names[k] if len(names) else k)
    change, times = _amplified(x, x_adv)
    titles = [*map(called, y), *[""] * 2 * len(y)]
    figure = images(np.concatenate([x, change, x_adv]), titles=titles, columns=len(y))
    figure.set_figheight(figure.get_figheight() + 0.3)
    for row, predicted in ((0, before), (2, after)):
        for axes, true, k in zip(figure.axes[row * len(y) :], y, predicted, strict=False):
            _answer(axes, called(k), k != true)
    for axes, name in zip(
        figure.axes[:: len(y)], ("image", f"change × {times:.3g}", "attacked"), strict=True
    ):
        axes.set_ylabel(name)
    fooled = f"{(after != y).sum()} of {len(y)} misclassified"
    figure.suptitle(f"ε = {eps:.3g} in {style.norm(norm_name)}: {fooled}")
    return figure


def _amplified(x: np.ndarray, x_adv: np.ndarray) -> tuple[np.ndarray, float]:
    """`1/2 + c (x_adv - x)` with c such that its largest entry is 0 or 1, and c."""
    change = np.asarray(x_adv, float) - np.asarray(x, float)
    largest = np.abs(change).max()
    times = 0.5 / largest if largest > 0 else 1.0
    return 0.5 + times * change, times


@style.drawn
def visible_attack(
    x: ArrayLike,
    epsilons: Sequence[float],
    predictions: Sequence[Any],
    confidences: Sequence[float],
    *,
    columns: int = 8,
) -> Figure:
    """One image attacked at growing eps, `[E, H, W, C]`: what the eye sees, and what the model.

    Above each image its eps; below it the class predicted and the probability the model gives it,
    with a frame where the class is not the first image's. Begin with the clean image, at eps = 0.

    >>> x = np.zeros((2, 8, 8, 1))
    >>> [below.get_text() for axes in visible_attack(x, [0, 0.5], [3, 8], [0.97, 0.51]).axes
    ...     for below in axes.texts]
    ['3, 97%', '8, 51%']
    """
    if not len(epsilons) == len(predictions) == len(confidences):
        raise ValueError(
            f"{len(epsilons)} epsilons, {len(predictions)} predictions, {len(confidences)} "
            "confidences; want one for each image."
        )
    figure = images(x, titles=[f"ε = {eps:.3g}" for eps in epsilons], columns=columns)
    figure.set_figheight(1.15 * figure.get_figheight())  # room for what stands below
    for axes, name, confidence in zip(figure.axes, predictions, confidences, strict=True):
        _answer(axes, f"{name}, {confidence:.0%}", name != predictions[0])
    return figure


@style.drawn
def nearest_boundary(
    x: ArrayLike,
    x_adv: ArrayLike,
    *,
    before: tuple[Any, float],
    after: tuple[Any, float],
    norm_name: str,
    distance: float,
) -> Figure:
    """`x + (x_adv - x) = x_adv` as pictures, images `[H, W, C]`: the panda of 1412.6572.

    `before` and `after` are the class predicted and its probability, `distance` the perturbation's
    size in the norm. The perturbation is drawn on middle grey, amplified until its largest entry is
    black or white; the title says how many times.

    >>> x, x_adv = np.zeros((8, 8, 1)), np.full((8, 8, 1), 0.05)
    >>> options = {"before": (3, 0.97), "after": (8, 0.51), "norm_name": "linf", "distance": 0.05}
    >>> [axes.get_title() for axes in nearest_boundary(x, x_adv, **options).axes]
    ['image', 'change × 10', 'attacked']
    """
    x, x_adv = np.asarray(x, float), np.asarray(x_adv, float)
    if x.ndim != 3 or x.shape != x_adv.shape:
        raise ValueError(f"images of shapes {x.shape} and {x_adv.shape}; want [H, W, C] twice.")
    change, times = _amplified(x, x_adv)
    titles = ["image", f"change × {times:.3g}", "attacked"]
    figure = images(np.stack([x, change, x_adv]), titles=titles, columns=3)
    left, middle, right = figure.axes
    _answer(left, f"{before[0]}, {before[1]:.0%}", False)
    _answer(middle, f"{style.norm(norm_name)} size {distance:.3g}", False)
    _answer(right, f"{after[0]}, {after[1]:.0%}", after[0] != before[0])
    for axes, sign in ((left, "+"), (middle, "=")):
        axes.text(1.12, 0.5, sign, size=14, ha="center", va="center", transform=axes.transAxes)
    return figure
