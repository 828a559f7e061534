"""lipreg.models.lipschitz: operators are built column by column and measured, for any weights."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipreg import models, parallel
from lipreg.lipschitz.bounds import lipschitz as lipschitz_of
from lipreg.models import lipschitz
from lipreg.models.layers import space_to_depth
from lipreg.models.lipschitz import LAYERS, apply, draws

IN, OUT, MORE, SIDE = 5, 4, 7, 4  # channels, and pixels of a side
ORTHOGONAL = [
    name for name, layer in LAYERS.items() if layer.form == "linear" and layer.frequencies
]
RESCALED = [name for name, layer in LAYERS.items() if not layer.frequencies]
FORMS = [(name, form) for name in LAYERS for form in ("dense", "circular")]
FORMS += [(name, "zeros") for name in RESCALED]
FORMS += [(name, "wide") for name, layer in LAYERS.items() if layer.form != "residual"]
every_form = pytest.mark.parametrize(("name", "form"), FORMS)


def shapes(name, form):
    """The shapes of an example and of a layer's parameters."""
    outputs = IN if LAYERS[name].form == "residual" else MORE if form == "wide" else OUT
    dense = form in ("dense", "wide")
    made = draws(name, IN, outputs, 0 if dense else 3)
    params = {n: jax.eval_shape(draw, jax.random.key(0)).shape for n, draw in made.items()}
    return (IN,) if dense else (SIDE, SIDE, IN), params


def weights(shape):
    """Raw weights of every kind, one after the other."""
    rng = np.random.default_rng(0)
    random = rng.normal(size=shape)
    one_rank = rng.normal(size=(*shape[:-1], 1)) * rng.normal(size=shape[-1])
    column = np.arange(shape[-1])
    dead = random * np.select([column == 0, column == 1], [0.0, 1e-8], 1.0)
    graded = random * np.float64(1000) ** -column
    sparse = random * (np.abs(random) > 1.5)
    kinds = [random, 1e6 * random, 1e30 * random, 1e-30 * random, one_rank, dead, graded, sparse]
    return np.stack([*kinds, np.ones(shape), np.zeros(shape)]).astype(np.float32)


@cache
def measured(name, form):
    """Jacobians `[kinds, outputs, inputs]` of the layer at a random point, and their gradients."""
    shape, sizes = shapes(name, form)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    rest = {n: jnp.asarray(0.3 * rng.normal(size=s), jnp.float32) for n, s in sizes.items()}
    padding = form if form in ("circular", "zeros") else "own"

    def jacobian(kernel):
        f = lambda x: apply(name, {**rest, "kernel": kernel}, x[None], padding=padding)[0].ravel()
        return jax.jacobian(f)(x).reshape(-1, x.size)

    def both(kernel):
        matrix, back = jax.vjp(jacobian, kernel)
        u = jnp.cos(jnp.arange(matrix.size, dtype=matrix.dtype)).reshape(matrix.shape)
        return matrix, back(u)[0]

    matrices, slopes = jax.jit(jax.vmap(both))(jnp.asarray(weights(sizes["kernel"])))
    return np.asarray(matrices, np.float64), np.asarray(slopes)


@every_form
def test_the_operator_has_norm_at_most_1_whatever_the_weights(name, form):
    norms = np.linalg.norm(measured(name, form)[0], 2, (1, 2))
    assert (norms <= 1 + 1e-5).all()
    assert norms[0] > 0.2  # and it is no trifle


@every_form
def test_gradients_in_the_raw_weight_are_finite_whatever_the_weights(name, form):
    slopes = measured(name, form)[1]
    assert np.isfinite(slopes).all()
    assert (slopes[0] != 0).any()


@pytest.mark.parametrize("form", ["dense", "wide", "circular"])
@pytest.mark.parametrize("name", ORTHOGONAL)
def test_all_singular_values_of_an_orthogonal_layer_are_1(name, form):
    found = np.linalg.svd(measured(name, form)[0], compute_uv=False)
    if name == "bjorck":  # gets no directions that w lacks
        found = found[:4]
    np.testing.assert_allclose(found, 1, atol=1e-5)


def test_the_scale_of_raw_weights_matters_to_cayley_alone():
    for name, form in FORMS:
        if name not in ("cayley", "sandwich"):
            random, *scaled = measured(name, form)[0][:4]
            for other in scaled:
                np.testing.assert_allclose(other, random, atol=1e-5)


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# What is no layer of LAYERS, each as a map of images whose Jacobian is taken.
MAPS = {
    "maxmin": lipschitz.maxmin,
    "group_sort": lipschitz.group_sort,
    "abs": jnp.abs,
    "space_to_depth": space_to_depth,
    "centred": lipschitz.centred,
    "l2_pooled": lipschitz.l2_pooled,
    "batch_normalised": lambda x: lipschitz.batch_normalised(
        x, jnp.ones(4), jnp.array([4.0, 1.0, 0.0, 1e30]), jnp.array([1.0, -3.0, 1e-3, 1.0])
    ),
}
KEEP_THE_NORM = ("maxmin", "group_sort", "abs", "space_to_depth")


