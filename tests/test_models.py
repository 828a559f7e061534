"""lipreg.models: the contract of every model and head, and what the papers say of theirs."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg import models
from lipreg.models import residual

SMALL = {
    "CNN": {"channels": (4, 8), "hidden": 8},
    "MLP": {"widths": (8,)},
    "ResNeXt34_2x32": {"stages": (1, 1), "channels": (4, 4)},
    "ResNeXt34_2x8": {"stages": (1, 1)},
    "ResNet18": {"stages": (1, 1), "channels": (4, 8)},
    "ResNet50": {"stages": (1, 1), "channels": (8, 16)},
    "LipschitzCNN": {"channels": (4, 8), "hidden": 8, "batch_norm": True},
    "LipschitzMLP": {"widths": (8,), "layer": "cayley"},
}


def start(model, x):
    """Parameters and statistics, drawn with numpy: compiling `model.init` takes seconds."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim > 1:
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype)
        return jnp.full(leaf.shape, float(path[-1].key in ("scale", "var", "t")), leaf.dtype)

    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), x)
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    params = variables.pop("params")
    return params, variables


def images(n=4, side=8, channels=3):
    return jax.random.uniform(jax.random.key(1), (n, side, side, channels))


def changed(before, after):
    """Whether any leaf differs."""
    return any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )


# The heads are the same code in every model: the residual ones, slow to compile, stand in for one.
PAIRS = [*itertools.product(["CNN", "MLP"], models.HEADS)]
PAIRS += [("ResNeXt34_2x32", "linear"), ("ResNet18", "tanh"), ("ResNet50", "linear")]
PAIRS += [("LipschitzCNN", "linear"), ("LipschitzMLP", "unit")]


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_logits_are_float32_and_only_training_changes_only_the_statistics(name, head):
    model, x = models.build(name, classes=5, head=head, **SMALL[name]), images()
    params, state = start(model, x)
    apply = jax.jit(models.functional(model), static_argnums=3)
    logits, same = apply(params, state, x, False)
    assert logits.shape == (4, 5)
    assert logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()
    assert not changed(state, same)
    logits, new = apply(params, state, x, True)
    assert logits.shape == (4, 5)
    assert logits.dtype == jnp.float32
    assert set(new) == set(state) <= {"batch_stats"}
    assert jax.tree.structure(new) == jax.tree.structure(state)
    if state:
        assert changed(state, new)


def heads(name):
    model = getattr(models, name)
    return getattr(model, "func", model).heads


@pytest.mark.parametrize(
    ("name", "head"), [(name, head) for name in models.NAMES for head in heads(name)]
)
def test_weights_and_logits_are_float32_in_64_bits_too(name, head):
    with jax.enable_x64(True):
        x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        net = models.build(name, classes=3, head=head)
        init = lambda x: net.init_with_output(jax.random.key(0), x, train=False)
        logits, variables = jax.eval_shape(init, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "head"), [(name, head) for name in models.NAMES for head in heads(name)]
)
def test_full_size_models_have_the_right_shapes(name, head):
    model = models.build(name, classes=10, head=head)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), x)
    out = jax.eval_shape(partial(model.apply, train=False), variables, x)
    assert (out.shape, out.dtype) == ((2, 10), jnp.float32)


@pytest.mark.parametrize(
    ("name", "least"), [("ResNeXt34_2x32", 4), ("ResNet18", 8), ("ResNet50", 32)]
)
def test_images_on_which_the_resolution_falls_to_nothing_are_refused_with_the_least_size(
    name, least
):
    model = models.build(name, classes=10)

    def logits(rows, columns):
        x = jax.ShapeDtypeStruct((1, rows, columns, 3), jnp.float32)
        return jax.eval_shape(partial(model.init_with_output, train=False), jax.random.key(0), x)[0]

    assert logits(least, least + 1).shape == (1, 10)
    message = f"{2 * least} x {least - 1} pixels: .* at least {least} x {least}"
    with pytest.raises(ValueError, match=message):
        logits(2 * least, least - 1)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("ResNeXt34_2x32", 3.8e6, 4.0e6),  # "about 3.9M"
        ("ResNeXt34_2x8", 3.8e6 / 16, 4.0e6 / 15),  # a quarter as wide
        ("ResNet18", 11.1e6, 11.2e6),  # 11.17M, as published implementations
        ("ResNet50", 23.5e6, 23.6e6),  # 25.56M with a head for 1000 classes, 2.05M
        ("CNN", 0.2e6, 0.5e6),
    ],
)
def test_models_have_as_many_parameters_as_their_sources(name, least, most):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    model = models.build(name, classes=10)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), x)
    assert least < models.count_parameters(variables["params"]) < most


@pytest.mark.parametrize("side", [1, 3, 7])
def test_the_cnn_takes_small_and_odd_images(side):
    model = models.build("CNN", classes=3, channels=(4, 4, 4))
    params, state = start(model, images(side=side))
    apply = jax.jit(models.functional(model), static_argnums=3)
    assert apply(params, state, images(side=side), False)[0].shape == (4, 3)


