"""lipreg.models.network: a network is the same function whatever it is written in."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from lipreg import models, objectives, training
from lipreg.runs import storage

KEY, CLASSES = jax.random.key(0), 3
X = jax.random.uniform(jax.random.key(1), (6, 4, 4, 1))
Y = jnp.arange(6) % CLASSES


# One architecture three times: dense, batch norm, relu, dropout, dense.


class Nnx(nnx.Module):
    def __init__(self, classes=CLASSES, *, rate=0.5, rngs):
        self.hidden = nnx.Linear(16, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.last = nnx.List([nnx.Linear(8, classes, rngs=rngs)])

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.hidden(x.reshape(len(x), -1))))
        return self.last[0](self.dropout(x))


class Linen(linen.Module):
    classes: int = CLASSES
    rate: float = 0.5

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(8, name="hidden")(x.reshape(len(x), -1))
        x = linen.relu(linen.BatchNorm(not train, momentum=0.9, name="norm")(x))
        x = linen.Dropout(self.rate, deterministic=not train)(x)
        return linen.Dense(self.classes, name="last")(x)


def plain(rate=0.5, classes=CLASSES):
    """Its batch norm is that of evaluation, with statistics that are parameters."""

    def init(key, x):
        first, second = jax.random.split(key)
        hidden = jax.random.normal(first, (x[0].size, 8)) / 4
        last = jax.random.normal(second, (8, classes)) / 3
        norm = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
        return {
            "hidden": {"kernel": hidden, "bias": jnp.zeros(8)},
            "norm": norm,
            "last": {"kernel": last, "bias": jnp.zeros(classes)},
        }

    def apply(params, x, *, key=None):
        x = x.reshape(len(x), -1) @ params["hidden"]["kernel"] + params["hidden"]["bias"][None]
        scale = params["norm"]["scale"] / jnp.sqrt(1 + 1e-5)
        x = jax.nn.relu(x * scale[None] + params["norm"]["bias"][None])
        if key is not None:
            x = jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)
        return x @ params["last"]["kernel"] + params["last"]["bias"][None]

    return init, apply


MAKES = {"nnx": Nnx, "linen": Linen(), "plain": plain()}


@pytest.fixture(params=MAKES)
def net(request):
    return models.network(MAKES[request.param])


def as_nnx(params):
    return {**params, "last": {0: params["last"]}}


def same(a, b, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **(tolerance or {"atol": 1e-6})), a, b)


def test_linen_nnx_and_plain_have_the_same_logits_and_gradients_on_the_same_weights():
    params, _ = models.network(MAKES["plain"]).init(KEY, X)
    logits, grads = {}, {}
    for name, model in MAKES.items():
        net = models.network(model)
        own, state = net.init(KEY, X)
        carried = as_nnx(params) if name == "nnx" else params
        assert jax.tree.structure(own) == jax.tree.structure(carried)

        def loss(params, x, net=net, state=state):
            return (net.apply(params, state, x, False)[0] ** 2).sum()

        logits[name] = net.apply(carried, state, X, False)[0]
        own, grads[name] = jax.jit(jax.grad(loss, (0, 1)))(carried, X)
        grads[name] = grads[name], own | {"last": own["last"].get(0, own["last"])}
    same(logits["nnx"], logits["plain"])
    same(logits["linen"], logits["plain"])
    same(grads["nnx"], grads["plain"], rtol=1e-5, atol=1e-6)
    same(grads["linen"], grads["plain"], rtol=1e-5, atol=1e-6)


def test_batch_statistics_of_linen_and_nnx_are_the_same_and_move_in_training_alone():
    first, second = models.network(Linen(rate=0.0)), models.network(partial(Nnx, rate=0.0))
    params, state = first.init(KEY, X)
    _, start = second.init(KEY, X)
    same(start, {"norm": state["batch_stats"]["norm"]})
    logits, moved = jax.jit(first.apply, static_argnums=3)(params, state, X, True)
    others, after = jax.jit(second.apply, static_argnums=3)(as_nnx(params), start, X, True)
    same(others, logits)
    same(after, {"norm": moved["batch_stats"]["norm"]})
    assert abs(after["norm"]["mean"]).max() > 0.001
    for net, p, s in ((first, params, moved), (second, as_nnx(params), after)):
        _, kept = net.apply(p, s, X, False)
        jax.tree.map(np.testing.assert_array_equal, kept, s)


def test_the_precision_is_that_of_every_network_however_it_was_made():
    seen = []

    def apply(params, x):
        seen.append(jax.config.jax_default_matmul_precision)
        return x @ params

    pair = lambda key, x: jnp.ones((x.shape[-1], 3)), apply
    for model in (pair, models.network(pair)):
        net = models.network(model, precision="highest")
        net.apply(*net.init(KEY, jnp.ones((1, 2))), jnp.ones((1, 2)), False)
    assert seen == ["highest"] * 2


def test_a_key_is_a_dropout_mask_in_training_and_nothing_in_evaluation(net):
    params, state = net.init(KEY, X)
    trained = jax.jit(lambda key: net.apply(params, state, X, True, key)[0])
    keys = jax.random.split(KEY, 3)
    rows = np.stack([trained(key) for key in keys])
    assert (rows[0] != rows[1]).any()
    np.testing.assert_array_equal(rows[0], trained(keys[0]))
    same(jax.vmap(trained)(keys), rows)
    frozen = [net.apply(params, state, X, False, key)[0] for key in (None, *keys[:2])]
    for other in frozen[1:]:
        np.testing.assert_array_equal(other, frozen[0])


def test_weights_come_from_the_key_of_init(net):
    first, again = net.init(KEY, X), jax.jit(net.init)(KEY, X)
    same(again, first)
    many, _ = jax.vmap(net.init, (0, None))(jax.random.split(KEY, 2), X)
    kernel = many["hidden"]["kernel"]
    assert (kernel[0] != kernel[1]).any()
    same(jax.tree.map(lambda a: a[1], many), net.init(jax.random.split(KEY, 2)[1], X)[0])


def test_a_model_of_the_library_starts_from_the_same_weights_as_its_module():
    module = models.build("CNN", classes=3, head="tanh", channels=(4,), hidden=4)
    params, state = models.network(module).init(KEY, X)
    expected = dict(module.init(KEY, jnp.zeros((1, *X.shape[1:])), train=False))
    jax.tree.map(np.testing.assert_array_equal, {"params": params, **state}, expected)


def test_an_nnx_module_keeps_its_weights_and_is_left_as_it_is():
    module = Nnx(rngs=nnx.Rngs(5))
    module.eval()
    net = models.network(module)
    params, state = net.init(KEY, X)
    np.testing.assert_array_equal(params["hidden"]["kernel"], module.hidden.kernel[...])
    same(net.apply(params, state, X, False)[0], module(X))
    net.apply(params, state, X, True, KEY)
    assert module.dropout.deterministic
    assert not module.norm.mean[...].any()
    assert module.dropout.rngs.count[...] == 0


class Odd(nnx.Module):
    """Plain arrays as attributes, a counter, values that are sown, random keys of many shapes."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.mean = jnp.full(16, 0.5)
        self.scale = rngs.params.uniform((16,))
        self.last = nnx.Linear(16, CLASSES, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.rngs, self.streams = rngs, rngs.dropout.split((2, 3))

    def __call__(self, x, *, deterministic):
        x = (x.reshape(len(x), -1) - self.mean[None]) * self.scale[None]
        if not deterministic:
            keys = jax.vmap(jax.vmap(lambda stream: stream()))(self.streams)
            x = x + jax.random.normal(keys[1, 2], x.shape) + self.rngs.noise.normal(x.shape)
        self.calls[...] += 1
        return self.last(x)


def test_the_state_of_an_nnx_module_is_its_arrays_without_its_random_streams():
    net = models.outsider(Odd, X, classes=CLASSES)
    params, state = jax.jit(net.init)(KEY, X)
    assert set(params) == {"last"}
    assert set(state) == {"calls", "mean", "scale"}
    same(state, net.init(KEY, X)[1])
    apply = jax.jit(net.apply, static_argnums=3)
    assert apply(params, state, X, True, KEY)[1]["calls"] == 1
    assert apply(params, state, X, False)[1]["calls"] == 0


def test_the_state_of_an_nnx_run_comes_back_from_a_checkpoint(tmp_path):
    net, tx = models.network(Nnx), optax.sgd(0.1, momentum=0.9)
    start = lambda seed: training.init(KEY, *net.init(jax.random.key(seed), X), tx, ema=True)
    step = training.make_step(net.apply, objectives.j0, tx)
    state, _ = jax.jit(step)(start(0), {}, (X, Y))
    with storage.checkpoints(tmp_path) as manager:
        storage.save(manager, 1, state)
    with storage.checkpoints(tmp_path) as manager:
        back = storage.restore(manager, start(1))
    plain = lambda state: dataclasses.replace(state, key=jax.random.key_data(state.key))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, plain(back), plain(state))