@pytest.mark.parametrize("name", MAPS)
def test_what_stands_between_layers_has_slopes_of_at_most_1_also_at_ties_and_at_0(name):
    jacobian = jax.jit(jax.jacobian(lambda x: MAPS[name](x[None])))
    x = drawn(4, 4, 4)
    for point in (x, 1e-30 * x, 1e15 * x, 0 * x, jnp.ones_like(x)):
        matrix = np.asarray(jacobian(point), np.float64).reshape(-1, x.size)
        found = np.linalg.svd(matrix, compute_uv=False)
        assert found[0] <= 1 + 1e-6
        if point is x:
            assert found[-1 if name in KEEP_THE_NORM else 0] > 1 - 1e-6


def test_every_name_of_the_room_is_in_one_of_these_tables():
    weights = {"aol", "sll", "spectral", "newton_schulz", "cayley", "bro", "adjoint", "norm_bound"}
    maps = {"apply", "draws", "linear", "circular", "transform", "residual", "sandwich"}
    others = {"LAYERS", "LipschitzCNN", "LipschitzMLP", "linen", "nnx", "unit_columns"}
    assert {*lipschitz.__all__} == (weights | maps | others | {*MAPS}) - {"abs", "space_to_depth"}


def svd(w):
    return np.linalg.svd(np.asarray(w, np.float64), full_matrices=False)


def test_newton_schulz_is_the_polar_factor():
    w = drawn(7, 3)
    u, _, v = svd(w)
    np.testing.assert_allclose(lipschitz.newton_schulz(w), u @ v, atol=1e-5)


def test_the_gradient_of_newton_schulz_is_its_own_where_it_has_not_converged():
    with jax.enable_x64(True):
        f = lambda v: lipschitz.newton_schulz(jnp.diag(v))[1, 1]
        v, h = jnp.array([1.0, 1e-3]), 1e-6
        slopes = [(f(v + h * e) - f(v - h * e)) / (2 * h) for e in jnp.eye(2)]
        assert 0.1 < f(v) < 0.9
        np.testing.assert_allclose(jax.grad(f)(v), slopes, rtol=1e-4)


def test_aol_of_orthogonal_rows_is_the_matrix_itself_and_of_two_equal_rows_their_mean_shared():
    u, _, v = svd(drawn(3, 6))
    np.testing.assert_allclose(lipschitz.aol(jnp.asarray(u @ v, jnp.float32)), u @ v, atol=1e-6)
    twice = jnp.array([[3.0, 4.0, 0.0], [3.0, 4.0, 0.0]])
    np.testing.assert_allclose(lipschitz.aol(twice), twice / (5 * 2**0.5), atol=1e-6)


def test_cayley_of_a_square_weight_and_bro_are_their_formulas():
    w, one = np.asarray(drawn(4, 4), np.float64), np.eye(4)
    a = w - w.T
    expected = np.linalg.solve(one + a, one - a)
    np.testing.assert_allclose(lipschitz.cayley(jnp.asarray(w, jnp.float32)), expected, atol=1e-5)
    v = w[:, :2]
    expected = one - 2 * v @ np.linalg.pinv(v)
    found = lipschitz.bro(jnp.asarray(v, jnp.float32), 4, 4)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "loose"), [((9, 5), 1.005), ((3, 3, 2, 4), 1.25)])
def test_the_bound_of_a_norm_is_above_it_and_near(shape, loose):
    w = drawn(*shape)
    matrices = np.fft.fft2(w, (40, 40), (0, 1)) if w.ndim == 4 else np.asarray(w)
    norm = np.linalg.norm(matrices, 2, (-2, -1)).max()
    assert norm <= lipschitz.norm_bound(w) <= loose * norm
    # More steps come nearer, without end for a matrix.
    assert norm * (1 - 1e-6) <= lipschitz.norm_bound(w, 3) <= loose * norm


