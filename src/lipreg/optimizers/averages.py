"""The weights that are evaluated: an average of those seen, or those below a perturbation."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lipreg.optimizers.relaxation import Relaxation
from lipreg.optimizers.sharpness import Ascent

__all__ = ["at_rest", "ema", "perturbs"]


def ema(average: Any, new: Any, decay: float) -> Any:
    """`decay average + (1 - decay) new`, of weights or statistics (Polyak & Juditsky 1992).

    Leaves that are no real numbers, counters or random keys, are those of `new`.

    Raises: ValueError for leaves in half precision, which would be rounded back to what they were.

    >>> ema((jnp.ones(1), 3), (jnp.zeros(1), 4), 0.75)  # a weight, and a count of steps
    (Array([0.75], dtype=float32), 4)
    """

    def leaf(a: Any, b: Any) -> Any:
        dtype = jnp.result_type(b)
        real = jnp.issubdtype(dtype, jnp.floating)
        if real and jnp.finfo(dtype).bits < 32:
            raise ValueError(
                f"ema: weights are {dtype}; their average would stand still: keep them in float32."
            )
        return optax.incremental_update(b, a, 1 - decay) if real else b

    return jax.tree.map(leaf, average, new)


def at_rest(opt_state: Any, params: Any) -> Any:
    """The weights that an optimiser moves, where params are those that it takes gradients at.

    `sam` and `awp` perturb every second time, `local_entropy` always; for others they are params.

    >>> from lipreg.optimizers import sam
    >>> tx, w = sam(optax.sgd(0.1), rho=0.5), jnp.ones(1)
    >>> updates, state = tx.update(w, tx.init(w), w)
    >>> w + updates, at_rest(state, w + updates)
    (Array([1.5], dtype=float32), Array([1.], dtype=float32))
    """
    found = _perturbing(opt_state)
    return found[0].at_rest(params) if found else params


def perturbs(opt_state: Any) -> bool:
    """Whether params may differ from the weights `at_rest`."""
    return bool(_perturbing(opt_state))


def _perturbing(opt_state: Any) -> list[Ascent | Relaxation]:
    kinds = Ascent | Relaxation
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    return [node for node in nodes if isinstance(node, kinds)]
