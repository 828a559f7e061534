"""Exact minimisers of `E_n l(f, u0) + lam max(Lip(f) - L0, 0)`, the functional of 1808.09540.

At the n data points the functional is a convex program: `minimise` solves it. Between them, any
extension that keeps the Lipschitz constant is a minimiser: `extend` gives the smallest, the
largest and their mean. With clean labels, `Lip(u0) <= L0`, the labels themselves solve the program,
and their extension is a minimiser with loss 0.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clarabel import clarabel  # pyright: ignore[reportAttributeAccessIssue]
from jax import Array
from jax.typing import ArrayLike
from scipy import sparse
from scipy.spatial.distance import cdist

from lipreg.float64 import in_float64
from lipreg.norms import L2, LINF, Norm, expand

__all__ = ["Minimiser", "extend", "minimise"]

SIDES = ("lower", "midpoint", "upper")


def _data(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """In float64: the points, flat, `[n, d]`, and the labels, `[n]` or `[n, K]`."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim < 2 or not x.size or y.ndim not in (1, 2) or len(y) != len(x) or not y.size:
        raise ValueError(
            f"x has shape {list(x.shape)}, y {list(y.shape)}; want [n, ...] and [n] or [n, K]."
        )
    for name, values in (("x", x), ("y", y)):
        if not np.isfinite(values).all():
            bad = (~np.isfinite(values)).sum()
            raise ValueError(f"{name} has {bad} entries of {values.size} that are not finite.")
    return x.reshape(len(x), -1), y


def _steepest(
    x: np.ndarray, y: np.ndarray, norm: Norm, label_norm: Norm
) -> tuple[np.ndarray, np.ndarray]:
    """`max_j |y_i - y_j| / |x_i - x_j|` for each point, and the j that attains it; 0/0 is 0."""
    y = y.reshape(len(y), -1)
    slopes, partners = [], []
    for block in np.array_split(np.arange(len(x)), math.ceil(len(x) ** 2 / 2**22)):
        rise = cdist(y[block], y, "minkowski", p=label_norm.p)
        run = cdist(x[block], x, "minkowski", p=norm.p)
        with np.errstate(divide="ignore"):
            slope = np.divide(rise, run, out=np.zeros_like(rise), where=rise > 0)
        slopes.append(slope.max(1))
        partners.append(slope.argmax(1))
    return np.concatenate(slopes), np.concatenate(partners)


def _onto_simplex(v: Array) -> Array:
    """The nearest point `max(v - t, 0)` of the simplex (optax's refuses strict promotion)."""
    sums = jnp.cumsum(jnp.sort(v, descending=True))
    t = ((sums - 1) / jnp.arange(1, v.size + 1, dtype=v.dtype)).max()
    return jnp.maximum(v - t, 0)


