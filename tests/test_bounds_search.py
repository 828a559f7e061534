"""A search for violated bounds: random programs, and points that would contradict them.

`LIPREG_PROGRAMS=2000 pytest tests/test_bounds_search.py` looks at more of them; with
`--junitxml=FILE`, it says of each whether its bounds held or are infinite.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from random_programs import Draw, batched, common, joint, program

from lipreg.lipschitz.bounds import interval, lipschitz
from lipreg.lipschitz.bounds.forms import REWRITTEN
from lipreg.lipschitz.bounds.kinds import RULES

PROGRAMS = int(os.environ.get("LIPREG_PROGRAMS", "4"))
# These contradicted rules that held only for the usual arguments.
FOUND = (7, 12, 79, 86, 127, 136, 150, 1030)
POINTS = 48


def points_of(rng, x, low, high, eps):
    """Points of the box and the ball: corners, a grid that contains kinks, near x, and anywhere."""
    shape = (POINTS // 4, *x.shape)
    corners = np.where(rng.random(shape) < 0.5, low, high)
    grid = np.round(8 * rng.uniform(low, high, shape)) / 8 + 1e-4 * rng.normal(size=shape)
    near = x + 10.0 ** rng.integers(-4, 0) * rng.normal(size=shape)
    every = np.concatenate([corners, grid, near, rng.uniform(low, high, shape)])
    return into(rng, every, x, low, high, eps)


def into(rng, points, x, low, high, eps):
    """Slightly inside the box: at its edge jax may return the slope of the other side."""
    edge = 1e-6 * (high - low) * rng.random(points.shape)
    away = np.clip(points, low + edge, high - edge) - x
    size = np.sqrt(np.square(away).sum(tuple(range(1, away.ndim)), keepdims=True))
    return x + away * np.minimum(1.0, eps / np.maximum(size, 1e-300))


def slopes(f, x):
    """The Jacobian; jax has none of dilated windows: 0, and only pairs of points judge those."""
    try:
        return jax.jacrev(f)(x)
    except NotImplementedError:  # by jax itself, of reduce_window with a base dilation
        return jnp.zeros((*f(x).shape, *x.shape), x.dtype)


def flat(a):
    return np.asarray(a).reshape(len(a), -1)


def spread(rows):
    return np.linalg.norm(rows[..., :, None, :] - rows[..., None, :, :], axis=-1)


def contradiction(f, x, low, high, eps, rng):
    """How points and pairs in float64 contradict the bounds; "" if not, None if they are inf."""
    start = jnp.asarray(x, jnp.float32)[None]
    found = lipschitz(batched(f), start, eps, bounds=(low, high))
    far = np.minimum(eps, high - low)
    box_low = np.maximum(np.nextafter(np.float32(x - far), np.float32(-9)), np.float32(low))
    box_high = np.minimum(np.nextafter(np.float32(x + far), np.float32(9)), np.float32(high))
    ends = interval(batched(f), jnp.asarray(box_low)[None], jnp.asarray(box_high)[None])
    least, most = (np.float64(end[0]) for end in ends)
    output, margins = float(found.output[0]), np.float64(found.margins[0])
    assert not np.isnan([output, *margins.flat, *least.flat, *most.flat]).any()
    with jax.enable_x64(True):
        look = jax.jit(jax.vmap(lambda x: (f(x), slopes(f, x))))

        def see(points):
            values, rows = look(jnp.asarray(points, jnp.float64))
            return flat(values), np.asarray(rows).reshape(*values.shape, -1)

        p = points_of(rng, np.float64(x), low, high, eps)
        values, rows = see(p)
        # The steepest direction of each, both ways, and corners for the interval.
        fine = np.isfinite(rows).all((1, 2), keepdims=True)
        way = np.linalg.svd(np.where(fine, rows, 0.0))[2][:, 0].reshape(p.shape)
        step = 10.0 ** rng.integers(-4, 0)
        u, v = (into(rng, p + s * step * way, x, low, high, eps) for s in (1, -1))
        signs = np.sign(np.where(fine, rows, 0.0)[:, rng.integers(rows.shape[1])])
        turn = np.where(np.arange(len(p)) % 2, 1, -1)[:, None]
        ends = np.where((turn * signs).reshape(p.shape) > 0, box_high, box_low)
        (at_u, rows_u), (at_v, _), (at_ends, _) = map(see, (u, v, ends))
    every = np.concatenate([values, at_u, at_v, at_ends])
    every = every[np.isfinite(every).all(1)]
    room = 1e-9 * np.abs(every).max(initial=0)
    if (every < least - room).any() or (every > most + room).any():
        past = max((least - every).max(), (every - most).max())
        return f"a value is {past:.3g} outside of the interval"
    if not np.isfinite(output):
        return None
    rows = np.concatenate([rows, rows_u])
    rows = rows[np.isfinite(rows).all((1, 2))]
    if len(rows):
        slope = np.linalg.norm(rows, 2, axis=(1, 2)).max()
        if slope > output * (1 + 1e-9):
            return f"a slope is {slope:.9g}, the bound {output:.9g}"
        over = (spread(rows) - margins * (1 + 1e-9)).max()
        if over > 1e-12 * slope:
            return f"a slope of a margin is {over:.3g} above its bound"
    gaps = np.linalg.norm(flat(u) - flat(v), axis=1)
    rises = np.linalg.norm(at_u - at_v, axis=1)
    pairs = rng.permutation(len(p))
    gaps = np.append(gaps, np.linalg.norm(flat(p) - flat(p)[pairs], axis=1))
    rises = np.append(rises, np.linalg.norm(values - values[pairs], axis=1))
    seen = np.isfinite(rises) & (gaps > 1e-9)
    noise = 1e-13 * np.abs(every).max(initial=0) + 1e-8  # from adding and subtracting 2^20
    over = (rises - output * gaps * (1 + 1e-4) - noise)[seen]
    if (over > 0).any():
        worst = (rises[seen] / gaps[seen]).max()
        return f"a quotient is {worst:.9g}, the bound {output:.9g}"
    return ""


def examine(seed, family=None):
    """ "held", "infinite", "refused", or how the bounds of a program are contradicted."""
    f, shape = program(seed, family)
    draw = Draw(seed + 10**6)
    low, high = draw.one((0.0, 1.0), (-2.0, 3.0))
    x = draw.rng.uniform(low, high, shape)
    x = np.float64(np.float32(draw.one(x, np.round(4 * x) / 4)))
    eps = draw.one(np.inf, 0.3, 0.02)
    try:
        found = contradiction(f, x, low, high, eps, draw.rng)
    except ValueError as error:
        if not str(error).startswith("No bound for"):
            raise
        return "refused"
    return "infinite" if found is None else found or "held"


@pytest.mark.parametrize("seed", [*FOUND, *range(PROGRAMS)])
def test_no_point_contradicts_the_bounds_of_a_random_program(seed, record_property):
    record_property("bounds", found := examine(seed))
    assert found in {"held", "infinite"}


@pytest.mark.parametrize("seed", range(PROGRAMS // 2))
def test_no_point_contradicts_the_bounds_of_what_is_one_map_of_several_values(
    seed, record_property
):
    record_property("bounds", found := examine(seed, joint))
    assert found in {"held", "infinite"}


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_no_point_contradicts_the_bounds_of_what_networks_are_written_with(seed, record_property):
    record_property("bounds", found := examine(seed, common))
    assert found in {"held", "infinite"}


def primitives(jaxpr):
    """The names in a jaxpr and in those within it."""
    within = [
        getattr(leaf, "jaxpr", leaf)
        for equation in jaxpr.eqns
        for leaf in jax.tree.leaves(equation.params)
        if hasattr(getattr(leaf, "jaxpr", leaf), "eqns")
    ]
    own = {equation.primitive.name for equation in jaxpr.eqns}
    return own.union(*map(primitives, within))


def test_the_programs_that_are_drawn_have_every_primitive_with_a_rule():
    drawn = {"copy", "copy_p", "name"}  # which move no value, and are not drawn
    for seed in range(100):
        for family in (None, joint, common):
            f, shape = program(seed, family)
            drawn |= primitives(jax.make_jaxpr(batched(f))(jnp.zeros((1, *shape))).jaxpr)
    assert {*RULES, *REWRITTEN} <= drawn


def test_copies_and_names_move_no_value():
    f = lambda x: 3 * checkpoint_name(jnp.copy(x), "kept")
    np.testing.assert_allclose(lipschitz(f, jnp.ones((1, 2))).output, 3, rtol=1e-5)
