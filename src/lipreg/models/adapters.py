"""A network of any make as two pure functions: flax nnx, flax linen, or a plain pair.

    network(Net)              an nnx class, `Net(..., rngs=...)`, or an nnx module with its weights
    network(Net())            a linen module
    network((init, apply))    `init(key, x) -> params`, `apply(params, x) -> logits`

A network is told in its own terms whether it trains: an nnx module by its `train()` and `eval()`,
and any network by those of the arguments `MODES` that its call has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.errors
import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array
from jax.core import Tracer
from jax.extend.random import define_prng_impl

__all__ = ["MODES", "Network", "functional", "is_pair", "name", "network", "parameters"]

# Arguments by which networks are told whether they train, and what they are in training.
MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}

Apply = Callable[..., tuple[Array, Any]]


class Network(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: `(key, x) -> (params, model_state)`, where x `[B, ...]` only has the inputs' shape.
      apply: `(params, model_state, x, train, key=None) -> (logits, model_state)`.

    `params` is what an optimiser moves and `model_state` all else that the network keeps, running
    statistics for instance; both are pytrees of arrays. In training dropout draws from `key`, and
    model_state changes; with `train=False` nothing is drawn, and it comes back as it was.
    """

    init: Callable[[Array, Any], tuple[Any, Any]]
    apply: Apply


def network(model: Any, *, precision: str = "default") -> Network:
    """The two functions of a linen module, of an nnx module or class, or of `(init, apply)`.

    The weights of an nnx class, or of any function with `rngs`, are drawn from the key of `init`;
    an nnx module keeps its own, whatever the key. The params of either are its `nnx.Param`. A
    plain `apply` that declares one of `MODES`, or `key`, is handed it by keyword.

    `precision` is that of products, in derivatives as well: "highest" for full float32 where an
    accelerator would use TF32 or bfloat16, "default" for jax_default_matmul_precision.

    Raises: ValueError for what is none of these, and for a call that needs further arguments.

    >>> net = network((lambda key, x: jnp.ones((x.shape[-1], 3)), lambda params, x: x @ params))
    >>> x = jnp.ones((5, 2))
    >>> net.apply(*net.init(jax.random.key(0), x), x, False)[0].shape
    (5, 3)
    """
    net = model if isinstance(model, Network) else _network(model)
    if precision == "default":
        return net

    def precise(params: Any, model_state: Any, x: Array, train: bool, key: Array | None = None):
        with jax.default_matmul_precision(precision):
            return net.apply(params, model_state, x, train, key)

    return net._replace(apply=precise)


def _network(model: Any) -> Network:
    draw, run = _functions(model)

    def init(key: Array, x: Any) -> tuple[Any, Any]:
        return draw(key, jnp.zeros((1, *x.shape[1:]), jnp.float32))

    def apply(params: Any, model_state: Any, x: Array, train: bool, key: Array | None = None):
        return run(params, model_state, x, train, key)

    return Network(init, apply)


def functional(model: Any, *, precision: str = "default") -> Apply:
    """`network(model).apply`, for weights that exist already.

    >>> net = linen.Dense(3)
    >>> params = net.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    >>> functional(net)(params, {}, jnp.ones((5, 2)), False)[0].shape
    (5, 3)
    """
    return network(model, precision=precision).apply


def _functions(model: Any) -> tuple[Callable, Callable]:
    if isinstance(model, linen.Module):
        return _linen(model)
    if isinstance(model, nnx.Module):
        return _nnx(model, lambda key: model)
    if is_pair(model):
        return _plain(*(model if isinstance(model, tuple) else (model.init, model.apply)))
    if callable(model) and "rngs" in parameters(model):
        made = lambda key: _with_data(model(rngs=nnx.Rngs(key)))
        return _nnx(nnx.eval_shape(made, jax.random.key(0)), made)
    raise ValueError(
        f"{name(model)} is no network: bring an nnx module or its class, a linen module, or a pair "
        "(init, apply)."
    )


def is_pair(model: Any) -> bool:
    """Whether it is `(init, apply)`, or an object with these two."""
    if isinstance(model, tuple):
        return len(model) == 2 and all(map(callable, model))
    pair = getattr(model, "init", None), getattr(model, "apply", None)
    return not isinstance(model, type) and all(map(callable, pair))


def _linen(module: linen.Module) -> tuple[Callable, Callable]:
    modes = _modes(module.__call__, name(module))

    def init(key: Array, x: Array) -> tuple[Any, Any]:
        variables = dict(module.init(key, x, **modes(False)))
        return variables.pop("params", {}), variables

    def apply(params: Any, model_state: Any, x: Array, train: bool, key: Array | None):
        variables = {"params": params, **model_state}
        mutable = [*model_state] if train else []
        streams = {}
        if train and key is not None:  # a stream of another name falls back on that of params
            streams = {"dropout": key, "params": jax.random.fold_in(key, 0)}
        try:
            logits, changed = module.apply(
                variables, x, **modes(train), mutable=mutable, rngs=streams
            )
        except flax.errors.InvalidRngError as error:
            raise ValueError(_NO_KEY) from error
        return logits, {**model_state, **changed}

    return init, apply


