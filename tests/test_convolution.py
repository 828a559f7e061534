"""lipreg.convolution against lax, and the optimised programs that it is there for."""

import re
from functools import partial

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType

from lipreg import convolution
from lipreg.convolution import conv

NUMBERS = ("NHWC", "HWIO", "NHWC")


def draw(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def layer(function, padding="SAME", **options):
    return lambda x, w: function(x, w, (1, 1), padding, dimension_numbers=NUMBERS, **options)


def assert_close(ours, theirs, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max()))


def assert_agrees(results):
    """`results(function)` with our convolution and with lax's."""
    results = jax.jit(results, static_argnums=0)
    assert_close(results(conv), results(lax.conv_general_dilated))


CASES = [((1, 1), 1), ((3, 3), 1), ((5, 3), 1), ((3, 3), 2), ((5, 5), 4)]


@pytest.mark.parametrize(("kernel", "groups"), CASES)
def test_value_and_both_gradients_are_those_of_lax(kernel, groups):
    x, w = draw(0, 3, 7, 10, 8), draw(1, *kernel, 8 // groups, 12)
    u = draw(2, 3, 7, 10, 12)

    def all_three(function):
        value, vjp = jax.vjp(layer(function, feature_group_count=groups), x, w)
        return value, vjp(u)

    assert_agrees(all_three)


PADDINGS = [
    ((4, 5), "SAME"),
    ((4, 5), "VALID"),
    ((3, 3), [(1, 1), (2, 0)]),
    ((3, 4), [(2, 0), (0, 3)]),
    ((3, 3), [(2, 2), (1, 1)]),
]


@pytest.mark.parametrize("channels", [3, convolution.NARROW + 1])
@pytest.mark.parametrize(("kernel", "padding"), PADDINGS, ids=str)
def test_any_padding_is_that_of_lax(kernel, padding, channels):
    x, w = draw(0, 2, 6, 9, channels), draw(1, *kernel, channels, 4)

    def gradients(function):
        return jax.grad(lambda x, w: (layer(function, padding)(x, w) ** 3).sum(), (0, 1))(x, w)

    assert_agrees(gradients)


def test_second_order_gradients_are_those_of_lax():
    x, w = draw(0, 2, 5, 8, 4), (draw(1, 3, 3, 2, 4), draw(2, 3, 3, 2, 4))

    def second(function):
        c = layer(function, feature_group_count=2)

        def penalty(w, x):
            grad = jax.grad(lambda x: (jnp.tanh(c(jnp.tanh(c(x, w[0])), w[1])) ** 2).sum())(x)
            return (grad**2).sum()

        return jax.grad(penalty, (0, 1))(w, x)

    assert_agrees(second)


def test_third_order_gradients_are_those_of_lax():
    x, w = draw(0, 1, 4, 5, 2), draw(1, 3, 3, 2, 2)

    def third(function):
        def f(x, w):
            return jnp.sin(layer(function)(x, w)).sum()

        first = lambda x, w: (jax.grad(f)(x, w) ** 2).sum()
        second = lambda x, w: (jax.grad(first, 1)(x, w) ** 2).sum()
        return jax.grad(second, (0, 1))(x, w)

    assert_agrees(third)


@pytest.mark.parametrize("channels", [3, convolution.NARROW + 1])
def test_the_forms_for_other_platforms_are_the_same_functions(channels):
    x, w, u = draw(0, 2, 5, 6, channels), draw(1, 3, 3, channels, 4), draw(2, 2, 5, 7, 4)
    pads = ((1, 1), (2, 1))

    def gradients(forms):
        form = partial(convolution.in_lax, forms=forms, mapped=0, pads=pads, precision=None)
        return form(w, u, factor="x"), form(x, u, factor="w"), form(x, w, factor="u")

    assert_close(gradients(convolution.ON_CPU), gradients(convolution.ELSEWHERE))


OTHERS = {
    "strided": {"window_strides": (2, 2)},
    "dilated kernel": {"rhs_dilation": (2, 2)},
    "dilated image": {"lhs_dilation": (2, 1), "padding": [(1, 1), (1, 1)]},
    "wide padding": {"padding": [(3, 4), (0, 0)]},
    "cropped": {"padding": [(-1, 0), (0, 0)]},
    "many groups": {"feature_group_count": 36},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_everything_else_is_laxs_own(options):
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NUMBERS} | options
    groups = options.get("feature_group_count", 1)
    x, w = draw(0, 2, 6, 7, 36), draw(1, 3, 3, 36 // groups, 36)
    np.testing.assert_array_equal(conv(x, w, **options), lax.conv_general_dilated(x, w, **options))


def test_other_layouts_are_laxs_own_and_their_groups_are_split():
    x, w = draw(0, 2, 4, 6, 7), draw(1, 8, 2, 3, 3)
    ours = conv(x, w, (1, 1), "SAME", feature_group_count=2)
    theirs = lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=2)
    assert_close(ours, theirs)


def test_vmap_over_images_equals_the_batch():
    x, w = draw(0, 5, 6, 6, 3), draw(1, 3, 3, 3, 4)

    def total(x, w):
        return (layer(conv)(x, w) ** 2).sum()

    one_by_one = jax.vmap(lambda x: jax.grad(total)(x[None], w)[0])(x)
    assert_close(one_by_one, jax.grad(total)(x, w))
    per_example = jax.vmap(lambda x: jax.grad(total, 1)(x[None], w))(x)
    assert_close(per_example.sum(0), jax.grad(total, 1)(x, w))


def test_half_precision_stays_half_precision():
    x, w = draw(0, 2, 4, 4, 2, dtype=jnp.bfloat16), draw(1, 3, 3, 2, 2, dtype=jnp.bfloat16)
    value, vjp = jax.vjp(layer(conv), x, w)
    assert {a.dtype for a in (value, *vjp(value))} == {jnp.dtype(jnp.bfloat16)}
    wide = layer(conv, preferred_element_type=jnp.float32)(x, w)
    assert wide.dtype == jnp.float32


def test_linen_and_nnx_take_it():
    x = draw(0, 2, 5, 6, 4)
    options = {"feature_group_count": 2, "use_bias": False}
    theirs = linen.Conv(6, (3, 3), **options)
    variables = theirs.init(jax.random.key(1), x)
    ours = linen.Conv(6, (3, 3), conv_general_dilated=conv, **options)
    assert_close(ours.apply(variables, x), theirs.apply(variables, x))
    net = nnx.Conv(4, 6, (3, 3), conv_general_dilated=conv, rngs=nnx.Rngs(0), **options)
    net.kernel[...] = variables["params"]["kernel"]
    assert_close(net(x), theirs.apply(variables, x))


def sine(function):
    return lambda x, w: jnp.sin(layer(function)(x, w)).sum()


DERIVATIVES = {
    "pushed forward": lambda f: lambda *a: jax.jvp(f, a, jax.tree.map(jnp.cos, a)),
    "linearised": lambda f: lambda *a: jax.linearize(f, *a)[1](*jax.tree.map(jnp.cos, a)),
    "forward over reverse": lambda f: jax.hessian(f, (0, 1)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f, (0, 1)), (0, 1)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f), 1),
    "third order": lambda f: (
        lambda x, w: jax.jvp(lambda w: jax.hessian(f)(x, w), (w,), (jnp.cos(w),))
    ),
}


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_forward_mode_is_that_of_lax_to_every_order(kind):
    x, w = draw(0, 1, 3, 4, 2), draw(1, 3, 3, 2, 2)
    derivative = DERIVATIVES[kind]
    assert_agrees(lambda function: derivative(sine(function))(x, w))


