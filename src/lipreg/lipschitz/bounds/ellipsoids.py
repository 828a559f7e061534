"""Ellipsoids that changes stay in, layer by layer: `dh = S^(1/2) u` with `||u|| <= ||dx||`.

They know that what the last layer stretches most need not be what the next one does, which a
product of norms forgets: 1.5 to 2.8 times tighter on random networks of dense layers (ECLipsE-Fast,
2404.04375).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.lipschitz.bounds.intervals import UNDERFLOW, largest, most, times, upper
from lipreg.lipschitz.bounds.singular import largest_eigenvalue

__all__ = ["LARGEST", "Ellipsoid", "linear", "sphere", "through_units"]

LARGEST = 2048  # entries of a layer whose ellipsoid, of the square of that, is kept
STEEPEST = 0.99  # of the shares below, so that 12 squarings sum their series
ROUNDING = 1e-10  # relative to the largest eigenvalue


class Ellipsoid(NamedTuple):
    """`|c . dh| <= unit sqrt(c S c) ||dx||` for every c.

    Attributes:
      matrix: S, `[n, n]`.
      unit: lest squares underflow.
      terms: of the longest sum that S was computed by, for its rounding error.
    """

    matrix: Array
    unit: Array
    terms: int

    @property
    def widths(self) -> Array:
        """Bounds of `|dh_i| / ||dx||`, `[n]`."""
        return self.unit * jnp.sqrt(jnp.diagonal(self.matrix))

    def norm(self, c: Array) -> Array:
        """A bound of `||diag(c) dh|| / ||dx||`."""
        c, unit = _relative(c)
        square = largest_eigenvalue(c[:, None] * self.matrix * c[None])
        return upper(times(self.unit, unit * jnp.sqrt(square)))


def _relative(a: Array) -> tuple[Array, Array]:
    unit = largest(jnp.abs(a))
    return a / jnp.where(unit > 0, unit, 1.0), unit


def _known(matrix: Array, unit: Array, terms: int) -> Ellipsoid:
    """Of which nothing is known where the unit is infinite."""
    return Ellipsoid(jnp.where(jnp.isfinite(unit), matrix, jnp.nan), unit, terms)


def sphere(a: Array) -> Ellipsoid:
    """That of `a u`, `||u|| <= ||dx||`."""
    a, unit = _relative(a)
    least = jnp.where((a != 0).any(1), UNDERFLOW, 0.0)
    return _known(a @ a.T + jnp.diag(least), unit, a.shape[1])


def linear(a: Array, through: Ellipsoid) -> Ellipsoid:
    """`A S A^T` for A `[m, n]`.

    A computed entry is wrong by at most `k eps rho_i rho_j`, `rho = |A| diag(S)^(1/2)`; by the
    inequality of means such an error is at most `diag(k eps rho_i sum_j rho_j)` (Higham 2002,
    section 3.5).
    """
    a, unit = _relative(a)
    matrix = a @ through.matrix @ a.T
    rho = jnp.abs(a) @ jnp.sqrt(jnp.diagonal(through.matrix))
    wrong = 8 * (a.shape[1] + 4) * float(jnp.finfo(a.dtype).eps) * rho * rho.sum()
    matrix = (matrix + matrix.T) / 2 + jnp.diag(wrong)
    return _known(matrix, through.unit * unit, a.shape[1])


def through_units(low: Array, high: Array, before: Ellipsoid) -> Ellipsoid:
    """That of `D h` for every diagonal D with entries in `[low, high]` (2404.04375, section 4).

    With `D = C + R E`, C and R diagonal, `|E| <= 1` and `e = E h`, the sum over units of
    `t_i (h_i^2 - e_i^2)` is not negative, whatever `t >= 0`. So it may be added to the square of
    h's size in the ellipsoid, and what comes out is `C (S^-1 - T)^-1 C + R^2 / T`. For one unit
    `t = r / (|c| + r) / S` is best; here S is the largest eigenvalue, as in the paper. Units with
    one slope, those that are on or off, have `r = 0` and are exact (2510.05261).
    """
    s, steepest = before.matrix, largest(most((low, high)))
    low, high = (end / jnp.where(steepest > 0, steepest, 1.0) for end in (low, high))
    c, r = (high + low) / 2, (high - low) / 2
    share = jnp.minimum(r / jnp.where(r > 0, jnp.abs(c) + r, 1.0), STEEPEST)
    uncertain = jnp.where(r > 0, 1.0, 0.0)
    reach = largest_eigenvalue(uncertain[:, None] * s * uncertain[None])
    t = jnp.sqrt(share / jnp.where(reach > 0, reach, 1.0))
    power = t[:, None] * s * t[None]

    def product(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        power, inverse = carry  # (1 - P)^-1 = (1 + P) (1 + P^2) (1 + P^4) ...
        return power @ power, inverse + power @ inverse

    one = jnp.eye(len(s), dtype=s.dtype)
    _, inverse = jax.lax.fori_loop(0, 12, product, (power, one))
    half = s * t[None]
    s = c[:, None] * (s + half @ inverse @ half.T) * c[None]
    apart = jnp.where(share > 0, r * r * reach / jnp.where(share > 0, share, 1.0), 0.0)
    room = ROUNDING * (largest(jnp.diagonal(s)) * len(s) + reach)
    matrix = (s + s.T) / 2 + jnp.diag(apart + room)
    return _known(matrix, times(before.unit, steepest), before.terms)
