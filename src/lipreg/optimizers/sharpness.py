"""Descent by the gradient at weights that are perturbed uphill: SAM and AWP.

Both need two gradients a move, and optax hands a transformation one a call. So calls alternate: one
goes from the weights w up to w + d, the next takes the gradient there and moves from w. Between the
two, params are w + d; `at_rest` has w. Each call sees the next batch, as with `optax.contrib.sam`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lipreg.contracts import positive

__all__ = ["Ascent", "awp", "sam"]


class Ascent(NamedTuple):
    """The state of `sam` and `awp`.

    Attributes:
      inner: that of the optimiser that moves the weights.
      weights: w, which `above` says to be below params.
      above: whether params are w + d.
      moves: of w so far, int32.
    """

    inner: Any
    weights: Any
    above: Array
    moves: Array

    def at_rest(self, params: Any) -> Any:
        return optax.tree.where(self.above, self.weights, params)


def sam(inner: optax.GradientTransformation, *, rho: float = 0.05) -> optax.GradientTransformation:
    """Step from w by the gradient at `w + rho g / ||g||_2` (Foret et al. 2010.01412, SAM).

    g is the gradient at w, over all weights together. The same as `optax.contrib.sam` around
    `chain(normalize(), sgd(rho))`, except that d = 0 where g = 0.

    >>> tx = sam(optax.sgd(0.1), rho=0.5)
    >>> tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.ones(2)), jnp.ones(2))[0]
    Array([0.3, 0.4], dtype=float32)
    """
    positive("sam", rho=rho)

    def ascent(grads: Any, _: Any) -> Any:
        return optax.tree.scale(rho / _or_one(optax.tree.norm(grads)), grads)

    return _alternating(inner, ascent, 0)


def awp(
    inner: optax.GradientTransformation, *, gamma: float = 0.005, warmup: int = 0
) -> optax.GradientTransformation:
    """Step from w by the gradient at `w_l + gamma ||w_l|| g_l / ||g_l||` (Wu et al. 2004.05884).

    Adversarial weight perturbation: g is the gradient at w of the objective that is trained, at its
    own attacked images, and l a layer's kernel. Vectors, biases and scales among them, are left
    alone. The first `warmup` moves are those of `inner`, a gradient each. The authors' gamma is
    0.01 for adversarial training and 0.005 for TRADES; they warm up for up to 10 epochs.

    >>> tx = awp(optax.sgd(0.1), gamma=0.5)
    >>> tx.update(jnp.array([[0.3, 0.4]]), tx.init(jnp.ones((1, 2))), jnp.ones((1, 2)))[0]
    Array([[0.42426407, 0.56568545]], dtype=float32)
    """
    positive("awp", gamma=gamma)
    if not (isinstance(warmup, Array) or (isinstance(warmup, int) and warmup >= 0)):
        raise ValueError(f"awp: warmup = {warmup}; it must be a whole number of moves.")

    def layer(g: Array, w: Array) -> Array:
        if w.ndim < 2:
            return jnp.zeros_like(w)
        size = lambda v: jnp.linalg.norm(v.ravel())
        return g * (gamma * size(w) / _or_one(size(g)))

    return _alternating(inner, lambda grads, params: jax.tree.map(layer, grads, params), warmup)


def _or_one(norm: Array) -> Array:
    return jnp.where(norm == 0, jnp.ones_like(norm), norm)


def _alternating(
    inner: optax.GradientTransformation, ascent: Callable[[Any, Any], Any], warmup: int
) -> optax.GradientTransformation:
    """`inner`, with each of its gradients after the first `warmup` taken at w + ascent(g, w)."""

    def init(params: Any) -> Ascent:
        below, none = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        return Ascent(inner.init(params), params, below, none)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Ascent]:
        weights = state.at_rest(params)
        climbs = ~state.above & (state.moves >= warmup)
        up = ascent(updates, params)
        updates, moved = inner.update(updates, state.inner, weights)
        down = jax.tree.map(lambda w, p, u: w - p + u, weights, params, updates)
        moves = state.moves + (~climbs).astype(jnp.int32)
        state = Ascent(optax.tree.where(climbs, state.inner, moved), weights, climbs, moves)
        return optax.tree.where(climbs, up, down), state

    return optax.GradientTransformation(init, update)
