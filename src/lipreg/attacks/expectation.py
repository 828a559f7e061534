"""Random models as pure functions, so that every attack works on their expectation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from lipreg.contracts import LogitsFn, at_least_one


def expectation(
    random_logits_fn: Callable[[Array, Array], Array], key: Array, *, samples: int = 20
) -> LogitsFn:
    """`x -> log mean_s softmax(f(key_s, x))`, the model of a random f (EOT, 1707.07397).

    `random_logits_fn(key, x [B, ...]) -> logits [B, K]` is called on one image at a time, under
    `vmap`, with keys derived from `key` and the bits of the image: each step of an attack sees new
    draws, yet the function is pure and an image's result does not depend on its batch. Its
    gradient is that of the averaged prediction, which is what a random model is judged by; with
    `samples=1` it is the random model itself.

    An attack keeps the points whose own draws are the worst, so an error that is judged by the same
    draws is too large, and distances too small, the more so the fewer the samples. Judge the points
    again with another key: `misclassified(expectation(f, other), outcome.x_adv, y).mean()`.

    >>> noisy = lambda key, x: x + 0.1 * jax.random.normal(key, x.shape)
    >>> expectation(noisy, jax.random.key(0))(jnp.array([[1.0, 0.0]])).argmax(-1)
    Array([0], dtype=int32)
    """
    at_least_one("expectation", samples=samples)

    def log_mean(x: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(
            jax.lax.stop_gradient(x.astype(jnp.float32)), jnp.uint32
        )
        own = jax.random.fold_in(key, bits.sum())
        draws = jax.vmap(lambda s: random_logits_fn(jax.random.fold_in(own, s), x[None])[0])
        likely = jax.nn.log_softmax(draws(jnp.arange(samples)))
        return jax.nn.logsumexp(likely, 0) - jnp.log(float(samples))

    return jax.vmap(log_mean)