def test_what_is_not_compiled_is_the_same():
    x, w = draw(0, 1, 3, 4, 2), draw(1, 3, 3, 2, 2)
    pushed = lambda function: jax.jvp(jax.grad(sine(function)), (x, w), (x, w))
    assert_close(pushed(conv), pushed(lax.conv_general_dilated))


@pytest.mark.parametrize("axes", [((0, None), (None, 0)), ((0, 0), (None, 1)), ((2, 0), (1, 1))])
def test_vmap_over_images_and_kernels_is_that_of_lax(axes):
    inner, outer = axes
    shapes = [[1, 3, 4, 2], [3, 3, 2, 2]]
    for position, shape in enumerate(shapes):
        for axis, size in ((inner[position], 2), (outer[position], 3)):
            if axis is not None:
                shape.insert(axis, size)
    x, w = (draw(number, *shape) for number, shape in enumerate(shapes))

    def mapped(function):
        f = sine(function)
        penalty = lambda x, w: f(x, w) + (jax.grad(f)(x, w) ** 2).sum()
        both = jax.vmap(jax.vmap(jax.grad(penalty, (0, 1)), inner, 1), outer, 2)
        return both(x, w)

    assert_agrees(mapped)


def test_what_is_computed_again_or_inside_a_scan_is_differentiated_as_laxs():
    x, w = draw(0, 1, 3, 4, 2), 0.1 * draw(1, 3, 3, 2, 2)

    def unrolled(function):
        f = jax.checkpoint(sine(function))
        step = lambda x, _: (x + jax.jvp(jax.grad(f), (x, w), (x, w))[1], None)
        moved = lambda w: (lax.scan(step, x + w.sum(), None, length=2)[0] ** 2).sum()
        return jax.value_and_grad(moved)(w)

    assert_agrees(unrolled)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("check", [None, True, False])