def test_branches_are_the_groups_of_a_blocks_second_convolution():
    model = models.build("ResNeXt34_2x32", classes=3, stages=(1,), channels=(4,), branches=4)
    params, _ = start(model, images())
    assert params["Conv_1"]["kernel"].shape == (3, 3, 4, 16)
    assert params["Conv_2"]["kernel"].shape == (3, 3, 4, 16)


def test_the_stem_of_resnet50_is_a_convolution_of_stride_2():
    x, kernel = images(2, 10), jax.random.normal(jax.random.key(2), (6, 6, 3, 5))
    dimensions = ("NHWC", "HWIO", "NHWC")
    conv = partial(jax.lax.conv_general_dilated, dimension_numbers=dimensions)
    folded = kernel.reshape(3, 2, 3, 2, 3, 5).transpose(0, 2, 1, 3, 4, 5).reshape(3, 3, 12, 5)
    found = conv(residual.space_to_depth(x), folded, (1, 1), "SAME")
    np.testing.assert_allclose(found, conv(x, kernel, (2, 2), [(2, 2), (2, 2)]), atol=1e-4)


def with_t(params, t):
    return {**params, "Head_0": {**params["Head_0"], "t": jnp.asarray(t, jnp.float32)}}


def test_the_tanh_head_keeps_logits_within_t_and_derivatives_finite():
    model, x = models.build("MLP", classes=4, head="tanh", widths=(8,)), 100 * images()
    params, state = start(model, x)
    assert model.init(jax.random.key(0), x, train=False)["params"]["Head_0"]["t"] == 1.0
    apply = jax.jit(models.functional(model), static_argnums=3)

    @partial(jax.jit, static_argnums=1)
    def grads(params, train):
        def penalty(params):
            value = lambda x: (apply(params, state, x, train)[0] ** 2).sum()
            return (jax.grad(value)(x) ** 2).sum() + value(x)

        return jax.grad(penalty)(params)

    for t in (1.0, 0.3, -0.3, 1e-25, 0.0):
        params = with_t(params, t)
        logits, _ = apply(params, state, x, False)
        assert (jnp.abs(logits) <= abs(t)).all()
        assert jnp.abs(logits).max() >= 0.9 * abs(t)
        for train in (False, True):
            assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads(params, train)))


def test_logits_have_no_activation():
    model = models.build("CNN", classes=6, **SMALL["CNN"])
    apply = jax.jit(models.functional(model), static_argnums=3)
    logits, _ = apply(*start(model, images()), images(), False)
    assert (logits < 0).any()


BLACK = [("CNN", activation, False) for activation in models.ACTIVATIONS]
BLACK += [("CNN", "relu", True), ("ResNeXt34_2x32", "softplus", True)]


@pytest.mark.parametrize(("name", "activation", "train"), BLACK)
def test_a_black_image_has_finite_second_derivatives(name, activation, train):
    x = jnp.zeros((2, 4, 4, 1))
    model = models.build(name, classes=3, head="tanh", activation=activation, **SMALL[name])
    params, state = start(model, x)

    @jax.jit
    def grads(params):
        def penalty(params):
            value = lambda x: models.functional(model)(params, state, x, train)[0][:, 0].sum()
            return (jax.grad(value)(x) ** 2).sum()

        return jax.grad(penalty)(params)

    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads(params)))


@pytest.mark.parametrize("name", ["CNN", "MLP", "ResNeXt34_2x32"])
def test_bfloat16_inside_gives_float32_logits_near_the_float32_ones(name):
    x = images()
    model = models.build(name, classes=3, **SMALL[name])
    params, state = start(model, x)
    half = models.build(name, classes=3, dtype=jnp.bfloat16, **SMALL[name])
    exact, _ = jax.jit(models.functional(model), static_argnums=3)(params, state, x, False)
    logits, _ = jax.jit(models.functional(half), static_argnums=3)(params, state, x, False)
    assert logits.dtype == jnp.float32
    assert changed(exact, logits)
    np.testing.assert_allclose(logits, exact, atol=0.05 * float(jnp.abs(exact).max()))
    _, new = jax.eval_shape(partial(models.functional(half), train=True), params, state, x)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(new))


def test_c2relu_is_the_formula_of_its_source():
    x = jnp.linspace(-3.0, 3.0, 241)
    z = jax.nn.relu(x + 0.5)
    np.testing.assert_allclose(
        models.c2relu(x), jnp.maximum(z**3 - 0.5 * z**4, jax.nn.relu(x)), atol=1e-6
    )
    assert models.c2relu(jnp.float32(1e30)) == jnp.float32(1e30)


