"""Networks that an outsider brings: made with their options, and checked before they are used."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from lipreg.models.adapters import Network, is_pair, name, network, parameters

__all__ = ["outsider"]


def outsider(
    brought: Any,
    x: Any,
    *,
    classes: int,
    head: str = "linear",
    activation: str = "relu",
    precision: str = "default",
    **options: Any,
) -> Network:
    """The network that an outsider brings: what `network` takes, or a function that makes it.

    A class or function is called with `options`, and with `classes`, `head` and `activation` where
    it takes them; `rngs` is left to `network`, so that the weights come from the key of `init`. x
    has the inputs' shape, `[B, ...]` with any B. The network is traced in both modes.

    Raises: ValueError, in one line, for options that are not taken or missing, logits that are not
    floating `[B, classes]`, a model_state that changes its form, and random numbers in evaluation.

    >>> x = jnp.ones((1, 2))
    >>> net = outsider(linen.Dense, x, classes=3, features=3)
    >>> net.init(jax.random.key(0), x)[0]["kernel"].shape
    (2, 3)
    """
    made = isinstance(brought, linen.Module | nnx.Module) or is_pair(brought)
    if not made and not callable(brought):
        raise ValueError(
            f"{name(brought)} is no network: bring an nnx or a linen class, a module, a pair "
            "(init, apply), or a function that makes one of them."
        )
    takes = {} if made else parameters(brought)
    if head != "linear" and "head" not in takes:
        raise ValueError(f"head = {head!r}, and {name(brought)} takes no head: it has its own.")
    if activation != "relu" and "activation" not in takes:
        raise ValueError(
            f"activation = {activation!r}, and {name(brought)} takes no activation: it has its own."
        )
    if made and options:
        raise ValueError(f"{name(brought)} is made already; it takes no {', '.join(options)}.")
    offered = {"classes": classes, "head": head, "activation": activation}
    given = {word: value for word, value in offered.items() if word in takes} | options
    net = network(brought if made else _called(brought, takes, given), precision=precision)
    _check(net, name(brought), jax.ShapeDtypeStruct((2, *x.shape[1:]), jnp.float32), classes)
    return net


def _called(make: Callable, takes: dict[str, inspect.Parameter], given: dict[str, Any]) -> Any:
    """What `make` makes, or what is still to be called with `rngs`."""
    known = [word for word in takes if word not in ("rngs", "parent", "name")]  # flax's own
    listed = f"{name(make)} takes {', '.join(known) or 'none'}."
    for word in given:
        if word not in known:
            raise ValueError(f"No option {word!r}; {listed}")
    for word in known:
        if word not in given and takes[word].default is inspect.Parameter.empty:
            raise ValueError(f"The option {word!r} is missing; {listed}")
    return partial(make, **given) if "rngs" in takes else make(**given)


def _check(net: Network, called: str, x: Any, classes: int) -> None:
    """Logits of the right form in both modes, and a state that keeps its own."""
    key = jax.random.key(0)
    params, state = jax.eval_shape(net.init, key, x)
    # Lowered, not only traced: then a draw without a key is refused.
    frozen = jax.jit(lambda *a: net.apply(*a, False)[0]).lower(params, state, x).out_info
    trained, after = jax.eval_shape(lambda k, *a: net.apply(*a, True, k), key, params, state, x)
    for logits in (frozen, trained):
        made = _typed(logits) if hasattr(logits, "dtype") else type(logits).__name__
        if not made.startswith(("float", "bfloat")) or logits.shape != (2, classes):
            raise ValueError(
                f"{called} makes {made} of 2 examples; it must make logits, float32[2, {classes}]."
            )
    before, after = (_form(tree) for tree in (state, after))
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            raise ValueError(
                f"{called} changes the form of its state in training: {path} is "
                f"{before.get(path, 'absent')} before and {after.get(path, 'absent')} after."
            )


def _form(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _typed(leaf) for path, leaf in leaves}


def _typed(a: Any) -> str:
    return f"{a.dtype}{list(a.shape)}"