def test_two_runs_of_an_nnx_network_in_one_program_are_those_of_two():
    net, tx = models.network(Nnx), optax.sgd(0.1)
    step = training.make_step(net.apply, partial(objectives.j2, method="penalty"), tx)
    keys, strengths = jax.random.split(KEY, 2), {"eps": jnp.array([0.1, 0.2])}
    start = lambda key: training.init(key, *net.init(key, X), tx)
    batch = X[None].repeat(2, 0), Y[None].repeat(2, 0)
    together, parts = jax.jit(jax.vmap(step))(jax.vmap(start)(keys), strengths, batch)
    of = lambda tree, i: jax.tree.map(lambda a: a[i], tree)
    for i in range(2):
        alone = jax.jit(step)(start(keys[i]), of(strengths, i), of(batch, i))
        same((of(together.params, i), of(parts, i)), (alone[0].params, alone[1]), atol=1e-5)


# How a network is told its mode, and what it is told in training

TRAINS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def moded(word):
    """A linen module whose call has an argument of this name."""

    def call(self, x, **words):
        train = words[word] == TRAINS[word]
        x = linen.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not train)
        return linen.Dense(CLASSES)(x)

    text = f"lambda self, x, {word}: call(self, x, {word}={word})"
    return type("Moded", (linen.Module,), {"__call__": linen.compact(eval(text, {"call": call}))})()