def _nnx(model: nnx.Module, made: Callable[[Array], Any]) -> tuple[Callable, Callable]:
    """`model` has the structure, with or without weights, and `made(key)` the weights."""
    graph, _, streams, _ = nnx.split(model, nnx.Param, nnx.RngState, ...)
    streams = nnx.to_pure_dict(streams)
    modes = _modes(model.__call__, name(model), "rngs")

    def parts(module: nnx.Module) -> tuple[Any, Any]:
        # Not the streams of random numbers, whose keys are the run's, and not what was sown.
        split: Any = nnx.split(module, nnx.Param, (nnx.RngState, nnx.Intermediate), ...)
        return nnx.to_pure_dict(split[1]), nnx.to_pure_dict(split[3])

    def init(key: Array, x: Array) -> tuple[Any, Any]:
        return parts(made(key))

    def apply(params: Any, model_state: Any, x: Array, train: bool, key: Array | None):
        key = key if train and key is not None else jax.random.key(0, impl=_SILENT)
        module: Any = nnx.merge(graph, params, model_state, _fresh(streams, key))
        _ = module.train() if train else module.eval()
        logits = module(x, **modes(train, lambda: nnx.Rngs(jax.random.fold_in(key, 0))))
        return logits, parts(module)[1] if train else model_state

    return init, apply


def _with_data(module: Any) -> Any:
    """Earlier versions of flax.nnx take an attribute that is a traced array for a static one."""
    for _, node in nnx.iter_graph(module):
        for attribute, value in [*vars(node).items()] if isinstance(node, nnx.Pytree) else ():
            if isinstance(value, Tracer):
                setattr(node, attribute, nnx.data(value))
    return module


def _fresh(streams: Any, key: Array) -> Any:
    """The keys and counts of an nnx module's streams as if they had just been made from `key`."""
    leaves, tree = jax.tree.flatten(streams)

    def fresh(i: int, leaf: Any) -> Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.zeros(leaf.shape, leaf.dtype)
        own = jax.random.fold_in(key, i + 1)
        return jax.random.split(own, leaf.shape) if leaf.shape else own

    return jax.tree.unflatten(tree, [fresh(*pair) for pair in enumerate(leaves)])


def _refuse(*_: Any) -> Any:
    raise ValueError(_NO_KEY)


_NO_KEY = (
    "The network draws random numbers without a key: in evaluation it must draw none, and to train "
    "it needs apply(..., key)."
)
# Keys that can be passed on and split, as a network may do in any mode, but not drawn from.
_SILENT = define_prng_impl(
    key_shape=(1,),
    seed=lambda seed: jnp.zeros(1, jnp.uint32),
    split=lambda key, shape: jnp.broadcast_to(key, (*shape, 1)),
    fold_in=lambda key, data: key,
    random_bits=_refuse,
    name="silent",
)


def _plain(init: Callable, apply: Callable) -> tuple[Callable, Callable]:
    modes = _modes(partial(apply, None), name(apply), "key")

    def stateless(key: Array, x: Array) -> tuple[Any, Any]:
        return init(key, x), {}

    def moded(params: Any, model_state: Any, x: Array, train: bool, key: Array | None):
        return apply(params, x, **modes(train, lambda: key if train else None)), model_state

    return stateless, moded


def _modes(call: Callable, network: str, random: str = "") -> Callable[..., dict[str, Any]]:
    """`(train, draw) -> keywords`: how `call(x, ...)` is told its mode.

    `random` is the argument for random numbers, if there may be one: `draw()`.

    Raises: ValueError for an argument that nobody could give.
    """
    asked = [*parameters(call).values()][1:]
    for argument in asked:
        if argument.default is argument.empty and argument.name not in (*MODES, random):
            raise ValueError(
                f"The network {network} asks for {argument.name!r}: it is called with x and, by "
                f"keyword, with those of {', '.join((*MODES, random)).rstrip(', ')} that it takes."
            )
    words = {argument.name for argument in asked}

    def keywords(train: bool, draw: Callable[[], Any] | None = None) -> dict[str, Any]:
        given = {word: value == train for word, value in MODES.items() if word in words}
        return given | ({random: draw()} if draw and random in words else {})

    return keywords


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """The arguments that can be given by name; of a class, those that make an instance."""
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    if isinstance(function, partial):
        function, args, keywords = function.func, function.args, function.keywords
    if isinstance(function, type):  # nnx's metaclass hides the signature
        function, args = function.__init__, (None, *args)  # pyright: ignore
    accepted = inspect.signature(partial(function, *args, **keywords)).parameters
    hidden = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in accepted.items() if p.kind not in hidden}


def name(model: Any) -> str:
    """What to call it in an error."""
    model = model.func if isinstance(model, partial) else model
    return getattr(model, "__name__", type(model).__name__)