@pytest.mark.parametrize(
    ("seam", "value", "slope"), [(-0.5, 0.0, 0.0), (0.5, 0.5, 1.0)], ids=["-1/2", "1/2"]
)
def test_c2relu_is_twice_continuously_differentiable(seam, value, slope):
    f = models.c2relu
    for x in (seam - 1e-6, seam, seam + 1e-6):
        x = jnp.float32(x)
        np.testing.assert_allclose(f(x), value, atol=1e-5)
        np.testing.assert_allclose(jax.grad(f)(x), slope, atol=1e-5)
        np.testing.assert_allclose(jax.grad(jax.grad(f))(x), 0.0, atol=1e-4)
    # A parabola's curvature would not go to 0 here; relu's slope would jump between them.
    curvature = jax.vmap(jax.grad(jax.grad(f)))(jnp.linspace(-1.0, 1.0, 401))
    assert jnp.abs(jnp.diff(curvature)).max() < 6.1 * 2 / 400
    np.testing.assert_allclose(curvature.max(), 1.5, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "VGG"}, "No model 'VGG'; choose one of CNN, MLP, ResNeXt34_2x32, ResNeXt34_2x8,"),
        ({"head": "cosine"}, "No head 'cosine'; choose one of linear, batch_norm, tanh."),
        ({"activation": "sine"}, "No activation 'sine'; choose one of relu, softplus, silu, gelu,"),
        ({"width": 3}, "No field of CNN 'width'; choose one of"),
        (
            {"name": "ResNet18", "stages": (2, 2)},
            r"PreActResNet: stages = \(2, 2\) and channels = \(64, 128, 256, 512\); give as many",
        ),
        ({"name": "ResNeXt34_2x32", "stages": (), "channels": ()}, "one or more"),
    ],
)
def test_unknown_names_are_met_with_the_choices(changes, message):
    with pytest.raises(ValueError, match=message):
        models.build(**{"name": "CNN", "classes": 10} | changes)


def test_models_made_directly_check_their_names():
    for model in map(partial(getattr, models), models.NAMES):
        with pytest.raises(ValueError, match="No head 'x'"):
            model(classes=2, head="x")
    with pytest.raises(ValueError, match="No head 'x'"):
        models.Head(2, "x")


# Residual networks as their papers write them, in numpy.


def same(x, w, groups=1):
    """The correlation of images with a kernel, zeros around them."""
    a, b = w.shape[:2]
    x = np.pad(x, ((0, 0), (a // 2, a // 2), (b // 2, b // 2), (0, 0)))
    x = np.lib.stride_tricks.sliding_window_view(x, (a, b), (1, 2))
    per_group = zip(np.split(x, groups, 3), np.split(w, groups, 3), strict=True)
    return np.concatenate([np.einsum("nxyiab,abio->nxyo", u, v) for u, v in per_group], 3)


def halved(x):
    n, rows, columns, channels = x.shape
    return x.reshape(n, rows // 2, 2, columns // 2, 2, channels).mean((2, 4))


def pre_activated(x, conv, norm, act):
    x = conv(0, x)
    y = act(norm(0, x))
    x = x + conv(2, act(norm(1, conv(1, y))))
    y = halved(act(norm(2, x)))
    x = conv(3, y) + conv(5, act(norm(3, conv(4, y))))
    return act(norm(4, x))


def bottleneck(x, conv, norm, act):
    """Convolution and normalisation i are numbered as they are first called."""
    unit = lambda i, x: norm(i, conv(i, x))
    n, rows, columns, channels = x.shape
    windows = x.reshape(n, rows // 2, 2, columns // 2, 2, channels).swapaxes(2, 3)
    x = halved(act(unit(0, windows.reshape(n, rows // 2, columns // 2, -1))))
    y = unit(3, act(unit(2, act(unit(1, x)))))
    x = act(y + (x if x.shape == y.shape else unit(4, x)))
    y, x = halved(act(unit(5, x))), halved(x)
    return act(unit(7, act(unit(6, y))) + unit(8, x))


def branched(x, conv, norm, act):
    def block(x, i):
        y = norm(i + 1, conv(i + 1, act(norm(i, conv(i, x))), groups=2))
        return act(x + (y[..., : y.shape[3] // 2] + y[..., y.shape[3] // 2 :]) / 2)

    x = block(act(norm(0, conv(0, x))), 1)
    return block(halved(act(norm(3, conv(3, x)))), 4)


@pytest.mark.parametrize(
    ("name", "written"),
    [("ResNet18", pre_activated), ("ResNeXt34_2x32", branched), ("ResNet50", bottleneck)],
)
def test_a_residual_network_is_the_one_of_its_paper(name, written):
    model = models.build(name, classes=3, stages=(1, 1), channels=(4, 8))
    x = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    rng = np.random.default_rng(1)
    drawn = lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype)
    variables = jax.tree.map(drawn, model.init(jax.random.key(0), x))
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    params, stats = (jax.tree.map(np.asarray, variables[k]) for k in ("params", "batch_stats"))

    def norm(i, x):
        of, seen = params[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"]
        return (x - seen["mean"]) / np.sqrt(seen["var"] + 1e-5) * of.get("scale", 1) + of["bias"]

    conv = lambda i, x, **groups: same(x, params[f"Conv_{i}"]["kernel"], **groups)
    features = written(x, conv, norm, lambda x: np.maximum(x, 0)).mean((1, 2))
    dense = params["Head_0"]["Dense_0"]
    expected = features @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(model.apply(variables, x), expected, rtol=1e-4)
    assert np.ptp(expected) > 1e-2