@pytest.mark.parametrize("word", TRAINS)
def test_the_mode_is_told_in_the_networks_own_word(word):
    net = models.network(moded(word))
    params, state = net.init(KEY, X)
    run = lambda train, key: net.apply(params, state, X, train, key)[0]
    other = jax.random.fold_in(KEY, 1)
    np.testing.assert_array_equal(run(False, KEY), run(False, other))
    assert (run(True, KEY) != run(True, other)).any()
    assert models.adapters.MODES == TRAINS


@pytest.mark.parametrize(
    "model",
    [
        linen.Sequential([lambda x: x.reshape(len(x), -1), linen.Dense(CLASSES)]),
        nnx.Sequential(lambda x: x.reshape(len(x), -1), nnx.Linear(16, CLASSES, rngs=nnx.Rngs(0))),
        lambda rngs: nnx.Sequential(
            lambda x: x.reshape(len(x), -1), nnx.Linear(16, CLASSES, rngs=rngs)
        ),
    ],
)
def test_a_network_without_modes_is_called_with_x_alone(model):
    net = models.outsider(model, X, classes=CLASSES)
    assert net.apply(*net.init(KEY, X), X, True, KEY)[0].shape == (6, CLASSES)


class Asking(nnx.Module):
    """Dropout whose random numbers come with the call."""

    def __init__(self, *, rngs):
        self.dropout, self.last = nnx.Dropout(0.5), nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x, *, rngs):
        return self.last(self.dropout(x.reshape(len(x), -1), rngs=rngs))