@partial(jax.jit, static_argnames=("side", "norm", "simplex"))
def _evaluate(
    x: Array, y: Array, L: Array, points: Array, side: str, norm: Norm, simplex: bool
) -> Array:
    def at(point: Array) -> Array:
        reach = expand(L * norm.size(x - point[None]), y)
        lower, upper = (y - reach).max(0), (y + reach).min(0)
        value = {"lower": lower, "midpoint": (lower + upper) / 2, "upper": upper}[side]
        return _onto_simplex(value) if simplex else value

    return jax.lax.map(at, points, batch_size=max(1, 2**22 // x.size))


def extend(
    x: ArrayLike,
    y: ArrayLike,
    L: float,
    *,
    side: str = "midpoint",
    norm: Norm = L2,
    simplex: bool = False,
) -> Callable[[ArrayLike], Array]:
    """`max_i y_i - L|x - x_i|`, lower; `min_i y_i + L|x - x_i|`, upper (McShane 1934; 1808.09540).

    Every L-Lipschitz function through the data lies between the two; the midpoint is their mean.
    `x [n, ...]` and `y [n]` or `[n, K]` give a function `[m, ...] -> [m]` or `[m, K]` that may be
    jitted, differentiated and attacked, and needs the memory of one block of points at a time. It
    is computed in float64 and rounded to float32: two values differ by at most L times the distance
    of their points plus `2^-23` of their size.

    Vectors are extended component by component: that keeps L from `norm` to l_inf, and costs up to
    sqrt(K) from l_2 to l_2. `simplex=True` projects onto the probability simplex, which is
    1-Lipschitz in l_2 and keeps the labels, if they are distributions.

    Raises: ValueError where the data are steeper than L (beyond 1e-5 of it), with the pair.

    >>> f = extend(np.array([[0.0], [1.0]]), np.array([0.0, 1.0]), L=2.0, side="upper")
    >>> f(np.array([[0.0], [0.25], [1.0]]))
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    if side not in SIDES:
        raise ValueError(f"No side {side!r}; choose one of {', '.join(SIDES)}.")
    flat, labels = _data(x, y)
    if simplex and (labels.ndim == 1 or labels.min() < 0 or abs(labels.sum(1) - 1).max() > 1e-5):
        raise ValueError("simplex=True needs labels [n, K] that are distributions over K classes.")
    slopes, partners = _steepest(flat, labels, norm, label_norm=LINF)
    i = slopes.argmax()
    if not slopes[i] <= L * (1 + 1e-5) < math.inf:
        raise ValueError(
            f"The data have slope {slopes[i]:g} between points {i} and {partners[i]}; L = {L:g} "
            "must be finite and at least that."
        )
    shape, dtype = np.shape(x)[1:], jnp.result_type(float)
    known = np.asarray(x, np.float64), np.asarray(y, np.float64), np.float64(L)

    # In float32 the values of close points would differ by the rounding of `L|x - x_i|`.
    @in_float64
    def evaluate(points: Array) -> Array:
        values = _evaluate(*known, jnp.asarray(points, float), side, norm, simplex)
        return values.astype(dtype)

    def extension(points: ArrayLike) -> Array:
        if np.shape(points)[1:] != shape:
            want = ", ".join(map(str, ("m", *shape)))
            raise ValueError(f"Points of shape {list(np.shape(points))}; want [{want}].")
        return evaluate(points)

    return extension


class Minimiser(NamedTuple):
    """What `minimise` finds, in float64.

    Attributes:
      values: `f(x_i)`, `[n]` or `[n, K]`.
      L: `max(Lip(f), L0)`, the constant to extend with.
      value: the functional at f.
    """

    values: np.ndarray
    L: float
    value: float


def _solve(
    target: np.ndarray,
    weight: np.ndarray,
    i: np.ndarray,
    j: np.ndarray,
    run: np.ndarray,
    lam: float,
    L0: float,
) -> tuple[np.ndarray, float]:
    """`min sum_i w_i |f_i - t_i|^2 + lam s`, where `|f_i - f_j| <= (L0 + s) run` for some pairs.

    A quadratic program over second-order cones, in `f [n, K]` and `s >= 0`. Returns f and L0 + s.
    """
    (n, k), pairs = target.shape, len(run)
    # The solver's tolerances are absolute, so labels and distances get units of their own.
    centre, x_unit = target.mean(0), run.max()
    y_unit = abs(target - centre).max()
    slope_unit = y_unit / x_unit
    weights, goal = np.repeat(weight, k), ((target - centre) / y_unit).ravel()
    P = sparse.diags_array(np.append(2 * weights, 0.0)).tocsc()
    q = np.append(-2 * weights * goal, lam * slope_unit / y_unit**2)

    # A cone has 1 + k rows: (L0 + s) run, then the components of f_i - f_j. `b - A z` lies in it.
    first, rest = np.eye(k + 1, 1), np.eye(k + 1, k, -1)
    eye = sparse.csr_array(sparse.eye_array(n))
    run = run[:, None] / x_unit
    units = np.kron(run, first)
    rows = [sparse.kron(eye[i] - eye[j], rest), units]
    A = -sparse.block_array([rows, [None, np.ones((1, 1))]]).tocsc()
    b = np.append(L0 / slope_unit * units, 0.0)
    kinds = [*[clarabel.SecondOrderConeT(k + 1)] * pairs, clarabel.NonnegativeConeT(1)]

    settings = clarabel.DefaultSettings()
    settings.verbose = False
    # A gap g allows an error sqrt(g) in f. At 1e-10 some programs of noisy labels stop short.
    settings.tol_gap_abs = settings.tol_gap_rel = 1e-9
    settings.reduced_tol_gap_abs = settings.reduced_tol_gap_rel = 1e-7  # then "AlmostSolved"
    settings.reduced_tol_feas = 1e-7
    solution = clarabel.DefaultSolver(P, q, A, b, kinds, settings).solve()
    solved = clarabel.SolverStatus.Solved, clarabel.SolverStatus.AlmostSolved
    if solution.status not in solved:
        raise RuntimeError(f"The solver ended with {solution.status}, n = {n}, {pairs} pairs.")
    *f, s = solution.x
    return centre + y_unit * np.reshape(f, (n, k)), L0 + slope_unit * max(s, 0.0)


def minimise(x: ArrayLike, y: ArrayLike, *, lam: float, L0: float, norm: Norm = L2) -> Minimiser:
    """`min_f 1/n sum_i |f(x_i) - y_i|^2 + lam max(Lip(f) - L0, 0)` (1808.09540, J^{Lip,n}).

    `x [n, ...]`, and y scalars `[n]` or vectors `[n, K]`, which are measured in l_2. This is a
    convex program in the values `f(x_i)` and L, with Lip(f) over the data points. `extend` extends
    scalars with the same slope, in any norm; for vectors and `norm=L2` such an extension exists
    (Kirszbraun), but it is not `extend`'s. Labels in the simplex get values in the simplex.
    Points that coincide share one value, whatever their labels.

    A pair becomes a constraint when it is violated, until none is: exact but for the solver's
    tolerance, 1e-7 of L and lam times that in `value`, with far fewer than all.

    Raises: ValueError for data that are not finite or do not fit, and negative lam or L0;
    RuntimeError where the solver reports no solution.

    >>> x, y = np.array([[0.0], [0.1]]), np.array([0.0, 1.0])
    >>> f = minimise(x, y, lam=0.02, L0=2.0)
    >>> print(f.values.round(4), round(f.L, 4))  # slope (1 - 2 lam / r) / r, r = 0.1
    [0.2 0.8] 6.0
    """
    if not (0 <= lam < math.inf and 0 <= L0 < math.inf):
        raise ValueError(f"lam = {lam:g}, L0 = {L0:g}; both must be finite, and 0 or more.")
    flat, labels = _data(x, y)
    vectors = labels.reshape(len(flat), -1)
    points, index, counts = np.unique(flat, axis=0, return_inverse=True, return_counts=True)
    n = len(points)
    target = np.zeros((n, vectors.shape[1]))
    np.add.at(target, index, vectors / counts[index, None])

    # A unit of slope gains at most this much loss: a larger lam has the same minimiser, and would
    # stop the solver short of its tolerance.
    spread = np.linalg.norm(vectors - vectors.mean(0), axis=1).mean()
    enough = 2 * spread * np.linalg.norm(np.ptp(points, axis=0), norm.p)

    f, L = target, L0 if lam else math.inf
    pairs = np.array([], int)  # i < j as the number n i + j
    while True:
        slopes, partners = _steepest(points, f, norm, L2)
        i = np.flatnonzero(slopes > L * (1 + 1e-7))
        j = partners[i]
        violated = np.setdiff1d(n * np.minimum(i, j) + np.maximum(i, j), pairs)
        # Any that are left are constraints already, missed by the solver's rounding.
        if not violated.size:
            break
        pairs = np.concatenate([pairs, violated])
        i, j = np.divmod(pairs, n)
        run = np.linalg.norm(points[i] - points[j], norm.p, axis=1)
        f, L = _solve(target, counts / len(flat), i, j, run, min(lam, enough), L0)

    L = max(float(slopes.max()), float(L0))
    values = f[index].reshape(labels.shape)
    loss = np.square(values - labels).sum() / len(flat)
    return Minimiser(values, L, float(loss + lam * (L - L0)))
