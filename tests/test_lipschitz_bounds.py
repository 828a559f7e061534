"""Proved bounds of networks that are 1-Lipschitz by construction, and certificates with them.

Layers stand one after the other, each of norm 1, whatever its raw weights: what any one of them
counted too much would show in the product.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg import attacks, curves
from lipreg.lipschitz.bounds import lipschitz as bounds_of
from lipreg.lipschitz.bounds.forms import FORMS
from lipreg.losses import margin
from lipreg.models import lipschitz
from lipreg.models.lipschitz.constructions import LAYERS, apply, draws
from lipreg.norms import L2

RNG = np.random.default_rng(0)
SIDE, CHANNELS = 4, 2


def drawn(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def layers(names, width, side, padding):
    """Layers as one function each, with raw weights that are random."""
    for name in names:
        sizes = draws(name, width, width, side)
        shapes = {n: jax.eval_shape(d, jax.random.key(0)).shape for n, d in sizes.items()}
        params = {n: drawn(*shape) for n, shape in shapes.items()}
        yield name, partial(apply, name, params, padding=padding)


def norm(f, x):
    """The largest singular value of the Jacobian at x."""
    matrix = jax.jacobian(lambda v: f(v[None])[0].ravel())(x[0])
    return np.linalg.norm(np.asarray(matrix, np.float64).reshape(-1, x.size), 2)


ZEROS = tuple(name for name, kind in LAYERS.items() if not kind.frequencies)
CHAINS = {
    "dense": (tuple(LAYERS), 6, 0, "own"),
    "zeros": (ZEROS, CHANNELS, 3, "zeros"),
    "circular": (tuple(LAYERS), CHANNELS, 3, "circular"),
}


@pytest.mark.parametrize("form", CHAINS)
def test_the_proved_bound_of_layers_by_construction_is_1_within_a_hundredth(form):
    names, width, side, padding = CHAINS[form]
    stages = dict(layers(names, width, side, padding))
    # The grid of the bound's Fourier transform: zeros around the image make a larger torus.
    around = SIDE + 2 * (padding == "zeros")
    torus = jnp.zeros((1, around, around, width) if side else (1, width))
    # Rescaled weights that are not orthogonal have less than 1.
    stated = math.prod(
        norm(partial(stages[name], padding="circular" if side else "own"), torus)
        for name in ("aol", "spectral")
    )

    def network(x):
        for f in stages.values():
            x = lipschitz.maxmin(f(x))
        return x.reshape(len(x), -1)

    x = jnp.full((1, SIDE, SIDE, width) if side else (1, width), 0.5)
    bound = bounds_of(network, x)
    assert bound.kind == "certified"
    assert norm(network, x) <= bound.output[0] <= 1.01 * stated


def test_the_proved_bound_sees_what_stands_between_layers_and_the_last_layer():
    """Two rows of the unit head that are near each other make up for a small margin."""
    w = lipschitz.unit_columns(drawn(8, 3))

    def network(x):
        x = lipschitz.batch_normalised(x, jnp.ones(2), jnp.array([0.0, 4.0]), jnp.array([9.0, 2.0]))
        x = lipschitz.centred(lipschitz.l2_pooled(lipschitz.centred(jnp.abs(x))))
        return lipschitz.group_sort(lipschitz.centred(x.reshape(len(x), -1))) @ w

    bound = bounds_of(network, jnp.full((1, SIDE, SIDE, 2), 0.5))
    x = jnp.clip(0.5 + 0.3 * drawn(16, SIDE, SIDE, 2), 0.0, 1.0)
    slopes = jax.vmap(jax.jacrev(lambda x: network(x[None])[0]))(x)
    slopes = np.asarray(slopes.reshape(*slopes.shape[:2], -1), np.float64)
    assert np.linalg.norm(slopes, 2, axis=(1, 2)).max() <= bound.output[0] * (1 + 1e-5)
    steepest = np.linalg.norm(slopes[:, :, None] - slopes[:, None], axis=3).max(0)
    assert (steepest <= bound.margins[0] * (1 + 1e-5)).all()
    assert steepest.max() > 0.05
    rows = np.asarray(w.T, np.float64)
    between = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    assert (bound.margins[0] <= 1.01 * between).all()
    assert bound.output[0] <= 1.01 * np.linalg.norm(rows, 2)


def test_sums_that_are_taken_off_unevenly_are_no_projection():
    """`1 - k 1^T` has the norm sqrt(2) for k = (1, 0), though 1 and 0 are its eigenvalues."""
    k = jnp.array([[1.0, 0.0]])
    f = lambda x: x - k * x.sum(1, keepdims=True)
    assert bounds_of(f, jnp.zeros((1, 2))).output[0] >= math.sqrt(2)


def test_what_a_bound_reads_in_another_form_is_the_same_function():
    x = drawn(2, 3, 5, 2)
    w = lipschitz.transform(drawn(3, 3, 2, 4), (3, 5))
    for f, args in ((lipschitz.circular, (x, w)), (lipschitz.l2_pooled, (x,))):
        (call,) = jax.make_jaxpr(f)(*args).eqns
        with jax.enable_x64(True):
            expected = FORMS[call.params["name"]][0](*args)
        np.testing.assert_allclose(f(*args), expected, atol=1e-5)


def test_no_adversarial_image_lies_inside_the_radius_that_a_construction_proves():
    names, width, side, padding = CHAINS["circular"]
    x, box = drawn(16, SIDE, SIDE, width), (-9.0, 9.0)
    head = jnp.asarray(np.linalg.qr(RNG.normal(size=(SIDE * SIDE * width, 3)))[0], jnp.float32)

    def radii_and_distances(x):
        for _, f in layers(names, width, side, padding):
            logits = lambda x, f=f: lipschitz.maxmin(f(x)).reshape(len(x), -1) @ head
            y = logits(x).argmax(1)
            found = attacks.ddn(jax.random.key(0), logits, x, y, norm=L2, bounds=box, steps=30)
            radius = -margin(logits(x), y) / math.sqrt(2)
            yield radius, curves.distance(logits, x, y, found, norm=L2, bounds=box)

    pairs = jax.jit(lambda x: list(radii_and_distances(x)))(x)
    for radius, distance in pairs:
        assert (radius <= distance * (1 + 1e-4)).all()
        assert (radius > 0.1 * distance).any()  # and it is no trifle