def test_an_nnx_call_that_asks_for_rngs_is_given_them():
    net = models.outsider(Asking, X, classes=CLASSES)
    params, state = net.init(KEY, X)
    frozen, *drawn = (
        net.apply(params, state, X, train, key)[0]
        for train, key in ((False, None), (True, KEY), (True, KEY), (True, jax.random.key(9)))
    )
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert all((a != b).any() for a, b in ((frozen, drawn[0]), (drawn[1], drawn[2])))


class Restless(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(CLASSES)(linen.Dropout(0.5, deterministic=False)(x.reshape(len(x), -1)))


class Noisy(nnx.Module):
    def __init__(self, *, rngs):
        self.noise, self.last = rngs.noise.fork(), nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(len(x), -1)
        return self.last(x + self.noise.normal(x.shape))


@pytest.mark.parametrize("model", [lambda: Restless(), Noisy])
def test_random_numbers_in_evaluation_are_refused(model):
    with pytest.raises(ValueError, match=r"draws random numbers without a key: in evaluation"):
        models.outsider(model, X, classes=CLASSES)


def test_dropout_without_a_key_is_refused():
    for model in (Nnx, Linen()):
        net = models.network(model)
        with pytest.raises(ValueError, match=r"to train it needs apply\(\.\.\., key\)"):
            net.apply(*net.init(KEY, X), X, True)


# What an outsider may bring


def factory(classes, width=4, activation="none"):
    assert activation in ("none", "relu")
    return linen.Sequential(
        [lambda x: x.reshape(len(x), -1), linen.Dense(width), linen.Dense(classes)]
    )


@pytest.mark.parametrize(
    ("found", "options"),
    [
        (Nnx, {"rate": 0.1}),
        (Linen, {"rate": 0.1}),
        (plain, {"rate": 0.1}),
        (factory, {"width": 2}),
        (Linen(), {}),
        (plain(), {}),
        (partial(Nnx, rate=0.2), {}),
    ],
)
def test_a_class_a_function_a_module_or_a_pair_is_a_network(found, options):
    net = models.outsider(found, X, classes=CLASSES, **options)
    assert net.apply(*net.init(KEY, X), X, False)[0].shape == (6, CLASSES)


class Growing(nnx.Module):
    def __init__(self, *, rngs):
        self.last, self.seen = nnx.Linear(16, CLASSES, rngs=rngs), nnx.Variable(jnp.zeros(1))

    def __call__(self, x):
        self.seen.set_value(jnp.zeros(2))
        return self.last(x.reshape(len(x), -1))


class Masked(linen.Module):
    @linen.compact
    def __call__(self, x, mask):
        return x


@pytest.mark.parametrize(
    ("found", "options", "message"),
    [
        (3, {}, "int is no network: bring an nnx or a linen class, a module, a pair"),
        (lambda: 3, {}, "int is no network: bring an nnx module or its class"),
        (Linen, {"head": "tanh"}, "head = 'tanh', and Linen takes no head: it has its own"),
        (Linen(), {"rate": 0.1}, "Linen is made already; it takes no rate"),
        (Linen, {"depth": 3}, "No option 'depth'; Linen takes classes, rate"),
        (Nnx, {"depth": 3}, "No option 'depth'; Nnx takes classes, rate"),
        (lambda width: factory(3, width), {}, "The option 'width' is missing; <lambda> takes"),
        (Masked, {}, "The network Masked asks for 'mask': it is called with x and, by keyword"),
        (Growing, {}, r"Growing .* \['seen'\] is float32\[1\] before and float32\[2\] after"),
        (factory(5), {}, r"makes float32\[2, 5\] .* it must make logits, float32\[2, 3\]"),
        (lambda: linen.Dense(3), {}, r"makes float32\[2, 4, 4, 3\] of 2 examples"),
        ((lambda key, x: (), lambda p, x: x[:, 0, :3, 0] > 0), {}, r"makes bool\[2, 3\]"),
    ],
)  # fmt: skip
def test_what_is_no_network_is_told_in_one_line(found, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        models.outsider(found, X, classes=CLASSES, **options)
    assert "\n" not in str(raised.value)
