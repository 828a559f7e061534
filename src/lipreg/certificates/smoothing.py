"""Randomised smoothing (Cohen, Rosenfeld & Kolter, 1902.02918): the likeliest class under noise.

The smoothed classifier is `g(x) = argmax_c P(f(x + sigma n) = c)`, n normal, f the class with the
largest logit. What is certified is g, not f: in l2 and at the stated confidence, for each image by
itself. Noisy images leave [0, 1]; train with the same noise. All functions may be jitted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from scipy.special import bdtrc, bdtrik, betaincinv, ndtri

from lipreg.certificates.constants import ANYWHERE
from lipreg.contracts import LogitsFn, at_least_one, check_inputs
from lipreg.folding import folded
from lipreg.keys import example_keys, fold_in
from lipreg.norms import wide
from lipreg.tracing import compiled, output, snapshot

__all__ = ["Smoothed", "certify", "predict"]


class Smoothed(NamedTuple):
    """Classes of a smoothed classifier, and their radii in l2.

    Attributes:
      classes: `[B]`, -1 where it abstains.
      radius: `[B]`, 0 where it abstains.
      kind: "probabilistic".
    """

    classes: Array
    radius: Array
    kind: str = "probabilistic"


def certify(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    *,
    sigma: ArrayLike,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 1e-3,
    batch: int = 100,
) -> Smoothed:
    """`r = sigma Phi^-1(p)`, p <= P(f(x + sigma n) = c) at confidence 1 - alpha (1902.02918).

    `n0` draws choose the class c, in `n` others it is counted, and p is the lower bound of Clopper
    & Pearson (1934). It abstains where `p <= 1/2`. With all n draws of class c the radius is `sigma
    Phi^-1(alpha^(1/n))`, 3.2 sigma by default, and never more. The radius of correct predictions:
    `jnp.where(smoothed.classes == y, smoothed.radius, 0)`. `batch` draws of every image are
    classified at a time, which changes memory and not the result; each draw has a key of its own.

    Raises: ValueError for sigma <= 0, alpha outside of (0, 1), an old-style key.

    >>> smoothed = certify(jax.random.key(0), lambda x: x, jnp.array([[0.9, 0.1]]), sigma=0.5)
    >>> smoothed.classes, smoothed.radius.round(1)  # the exact one is 0.8 / sqrt(2)
    (Array([0], dtype=int32), Array([0.5], dtype=float32))
    """
    logits_fn = snapshot(logits_fn)
    _check("certify", logits_fn, x, sigma, alpha)
    logits_fn = folded(logits_fn, x)
    at_least_one("certify", n0=n0, n=n, batch=batch)
    keys = example_keys(key, x.shape[0])
    first, others = compiled(logits_fn, _count, n0, n, batch)(keys, logits_fn, x, sigma)
    guess = first.argmax(1)
    hits = jnp.take_along_axis(others, guess[:, None], 1)[:, 0]
    # The bound is a function of the hits: a table of it needs no inverse inside the program.
    k = np.arange(1, n + 1)
    table = np.maximum(ndtri(betaincinv(k, n - k + 1, alpha)), 0)
    dtype = wide(x).dtype
    radius = jnp.asarray(sigma, dtype) * jnp.asarray(np.append(0, table), dtype)[hits]
    return Smoothed(jnp.where(radius > 0, guess.astype(jnp.int32), -1), radius)


def predict(
    key: Array,
    logits_fn: LogitsFn,
    x: Array,
    *,
    sigma: ArrayLike,
    n: int = 1000,
    alpha: float = 1e-3,
    batch: int = 100,
) -> Array:
    """`g(x)`, `[B]`, wrong with probability at most alpha, -1 where it abstains (1902.02918).

    Of `n` draws the two most frequent classes are compared by the two-sided test of an even coin.

    Raises: ValueError as `certify` does.

    >>> x = jnp.array([[0.9, 0.1], [0.5, 0.5]])
    >>> predict(jax.random.key(0), lambda x: x, x, sigma=0.5)
    Array([ 0, -1], dtype=int32)
    """
    logits_fn = snapshot(logits_fn)
    _check("predict", logits_fn, x, sigma, alpha)
    logits_fn = folded(logits_fn, x)
    at_least_one("predict", n=n, batch=batch)
    keys = example_keys(key, x.shape[0])
    _, counts = compiled(logits_fn, _count, 0, n, batch)(keys, logits_fn, x, sigma)
    (most, second), (winner, _) = (a.T for a in jax.lax.top_k(counts, 2))
    # The least a with 2 P(more than a - 1 heads of t throws) <= alpha, for every t.
    throws = np.arange(1, n + 1)
    a = np.ceil(bdtrik(1 - alpha / 2, throws, 0.5)) + 1
    a -= (a > 1) & (bdtrc(np.maximum(a - 2, 0), throws, 0.5) <= alpha / 2)
    enough = jnp.asarray(np.append(1, a), jnp.int32)
    return jnp.where(most >= enough[most + second], winner.astype(jnp.int32), -1)


def _check(what: str, logits_fn: LogitsFn, x: Array, sigma: ArrayLike, alpha: float) -> None:
    check_inputs(logits_fn, x, jnp.zeros(x.shape[0], jnp.int32), ANYWHERE)
    if not isinstance(sigma, Tracer) and not (np.ndim(sigma) == 0 and np.asarray(sigma) > 0):
        raise ValueError(f"{what}: sigma = {sigma}; want a number above 0.")
    if not 0 < alpha < 1:
        raise ValueError(f"{what}: alpha = {alpha}; want a number between 0 and 1.")


def _count(
    n0: int, n: int, batch: int, keys: Array, logits_fn: LogitsFn, x: Array, sigma: ArrayLike
) -> Array:
    """How often each class is drawn, of n0 draws and of n others, `[2, B, K]`.

    Logits that are nan or inf count for no class.
    """
    batch = min(batch, n0 + n)
    single = wide(x)  # in half precision the noise would have few values
    normal = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], single.dtype))

    def body(round_: Array, counts: Array) -> Array:
        draws = round_ * batch + jnp.arange(batch)
        noise = jax.vmap(lambda draw: normal(fold_in(keys, draw)))(draws)  # [batch, B, ...]
        noisy = single[None] + jnp.asarray(sigma, single.dtype) * noise
        logits = logits_fn(noisy.reshape(-1, *x.shape[1:]).astype(x.dtype))
        chosen = jnp.where(jnp.isfinite(logits.max(1)), logits.argmax(1), -1)
        hits = jax.nn.one_hot(chosen.reshape(batch, -1), counts.shape[2], dtype=counts.dtype)
        part = jnp.stack([draws < n0, (draws >= n0) & (draws < n0 + n)]).astype(counts.dtype)
        return counts + jnp.einsum("pd,dbk->pbk", part, hits)

    counts = jnp.zeros((2, *output(logits_fn, x).shape), jnp.int32)
    return jax.lax.fori_loop(0, -(-(n0 + n) // batch), body, counts)
