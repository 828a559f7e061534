"""Steps and attacks lowered for accelerators, on a machine that has none."""

import inspect
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowered import products

from lipreg import attacks, models, objectives, optimizers, training
from lipreg.models import layers
from lipreg.training import cost

BATCH = 8
X, Y = np.zeros((BATCH, 8, 8, 3), np.uint8), np.zeros(BATCH, np.int32)
ACCELERATORS = ("cuda", "tpu")

# Every objective with every method, and how many of its weight-gradient passes are over the whole
# batch.
PENALISED = ("j1", "j2", "j2_lip", "tikhonov", "grad_lp")
FORMS = {
    ("j0", ""): 1,
    **{(name, "attack"): 1 for name in ("j1", "j2", "j2_lip")},
    **{(name, "penalty"): 1 for name in PENALISED},
    **{(name, "difference"): 2 for name in PENALISED},
    **{("lip_excess", method): 1 for method in ("gradient", "pairs")},
    **{(name, ""): 1 for name in ("jacobian", "fgsm_rs", "n_fgsm", "pgd_at", "free_at")},
    **{(name, ""): 2 for name in ("grad_align", "trades", "mart")},
    **{(name, ""): 3 for name in ("cure", "llr")},
    ("elle", ""): 4,
}
# Forward units that a program does not show, since a loop's body is there once: two for each other
# step. Less than none where a pass is there twice until XLA merges it.
HIDDEN = {
    **{(name, ""): 18 for name in ("pgd_at", "trades", "mart")},
    ("llr", ""): 2,
    ("free_at", ""): -1,
    ("j2_lip", "difference"): -2,
}
each_form = pytest.mark.parametrize(("name", "method"), FORMS)


@cache
def network():
    """Convolutions with few and with many channels, whose gradients differ in form on CPU."""
    model = models.build("CNN", classes=3, channels=(4, 8, 8), hidden=8)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"]
    return models.functional(model), params


def step(name, method):
    """A traced training step."""
    objective = partial(
        getattr(objectives, name), **{"method": objectives.method(method)} if method else {}
    )
    apply, params = network()
    tx = optimizers.sgd(0.1)
    state = training.init(jax.random.key(0), params, {}, tx)
    strengths = dict.fromkeys(objectives.strengths(objective), jnp.float32(0.1))
    return jax.jit(training.make_step(apply, objective, tx)).trace(state, strengths, (X, Y))


def attack(name):
    """A traced attack with few steps."""
    run, (apply, params) = getattr(attacks, name), network()
    eps = [0.1] if "eps" in inspect.signature(run).parameters else []
    return jax.jit(
        lambda key, params, x: run(key, lambda x: apply(params, {}, x, False)[0], x, Y, *eps)
    ).trace(jax.random.key(0), params, jnp.zeros(X.shape))


def lowered(traced, platform):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert not re.search("custom_call|callback|infeed|outfeed", text)  # neither host nor library
    return products(text)


def shapes(found):
    """The operands' shapes, unordered: either may be called the kernel."""
    return {(product.name, *sorted(product.shapes)) for product in found}


def flops(found):
    return sum(product.flops for product in found)


def compare(trace):
    """The operations of a program, and how many shapes of its products are special to the CPU.

    Those do not occur with lax's own convolution. Checks that accelerators have none of them, and
    as many products and operations as the CPU.
    """
    program = trace()
    on_cpu = lowered(program, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "conv", jax.lax.conv_general_dilated)
        for_its_sake = shapes(on_cpu) - shapes(lowered(trace(), "cuda"))
    for platform in ACCELERATORS:
        found = lowered(program, platform)
        assert not shapes(found) & for_its_sake
        assert (len(found), flops(found)) == (len(on_cpu), flops(on_cpu))
    return flops(on_cpu), len(for_its_sake)


def test_the_forms_are_all_that_there_are():
    assert {name for name, _ in FORMS} == set(objectives.__all__)
    logits_fn, x, y = (lambda x: x[:, 0, :, 0]), jnp.ones((2, 2, 2, 1)), jnp.zeros(2, jnp.int32)
    for name in objectives.__all__:
        objective = getattr(objectives, name)
        given = dict.fromkeys(objectives.strengths(objective), 0.1)
        for method in ("attack", "penalty", "difference", "gradient", "pairs"):
            if (name, method) not in FORMS:
                with pytest.raises((ValueError, TypeError), match="method"):
                    objective(logits_fn, x, y, method=objectives.method(method), **given)


@each_form
def test_a_step_on_an_accelerator_multiplies_what_it_should(name, method):
    """Its price in forward units, but for what no weights need: of each pass over their gradients
    the gradient of the first layer in its images."""
    found, for_the_cpu = compare(partial(step, name, method))
    assert for_the_cpu
    if name == "lip_excess":  # it has no price
        return
    apply, params = network()
    x = jnp.zeros(X.shape)
    forward = products(jax.jit(lambda x: apply(params, {}, x, False)[0]).lower(x).as_text())
    passes = FORMS[name, method] + (1 / BATCH if name == "j2_lip" else 0)
    units = (cost.price(name, method, BATCH) - HIDDEN.get((name, method), 0)) * flops(forward)
    if (
        name == "jacobian"
    ):  # what it projects on is drawn: the last layer is not differentiated twice
        units -= forward[-1].flops
    assert found == units - passes * forward[0].flops


@pytest.mark.parametrize("name", attacks.__all__)
def test_an_attack_on_an_accelerator_multiplies_what_it_does_on_cpu(name):
    _, for_the_cpu = compare(partial(attack, name))
    assert bool(for_the_cpu) == (name not in ("boundary", "hopskipjump", "square"))  # no gradients


def test_pooling_is_a_mean_on_accelerators():
    def operations(train):
        pooled = jax.jit(partial(layers.pooled, train=train))
        text = pooled.trace(jnp.zeros((2, 4, 4, 3))).lower(lowering_platforms=("cuda",)).as_text()
        return set(re.findall(r"stablehlo\.(\w+)", text)) - {"case", "constant", "return"}

    assert operations(train=False) == operations(train=True)
