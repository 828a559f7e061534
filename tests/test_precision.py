"""The setting for precision, and bfloat16 networks with float32 where rounding would harm."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lowered import products

from lipreg import datasets, losses, models, objectives, training
from lipreg.runs import build, storage
from lipreg.runs.checks import check
from lipreg.runs.config import base_config, complete

SMALL = {
    "CNN": {"channels": (4,), "hidden": 4},
    "MLP": {"widths": (4,)},
    "ResNeXt34_2x32": {"channels": (4, 4), "stages": (1, 1)},
    "ResNeXt34_2x8": {"channels": (4, 4), "stages": (1, 1)},
    "ResNet18": {"channels": (4, 8), "stages": (1, 1)},
    "ResNet50": {"channels": (4, 8), "stages": (1, 1)},
    "LipschitzCNN": {"channels": (4,), "hidden": 4},
    "LipschitzMLP": {"widths": (4,)},
}
IMAGES = datasets.Dataset(np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int32), 3)
LAM, EPS = 0.1, 0.1
each_network = pytest.mark.parametrize("name", models.NAMES)


def config(name="CNN", **changes):
    found = base_config("j2_lip_tanh", {"j2_lip": {"eps": EPS, "lam": LAM}})
    found.model.name = name
    found.model.settings.update(SMALL[name])
    if name.startswith("Lipschitz"):
        found.model.head = "linear"  # they have no tanh
    found.report.pgd.steps = 1
    found.train.ema = 0.9
    found.update_from_flattened_dict(changes)
    check(found)
    return found


def start(**changes):
    """A config's program, its first state, and the other arguments of its step."""
    made = build.program(build.parts(config(**changes)), IMAGES, 1)
    state = jax.eval_shape(made.init, jax.random.key(0), jax.random.key(1))
    return made, state, ({"eps": jnp.float32(EPS), "lam": jnp.float32(LAM)}, (IMAGES.x, IMAGES.y))


@pytest.mark.parametrize(
    ("name", "precision"), [("CNN", "default"), *((name, "highest") for name in models.NAMES)]
)
def test_every_product_of_a_run_is_in_its_precision(name, precision):
    """In the step, second derivatives included, in validation, and in the trained network."""
    made, state, (strengths, batch) = start(name=name, **{"train.precision": precision})
    logits_fn = jax.eval_shape(partial(training.logits_fn, made.apply), state)
    x = jax.ShapeDtypeStruct(IMAGES.x.shape, jnp.float32)
    keys = jax.eval_shape(partial(jax.random.split, num=4), jax.random.key(0))
    slopes = lambda f, x: jax.grad(lambda x: f(x).sum())(x)
    for lowered in (
        jax.jit(made.step).lower(state, strengths, batch),
        made.wrong.lower(logits_fn, keys, x, IMAGES.y),
        jax.jit(slopes).lower(logits_fn, x),
    ):
        found = {product.precision for product in products(lowered.as_text())}
        assert found == {precision.upper()}


def test_by_default_precision_is_what_jax_has_been_told():
    with jax.default_matmul_precision("highest"):
        made, state, rest = start()
        lowered = jax.jit(made.step).trace(state, *rest)
    assert {p.precision for p in products(lowered.lower().as_text())} == {"HIGHEST"}