@pytest.mark.parametrize("side", [0, 3])
def test_a_layer_that_is_orthogonal_to_begin_with_is_not_rescaled(side):
    w = lipschitz.draws("spectral", 48, 64, side)["kernel"](jax.random.key(0))
    np.testing.assert_allclose(lipschitz.norm_bound(w), 1.0, rtol=1e-4)


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_the_adjoint_weight_is_that_of_the_transposed_map(padding):
    x, y, w = drawn(2, 4, 5, 3), drawn(2, 4, 5, 6, seed=1), drawn(3, 5, 3, 6, seed=2)
    forward = (lipschitz.linear(x, w, padding) * y).sum()
    back = (x * lipschitz.linear(y, lipschitz.adjoint(w), padding)).sum()
    np.testing.assert_allclose(forward, back, rtol=1e-4)


@pytest.mark.parametrize("sides", [(4, 5), (2, 1)], ids=["even and odd", "less than the kernel"])
def test_one_matrix_for_each_frequency_is_the_circular_convolution(sides):
    x, w = drawn(2, *sides, 3), drawn(3, 5, 3, 6, seed=2)
    found = lipschitz.circular(x, lipschitz.transform(w, sides))
    np.testing.assert_allclose(found, lipschitz.linear(x, w, "circular"), atol=1e-4)


def test_a_residual_with_rescaled_weights_is_the_papers_formula():
    """`x - 2 W' T relu(W x + b)`, `1 / T_i = sum_j |W W'|_ij q_j / q_i`, W = w'."""
    x, w, b, log_q = drawn(3, 5), drawn(5, 5, seed=1), drawn(5, seed=2), drawn(5, seed=3)
    q = np.exp(log_q)
    t = 1 / (np.abs(w.T @ w) * q[None] / q[:, None]).sum(1)
    expected = x - 2 * (np.maximum(x @ w + b[None], 0) * t) @ w.T
    params = {"kernel": w, "bias": b * np.sqrt(t), "log_q": log_q}
    np.testing.assert_allclose(apply("sll", params, x), expected, atol=1e-5)


def test_each_logit_after_a_normalised_last_layer_has_slope_1_and_a_class_without_weights_0():
    w = drawn(5, 3).at[:, 1].set(0.0) * jnp.array([[1e30, 1.0, 1e-30]])
    lengths = np.linalg.norm(lipschitz.unit_columns(w), axis=0)
    np.testing.assert_allclose(lengths, [1, 0, 1], atol=1e-6)
    assert jnp.isfinite(jax.grad(lambda w: lipschitz.unit_columns(w).sum())(w)).all()


def test_what_weights_are_made_of_is_float32_and_what_x_is_made_into_is_of_its_dtype():
    raw = drawn(3, 3, 4, 4).astype(jnp.bfloat16)
    for weight in (lipschitz.aol, lipschitz.spectral):
        kernel = weight(raw)
        assert kernel.dtype == jnp.float32
        matrices = np.fft.fft2(kernel, (16, 16), (0, 1))
        assert np.linalg.norm(matrices, 2, (-2, -1)).max() <= 1 + 1e-5


def every_layer(inputs=4, outputs=4, side=1):
    """The parameters of a layer of every kind, and their outputs one beside the other."""
    params = {
        name: {n: draw(jax.random.key(0)) for n, draw in draws(name, inputs, outputs, side).items()}
        for name in LAYERS
    }
    return params, lambda params, x: {name: apply(name, params[name], x) for name in params}


def test_every_layer_computes_in_bfloat16_what_it_does_in_float32():
    params, run = every_layer()
    x = drawn(2, 4, 4, 4)
    loss = lambda params, x: sum(
        jnp.square(z.astype(jnp.float32)[..., :2]).sum() for z in run(params, x).values()
    )
    made = jax.jit(lambda params, x: (run(params, x), jax.grad(loss)(params, x)))
    (outputs, slopes), (exact, expected) = (made(params, v) for v in (x.astype(jnp.bfloat16), x))
    for name in LAYERS:
        assert outputs[name].dtype == jnp.bfloat16
        scale = 2**-5 * jnp.abs(exact[name]).max()
        np.testing.assert_allclose(outputs[name].astype(jnp.float32), exact[name], atol=scale)
        for found, wanted in zip(
            *map(jax.tree.leaves, (slopes[name], expected[name])), strict=True
        ):
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, wanted, atol=0.1 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize(
    ("name", "side", "features"),
    [
        *(("aol", 3, 4), ("sll", 3, 4), ("cpl", 0, 6), ("bro", 3, 4), ("sandwich", 0, 4)),
        *(("spectral", 3, 4), ("bjorck", 0, 8), ("cayley", 0, 4)),
    ],
)
def test_linen_and_nnx_are_the_same_function(name, side, features):
    x = drawn(2, 4, 4, 6) if side else drawn(2, 6)
    made = lipschitz.nnx.Layer(6, features, name, side, rngs=nnx.Rngs(0))
    raw = {key: param[...] for key, param in made.raw.items()}
    if made.before:
        raw["Layer_0"] = {key: param[...] for key, param in made.before.raw.items()}
    module = lipschitz.linen.Layer(features, name, side)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, raw) == jax.tree.map(jnp.shape, shapes)
    expected = jax.jit(module.apply)({"params": raw}, x)
    assert expected.shape == (*x.shape[:-1], features)
    np.testing.assert_allclose(nnx.jit(made)(x), expected, atol=1e-6)