def test_images_on_several_devices_have_the_same_gradients(kind, check):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    images, whole = jax.P("data"), jax.P()
    x, w = draw(0, 8, 3, 4, 2), draw(1, 3, 3, 2, 2)

    def penalty(x, w):
        forward = jax.jvp(lambda x: layer(conv)(x, w), (x,), (jnp.cos(x),))[1]
        return (forward**2).sum() + (jax.grad(sine(conv))(x, w) ** 2).sum()

    def shared(x, w):
        if check:
            return jax.grad(lambda x, w: lax.psum(penalty(x, w), "data"), (0, 1))(x, w)
        dx, dw = jax.grad(penalty, (0, 1))(x, w)
        return dx, lax.psum(dw, "data")

    of = jax.grad(penalty, (0, 1))
    alone = of(x, w)
    if check is not None:
        of = jax.shard_map(
            shared,
            mesh=mesh,
            in_specs=(images, whole),
            out_specs=(images, whole),
            check_vma=check,
        )
    with jax.set_mesh(mesh):
        inputs = (
            jax.device_put(a, jax.NamedSharding(mesh, p)) for a, p in ((x, images), (w, whole))
        )
        found = jax.jit(of)(*inputs)
    assert_close(jax.device_get(found), jax.device_get(alone))


def test_whoever_reads_a_program_finds_laxs_convolution():
    x, w = draw(0, 1, 4, 4, 2), draw(1, 3, 3, 2, 2)
    program = str(jax.make_jaxpr(layer(conv))(x, w))
    assert "conv_general_dilated" in program
    assert "convolution_partial" not in program


# The programs. A convolution that XLA:CPU runs by its naive loops is not in the layout
# b01f_01io->b01f, or has groups, or was given `outer_dimension_partitions`.


def slow_convolutions(function, *args):
    program = jax.jit(function).lower(*args).compile().as_text()
    lines = [line for line in program.splitlines() if "dim_labels=" in line]
    assert lines, "no convolution in the program: its text has changed"
    signs = r"outer_dimension_partitions|group_count=|rhs_reversal|lhs_dilate"
    return [
        line for line in lines if re.search(signs, line) or "dim_labels=b01f_01io->b01f" not in line
    ]


def net(function, params, x):
    for number, w in enumerate(params):
        padding = "VALID" if number == 3 else "SAME"
        x = layer(function, padding, feature_group_count=x.shape[-1] // w.shape[2])(x, w)
        x = x if number == 1 else jax.nn.softplus(x)
    return x.mean((1, 2))


def params_and_images():
    shapes = [(3, 3, 3, 8), (1, 1, 8, 8), (3, 3, 4, 8), (5, 5, 8, 4)]
    return [0.1 * draw(i, *s) for i, s in enumerate(shapes)], draw(9, 4, 12, 16, 3)


def ascend(function, params, x):
    grad = jax.grad(lambda x: net(function, params, x)[:, 0].sum())
    return lax.fori_loop(0, 3, lambda _, x: x + grad(x), x)


def train(function, params, x):
    def penalised(params):
        values, vjp = jax.vjp(lambda x: net(function, params, x)[:, 0], x)
        return values.mean() + (vjp(jnp.ones_like(values))[0] ** 2).sum()

    def step(params, _):
        return jax.tree.map(lambda p, g: p - g, params, jax.grad(penalised)(params)), None

    return lax.scan(step, params, None, length=3)[0]


def curve(function, params, x):
    """Steps along the Hessian-gradient product in x, forward over reverse."""
    grad = jax.grad(lambda x: net(function, params, x)[:, 0].sum())
    return lax.fori_loop(0, 3, lambda _, x: x + jax.jvp(grad, (x,), (grad(x),))[1], x)


@pytest.mark.parametrize("program", [ascend, train, curve])
def test_no_convolution_in_a_loop_is_slow(program):
    params, x = params_and_images()
    assert not slow_convolutions(partial(program, conv), params, x)


@pytest.mark.parametrize("program", [ascend, train])
def test_the_same_loop_with_laxs_derivatives_has_slow_convolutions(program):
    # When this fails, XLA has been repaired, and convolution.py has had its day.
    params, x = params_and_images()
    assert slow_convolutions(partial(program, lax.conv_general_dilated), params, x)