@each_network
def test_in_bfloat16_weights_statistics_and_parts_stay_in_float32(name):
    made, state, rest = start(name=name, **{"model.settings.dtype": "bfloat16"})
    after, parts = jax.eval_shape(made.step, state, *rest)
    numbers = [leaf for leaf in jax.tree.leaves((state, after, parts)) if leaf.ndim or leaf.size]
    kinds = {leaf.dtype for leaf in numbers if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert kinds == {jnp.dtype(jnp.float32)}
    # And yet it computes in bfloat16, all but the head.
    text = jax.jit(made.step).lower(state, *rest).as_text()
    assert {p.dtype for p in products(text)} == {"bf16", "f32"}
    if name != "LipschitzCNN":  # whose kernels are rescaled by convolutions with themselves
        assert not any(p.dtype == "f32" for p in products(text) if p.name == "convolution")


# The relative distance from float32's gradient in the weights: 0.003 to 0.004 on CPU, and 0.03 for
# finite differences, which divide rounding errors by h. On an H100: 0.004 and 0.03.
ROUNDING = {(kind, "attack"): 0.01 for kind in ("ordinary", "wrong", "right")}
ROUNDING |= {("right", "penalty"): 0.01, ("ordinary", "difference"): 0.1}


X = jax.random.uniform(jax.random.key(0), (8, 8, 8, 3))
SMOOTH = {"channels": (16,), "hidden": 16, "activation": "softplus"}
KEEP = optax.trace(0.0)  # its state after one step is the gradient itself


@cache
def network(dtype="float32"):
    """A smooth network, in which rounding cannot flip a kink, and its first weights."""
    model = models.build("CNN", classes=3, dtype=dtype, **SMOOTH)
    params = jax.jit(partial(model.init, train=False))(jax.random.key(1), X)["params"]
    return models.functional(model), params


@cache
def step(dtype, method):
    objective = partial(objectives.j2_lip, method=objectives.method(method))
    return jax.jit(training.make_step(network(dtype)[0], objective, KEEP))


def problem(kind):
    """Weights and classes. In a saturated network class 0 has a logit of about 40, the others -40.

    The loss is then about 80, or of the order of 1e-35.
    """
    _, params = network()
    if kind == "ordinary":
        return params, jnp.arange(len(X), dtype=jnp.int32) % 3
    dense = params["Head_0"]["Dense_0"]
    head = {"Dense_0": dense | {"bias": jnp.array([40.0, -40.0, -40.0])}}
    return params | {"Head_0": head}, jnp.full(len(X), kind == "wrong", jnp.int32)


@pytest.mark.parametrize(("kind", "method"), ROUNDING)
def test_gradients_in_bfloat16_are_finite_and_near_those_in_float32(kind, method):
    params, y = problem(kind)
    state = training.init(jax.random.key(2), params, {}, KEEP)
    slopes = {}
    for dtype in models.DTYPES:
        after, parts = step(dtype, method)(state, {"eps": EPS, "lam": LAM}, (X, y))
        assert all(jnp.isfinite(a).all() for a in jax.tree.leaves((after.params, parts)))
        slope = jax.tree.leaves(optax.tree.get(after.opt_state, "trace"))
        slopes[dtype] = np.concatenate([np.ravel(a).astype(float) for a in slope])
    apart = np.linalg.norm(slopes["bfloat16"] - slopes["float32"])
    assert 0 < apart < ROUNDING[kind, method] * np.linalg.norm(slopes["float32"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("loss", [*losses.__all__, "targeted_dlr"])
def test_a_loss_of_logits_in_half_precision_is_that_of_the_same_in_float32(loss, dtype):
    logits = jax.random.normal(jax.random.key(0), (5, 4)).astype(dtype)
    y = (jnp.arange(5) % 4, (jnp.arange(5) + 1) % 4)[: 1 + (loss == "targeted_dlr")]
    found = getattr(losses, loss)(logits, *y)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, getattr(losses, loss)(logits.astype(jnp.float32), *y))


@each_network
def test_an_unknown_dtype_is_met_with_the_choices(name):
    for dtype in ("float16", "fp32", jnp.float16):
        with pytest.raises(ValueError, match=r"No dtype '.*'; choose one of float32, bfloat16."):
            models.build(name, classes=3, dtype=dtype)


def test_an_unknown_precision_is_met_with_the_choices():
    with pytest.raises(ValueError, match=r"No precision 'tf32'; choose one of default, highest."):
        config(**{"train.precision": "tf32"})


def test_a_run_from_before_these_settings_is_taken_up_and_read_with_the_defaults(tmp_path):
    now = config()
    before = now.copy_and_resolve_references()
    del before.train.precision, before.model.settings.dtype
    storage.claim(tmp_path, before.to_dict())
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    assert complete(storage.read_config(tmp_path)).to_dict() == now.to_dict()
    storage.check_workdir(tmp_path, now.to_dict())
    changed = config(**{"train.precision": "highest"})
    with pytest.raises(ValueError, match=r"train.precision \('default' there, 'highest' asked\)"):
        storage.check_workdir(tmp_path, changed.to_dict())
