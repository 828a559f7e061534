"""What a step costs, read from the compiled program: operations, memory, collectives."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg import models, objectives, optimizers, parallel, training
from lipreg.training import cost

BATCH = 32
X = np.zeros((BATCH, 8, 8, 3), np.uint8)
Y = np.zeros(BATCH, np.int32)


def compiled(objective=objectives.j0, strengths=None, name="CNN", **settings):
    """A training step of a small network."""
    settings = {"channels": (8, 64, 128), "hidden": 8} | settings if name == "CNN" else settings
    model = models.build(name, classes=3, **settings)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    model_state = {k: v for k, v in variables.items() if k != "params"}
    tx = optimizers.sgd(0.1)
    step = training.make_step(models.functional(model), objective, tx)
    state = parallel.replicate(
        training.init(jax.random.key(0), variables["params"], model_state, tx)
    )

    def one(state, strengths, batch):
        state, parts = step(state, strengths, batch)
        return parallel.keep_replicated(state), parts

    strengths = {k: jnp.float32(v) for k, v in (strengths or {}).items()}
    return jax.jit(one).lower(state, strengths, parallel.shard((X, Y))).compile(), state


def test_a_convolution_counts_two_operations_a_product():
    x, w = jnp.ones((2, 8, 8, 4)), jnp.ones((1, 1, 4, 16))
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=numbers,
    )
    assert cost.analyse(jax.jit(conv).lower(x, w).compile()).flops == 2 * 2 * 64 * 4 * 16


@pytest.mark.parametrize(
    ("objective", "method", "strengths"),
    [
        (objectives.j1, "attack", {"eps": 0.1}),
        (objectives.j2, "attack", {"eps": 0.1}),
        (objectives.j2, "penalty", {"eps": 0.1}),
        (objectives.tikhonov, objectives.difference(), {"lam": 0.1}),
        (objectives.j2_lip, "attack", {"eps": 0.1, "lam": 0.1}),
    ],
)
def test_an_objective_does_no_more_than_its_price(objective, method, strengths):
    """In forward units, plain training being 3; five per cent for what is no convolution."""
    plain = cost.analyse(compiled()[0]).flops
    found = cost.analyse(compiled(partial(objective, method=method), strengths)[0]).flops
    price = cost.price(objective.__name__, method, BATCH)
    assert found / plain <= 1.05 * price / 3
    assert found / plain > 0.8 * price / 3  # a count that misses the work would pass, too


def test_blocks_computed_again_keep_less_for_the_way_back_and_do_more_operations():
    """Read from what vjp keeps: XLA:CPU itself does not use the memory that this would save."""
    kept, x = {}, np.float32(X)
    for remat in (False, True):
        model = models.build("ResNeXt34_2x32", classes=3, channels=(8,), stages=(3,), remat=remat)
        variables = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), x, train=False))

        def backward(variables, model=model):
            out = lambda v: model.apply(v, x, train=True, mutable=["batch_stats"])[0]
            return jax.vjp(out, variables)[1]

        residuals = jax.tree.leaves(jax.eval_shape(backward, variables))
        few = {"name": "ResNeXt34_2x32", "channels": (8,), "stages": (3,)}
        flops = cost.analyse(compiled(**few, remat=remat)[0]).flops
        kept[remat] = sum(leaf.size for leaf in residuals), flops
    assert kept[True][0] < 0.6 * kept[False][0]
    assert kept[True][1] > 1.1 * kept[False][1]


@pytest.mark.parametrize(
    ("name", "method"),
    [("j2_lip", "attack"), ("j2", "penalty"), ("cure", "")],
)
def test_blocks_computed_again_change_no_loss_and_no_gradient(name, method):
    """Of the first and of the second order; to float32's rounding."""
    objective = getattr(objectives, name)
    given = dict.fromkeys(objectives.strengths(objective), 0.1)
    given |= {"method": objectives.method(method)} if method else {}
    x, y = jax.random.uniform(jax.random.key(0), (4, 4, 4, 3)), jnp.arange(4) % 3
    few = {"classes": 3, "channels": (4,), "stages": (1,)}
    plain, again = (models.build("ResNeXt34_2x32", **few, remat=r) for r in (False, True))
    variables = plain.init(jax.random.key(0), x, train=False)

    def run(model):
        logits_fn = lambda params: lambda x: model.apply(variables | {"params": params}, x, False)
        value = lambda params: objective(logits_fn(params), x, y, **given)[0]
        return jax.jit(jax.value_and_grad(value))(variables["params"])

    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(same, run(again), run(plain))


def test_one_step_on_many_devices_reduces_gradients_and_statistics_and_gathers_no_images():
    with parallel.over():
        program, state = compiled(objectives.j2, {"eps": 0.1})
        found = cost.analyse(program)
    weights = 4 * models.count_parameters(state.params)
    number, size = found.collectives["all-reduce"]
    assert weights <= size <= 1.2 * weights + 4096
    assert number <= 2 + len(jax.tree.leaves(state.params))
    gathered = sum(size for kind, (_, size) in found.collectives.items() if kind != "all-reduce")
    assert gathered < 4096
    assert found.flops < cost.analyse(compiled(objectives.j2, {"eps": 0.1})[0]).flops / 6


def test_the_step_asks_the_host_for_nothing():
    words = re.compile(r"infeed|outfeed|send\(|recv\(|callback")
    assert not words.search(compiled(objectives.j2_lip, {"eps": 0.1, "lam": 0.1})[0].as_text())
    asks = jax.jit(lambda x: jax.debug.callback(print, x))
    assert words.search(asks.lower(1.0).compile().as_text())


def test_the_bytes_of_collectives_are_those_of_their_shapes():
    text = """
      %a = (f32[8,2]{1,0}, bf16[3]{0}) all-reduce(%x, %y), replica_groups={}
      %b = f32[] all-reduce-start(%z)
      %c = s8[5]{0} all-gather(%w), dimensions={0}
    """

    class Program:
        as_text = staticmethod(lambda: text)
        cost_analysis = staticmethod(lambda: {"flops": 1.0})

        @staticmethod
        def memory_analysis():
            return type("M", (), {"argument_size_in_bytes": 1, "temp_size_in_bytes": 2})

    assert cost.analyse(Program()) == (1.0, 1, 2, {"all-gather": (1, 5), "all-reduce": (2, 74)})


def test_the_model_of_scaling_is_exact_for_what_it_says():
    one, eight = cost.scaling(
        1e9, 8e6, 3, flops_per_s=1e10, bytes_per_s=1e9, latency_s=1e-4, devices=(1, 8)
    )
    assert (one.communicate_s, one.efficiency) == (0.0, 1.0)
    assert eight.moved == 2 * 7 / 8 * 8e6
    np.testing.assert_allclose(eight.communicate_s, 0.014 + 2 * 3 * 3e-4)
    np.testing.assert_allclose(eight.efficiency, 0.1 / (0.1 + eight.communicate_s))
    with pytest.raises(ValueError, match="No price of 'j1' by 'magic'"):
        cost.price("j1", "magic", 8)
