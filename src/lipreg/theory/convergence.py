"""What the theorems of 1808.09540 bound: covering radius, discrepancy, and how fast they fall.

With clean labels, minimisers on n random points of an m-dimensional manifold are within 2 L0
covering radii of the truth (Theorem 2.7, Lemma 2.9). With noisy labels they converge as well
(Theorem 2.11), since means over the points do so uniformly over Lipschitz functions (Lemma 2.12).
What counts is the dimension m of the manifold, not that of the space around it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from scipy import stats
from scipy.spatial import KDTree

from lipreg.norms import L2, Norm

__all__ = [
    "Manifold",
    "Rate",
    "circle",
    "covering_radius",
    "cube",
    "discrepancy",
    "fit_rate",
    "sphere",
    "swiss_roll",
]


class Manifold(NamedTuple):
    """A compact manifold as the image of a cube.

    Attributes:
      dimension: m.
      chart: `[0, 1]^m` onto the manifold, `[n, m] -> [n, d]`.
    """

    dimension: int
    chart: Callable[[Array], Array]

    def sample(self, key: Array, n: int) -> Array:
        """n independent points, the chart of uniform ones, `[n, d]`: their density is positive."""
        return self.chart(jax.random.uniform(key, (n, self.dimension)))

    def reference(self, per_axis: int) -> Array:
        """The chart of a grid, ends included: `per_axis^m` points of the manifold, dense in it."""
        # Closer towards the ends, where the sphere's chart is steep: circles of latitude result.
        axis = jnp.sin(jnp.linspace(0.0, jnp.pi / 2, per_axis)) ** 2
        grid = jnp.meshgrid(*[axis] * self.dimension, indexing="ij")
        return self.chart(jnp.stack(grid, -1).reshape(-1, self.dimension))


def cube(m: int) -> Manifold:
    """`[0, 1]^m`, the space of images with m pixels.

    >>> cube(2).reference(2)
    Array([[0., 0.],
           [0., 1.],
           [1., 0.],
           [1., 1.]], dtype=float32)
    """
    if m < 1:
        raise ValueError(f"m = {m}; a cube has at least 1 dimension.")
    return Manifold(m, lambda u: u)


def _turn(angle: Array) -> Array:
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)


def circle() -> Manifold:
    """`(cos 2 pi u, sin 2 pi u)`, uniform."""
    return Manifold(1, lambda u: _turn(2 * jnp.pi * u[:, 0]))


def sphere() -> Manifold:
    """The unit sphere in three dimensions, uniform: height and angle are (Archimedes)."""

    def chart(u: Array) -> Array:
        height = 2 * u[:, :1] - 1
        return jnp.concatenate([jnp.sqrt(1 - height**2) * _turn(2 * jnp.pi * u[:, 1]), height], 1)

    return Manifold(2, chart)


def swiss_roll(key: Array, d: int = 20) -> Manifold:
    """`(t cos t, t sin t, h)`, t in `[3/2 pi, 9/2 pi]` and h in `[0, 21]`, turned at random in R^d.

    The roll of Marsland (2009) and of scikit-learn; uniform in t and h. m = 2 whatever d.
    """
    if d < 3:
        raise ValueError(f"A roll in d = {d} dimensions; it needs at least 3.")
    isometry = jax.random.orthogonal(key, d)[:3]

    def chart(u: Array) -> Array:
        t = 1.5 * jnp.pi * (1 + 2 * u[:, :1])
        return jnp.concatenate([t * _turn(t[:, 0]), 21 * u[:, 1:]], 1) @ isometry

    return Manifold(2, chart)


def _points(name: str, points: ArrayLike) -> np.ndarray:
    """`[n, d]` in float64."""
    array = np.asarray(points, np.float64)
    if array.ndim < 2 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name} has shape {list(array.shape)}; want finite points [n, ...].")
    return array.reshape(len(array), -1)


def covering_radius(points: ArrayLike, reference: ArrayLike, *, norm: Norm = L2) -> float:
    """`sup_r min_i |r - x_i|`, `|Id - sigma_n|_inf` of 1808.09540: `<= C (t log n / n)^{1/m}`.

    (Lemma 2.9, with high probability, where the density of the points is bounded from below.)
    `points [n, ...]`, and `reference [r, ...]` in place of the manifold: a lower estimate of the
    manifold's covering radius, too small by that of the reference at most.

    >>> covering_radius(jnp.array([[0.25], [0.75]]), cube(1).reference(101))
    0.25
    """
    known, wanted = _points("points", points), _points("reference", reference)
    if known.shape[1] != wanted.shape[1]:
        raise ValueError(f"points of {known.shape[1]} numbers, a reference of {wanted.shape[1]}.")
    distances, _ = KDTree(known).query(wanted, p=norm.p)
    return float(np.max(distances))


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name} has shape {list(array.shape)}; want finite numbers [n].")
    return array


def discrepancy(samples: ArrayLike, reference: ArrayLike | None = None, *, L: float = 1.0) -> float:
    """`sup_{Lip(f) <= L} |E_n f - E f| = L W_1(rho_n, rho)` (Kantorovich; Lemma 2.12, 1808.09540).

    In one dimension, samples `[n]`: exact against `reference [r]`, or, without one, against the
    uniform law on [0, 1]: `W_1 = sum_i` of the integral of `|x_(i) - q|` for q from (i-1)/n to i/n.

    >>> discrepancy(np.array([0.25, 0.75])), discrepancy(np.array([0.5]), np.array([2.0]), L=3.0)
    (0.125, 4.5)
    """
    if not 0 <= L < np.inf:
        raise ValueError(f"L = {L:g}; a Lipschitz constant is finite, and 0 or more.")
    samples = _numbers("samples", samples)
    if reference is not None:
        return float(L * stats.wasserstein_distance(samples, _numbers("reference", reference)))
    x, q = np.sort(samples), np.linspace(0, 1, len(samples) + 1)
    primitive = lambda q: (q - x) * abs(q - x) / 2
    return float(L * (primitive(q[1:]) - primitive(q[:-1])).sum())


class Rate(NamedTuple):
    """A slope in log-log axes and the ends of its confidence interval."""

    slope: float
    low: float
    high: float


def fit_rate(n: ArrayLike, values: ArrayLike, *, confidence: float = 0.95) -> Rate:
    """The r of `values ~ C n^r` by least squares of the logarithms, with Student's interval for it.

    `n [S]`, and positive `values [S]` or `[S, repeats]`, taken as independent. Where theory has
    `(log n / n)^{1/m}`, hand in `n / log n`.

    >>> n = np.array([10, 100, 1000])
    >>> round(fit_rate(n, n**-0.5).slope, 6)
    -0.5
    """
    n, values = np.asarray(n, np.float64), np.asarray(values, np.float64)
    if n.ndim != 1 or values.shape[:1] != n.shape or values.ndim > 2 or values.size < 3:
        raise ValueError(
            f"n has shape {list(n.shape)}, values {list(values.shape)}; want [S] and [S] or "
            "[S, repeats], three values at least."
        )
    if not ((n > 0).all() and len(set(n)) > 1 and (values > 0).all() and np.isfinite(values).all()):
        raise ValueError("A rate needs positive finite values at two different n, at least.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence:g}; choose between 0 and 1.")
    repeated = np.repeat(n, values.size // n.size)
    (slope, _), cov = np.polyfit(np.log(repeated), np.log(values.ravel()), 1, cov=True)
    reach = stats.t.ppf((1 + confidence) / 2, values.size - 2) * np.sqrt(cov[0, 0])
    return Rate(float(slope), float(slope - reach), float(slope + reach))