def test_batch_norm_and_the_head_are_the_same_in_linen_and_nnx():
    x = 3 * drawn(8, 4) + 1
    ours, theirs = lipschitz.nnx.BatchNorm(4), lipschitz.linen.BatchNorm()
    variables = theirs.init(jax.random.key(0), x, True)
    expected, variables["batch_stats"] = theirs.apply(variables, x, True, mutable=["batch_stats"])
    variables["batch_stats"] = variables["batch_stats"]["batch_stats"]
    np.testing.assert_allclose(ours(x), expected, atol=1e-6)
    ours.eval()
    np.testing.assert_allclose(ours(x), theirs.apply(variables, x, False), atol=1e-6)
    np.testing.assert_allclose(ours.mean[...], 0.1 * x.mean(0), atol=1e-6)
    head = lipschitz.nnx.UnitHead(4, 3, rngs=nnx.Rngs(0))
    params = {"kernel": 5 * head.kernel[...], "bias": head.bias[...]}
    expected = lipschitz.linen.UnitHead(3).apply({"params": params}, x)
    np.testing.assert_allclose(head(x), expected, atol=1e-6)


def test_a_network_is_1_lipschitz_with_batch_normalisation_and_any_statistics():
    fields = {"classes": 3, "batch_norm": True, "channels": (4,), "hidden": 4}
    model, x = models.build("LipschitzCNN", **fields), drawn(4, 4, 2)

    @jax.jit
    def jacobian(key):
        variables = model.init(key, x[None])
        variables["batch_stats"] = jax.tree.map(lambda a: a - 0.999, variables["batch_stats"])
        return jax.jacobian(lambda x: model.apply(variables, x[None])[0])(x)

    found = np.linalg.norm(jacobian(jax.random.key(0)).reshape(3, -1), 2)
    assert 0.1 < found <= 1 + 1e-5


def test_shards_of_a_batch_have_the_same_outputs_and_gradients_as_the_whole():
    params, run = every_layer()
    x = drawn(8, 2, 2, 4)
    loss = lambda params, x: sum(jnp.square(z[..., :2]).sum() for z in run(params, x).values())
    expected = jax.jit(jax.value_and_grad(loss))(params, x)
    with parallel.over():
        given = parallel.replicate(params), parallel.shard(x)
        found = jax.jit(jax.value_and_grad(loss))(*given)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_proved_bound_of_dense_layers_with_relu_is_1():
    v, w = (jnp.asarray(orthogonal) for orthogonal in (svd(drawn(6, 4))[0], svd(drawn(4, 4))[0]))
    f = lambda x: lipschitz.linear(
        jax.nn.relu(lipschitz.linear(x, lipschitz.aol(v))), lipschitz.aol(w)
    )
    bound = lipschitz_of(f, jnp.full((1, 6), 0.5)).output[0]
    assert 1 - 1e-5 < bound <= 1 + 1e-5


@pytest.mark.parametrize(
    ("layer", "changes", "told"),
    [
        ("soc", {}, "No layer 'soc'; choose one of aol, spectral, bjorck, cayley,"),
        ("cayley", {"padding": "zeros"}, "No padding of cayley 'zeros'; choose one of circular."),
        ("aol", {"padding": "same"}, "No padding of aol 'same'; choose one of zeros, circular."),
        ("sll", {"activation": "maxmin"}, "No activation inside of sll 'maxmin'; choose one of"),
        (
            "aol",
            {"activation": "silu"},
            "No activation 'silu'; choose one of own, maxmin, group_sort",
        ),
        ("aol", {"channels": (5,)}, "5 channels are no groups of 2; want a multiple."),
        ("aol", {"head": "tanh"}, "No head 'tanh'; choose one of linear, unit."),
    ],
)
def test_what_would_not_be_1_lipschitz_is_met_with_the_choices(layer, changes, told):
    def made():
        fields = {"classes": 3, "layer": layer} | changes
        model = models.build("LipschitzCNN", **fields)
        return jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4, 4, 2)))

    with pytest.raises(ValueError, match=told):
        made()


def test_a_kernel_without_a_centre_is_refused():
    with pytest.raises(ValueError, match="A kernel of side 2; want an odd one"):
        draws("aol", 1, 1, 2)
