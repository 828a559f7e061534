"""Random small programs of one example, from all primitives that proved bounds have rules for.

`program(seed)` draws shapes, constants and operations first, so that it returns a pure function,
which computes in the precision of its argument, with float32 constants.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MOST = 48  # entries of a value


class Draw:
    """Random choices. Constants are often 0, equal, tiny or huge, and kinks often on a grid."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def one(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def int(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def ints(self, low, high, n):
        return tuple(self.int(low, high) for _ in range(n))

    def kink(self):
        usual = (0.0, 0.5, -0.5, 0.25, 1.0, float(np.float32(self.rng.normal())))
        return self.one(*usual, 0.0, 0.5)

    def scale(self):
        return self.one(1.0, -1.0, 2.0, -0.5, 0.0, 1e-11, 1e12, 3.0, 0.1, 1.0, 1.0)

    def array(self, *shape):
        a = self.rng.normal(size=shape) * self.one(1.0, 0.3, 1.0)
        kind = self.int(0, 5)
        if kind == 0:
            a = a * (self.rng.random(shape) < 0.5)
        elif kind == 1:
            a = np.round(a)
        elif kind == 2:
            a = np.abs(a)
        elif kind == 3 and a.size:
            a = np.ones(shape) * a.ravel()[0]
        return np.float32(a)


def const(x, a):
    return jnp.asarray(np.asarray(a, np.float32), x.dtype)


def like(x, a):
    return jnp.broadcast_to(const(x, a), x.shape)


# Elementwise operations. Each draws its constants and returns a function.


def elementwise(draw):
    k, s = draw.kink(), draw.scale()
    away = 0.1 + abs(draw.kink())
    p = draw.one(2, 3, 4, 5)
    choices = [
        lambda x: lax.max(x, like(x, k)),
        lambda x: lax.min(like(x, k), x),
        lambda x: jnp.maximum(like(x, 0.0), x),
        lambda x: lax.clamp(const(x, k), x, const(x, k + 1)),
        lambda x: jnp.clip(x, const(x, -abs(k)), const(x, 1.0)),
        jnp.abs,
        jnp.sign,
        lambda x: jnp.sign(jnp.abs(x) + like(x, away)),
        lambda x: x + like(x, k),
        lambda x: like(x, k) - x,
        lambda x: x * like(x, s),
        lambda x: x / like(x, s or 7.0),
        lambda x: like(x, k) / (jnp.abs(x) + like(x, away)),
        lambda x: like(x, 1.0) / (x + like(x, 3 * away)),
        lambda x: x * const(x, draw_array(x)),
        jnp.negative,
        jnp.square,
        lambda x: lax.integer_pow(x, p),
        lambda x: jnp.exp(-jnp.abs(x)),
        jnp.exp,
        jnp.expm1,
        lambda x: jnp.log(jnp.abs(x) + like(x, away)),
        lambda x: jnp.log1p(jnp.square(x)),
        lambda x: jnp.sqrt(jnp.abs(x) + like(x, away)),
        lambda x: jnp.sqrt(jnp.abs(x)),
        lambda x: lax.rsqrt(jnp.square(x) + like(x, away)),
        jnp.tanh,
        lambda x: jnp.tanh(x * like(x, 400.0)),
        jax.nn.sigmoid,
        lax.erf,
        lax.erfc,
        lax.stop_gradient,
        jax.nn.silu,
        jax.nn.gelu,
        jax.nn.softplus,
        jax.nn.elu,
        jax.nn.leaky_relu,
        jax.nn.hard_tanh,
        lambda x: x * jnp.square(jnp.sin(const(x, k)) * x),
        lambda x: jnp.where(x > const(x, k), x, const(x, k)),
        lambda x: jnp.where(x > const(x, k), x - const(x, k), jnp.zeros_like(x)),
        lambda x: jnp.where(x - const(x, k) > 0, x - const(x, k), jnp.zeros_like(x)),
        lambda x: jnp.where(x >= const(x, k), x * like(x, 2.0), x + const(x, k)),
        lambda x: jnp.where(const(x, k) < x, like(x, s), like(x, 1.0)),
        lambda x: jnp.where(jnp.maximum(const(x, 0.0), x) > 0, x + like(x, k), jnp.zeros_like(x)),
        lambda x: jnp.where(x * const(x, 0.0) > 0, x, 5 * x),
        lambda x: jnp.where(jnp.abs(x) <= const(x, 1.0), x * x, 2 * jnp.abs(x) - 1),
        lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)),
        lambda x: jnp.where(jnp.isnan(x), jnp.zeros_like(x), x),
        lambda x: const(x, 1e12) * jnp.maximum(const(x, 0.0), const(x, 1e-11) * (x - const(x, k))),
        lambda x: (x + const(x, 2.0**20)) - const(x, 2.0**20),
        lambda x: x * const(x, 2.0**24 + 2) - x * const(x, 2.0**24),
    ]
    seed = draw.int(0, 10**6)
    draw_array = lambda x: Draw(seed).array(*x.shape)
    return choices[draw.int(0, len(choices) - 1)]


# Operations that move entries.


def move(draw, shape):
    n = len(shape)
    axis = draw.int(0, n - 1) if n else 0
    side = shape[axis] if n else 1
    options = [
        lambda x: x.reshape(-1),
        lambda x: x[None],
        lambda x: jnp.tile(x, draw_reps),
        lambda x: jnp.broadcast_to(x[None], (3, *x.shape)),
        lambda x: jnp.squeeze(x[None], 0),
    ]
    draw_reps = draw.ints(1, 2, max(n, 1))
    if n:
        order = tuple(int(i) for i in draw.rng.permutation(n))
        start = draw.int(0, side - 1)
        stride = draw.int(1, 3)
        pads = tuple(
            (draw.int(-1, 2) if s > 2 else draw.int(0, 2), draw.int(0, 2), draw.int(0, 1))
            for s in shape
        )
        indices = np.asarray(draw.ints(-side, side - 1, draw.int(1, 4)), np.int32)
        fill = draw.kink()
        starts = draw.ints(-1, 3, n)
        sizes = tuple(draw.int(1, s) for s in shape)
        shift = draw.int(-2, 2)
        parts = draw.int(1, side)
        options += [
            lambda x: x.transpose(order),
            lambda x: lax.rev(x, (axis,)),
            lambda x: lax.slice_in_dim(x, start, None, stride, axis),
            lambda x: lax.pad(x, const(x, fill), pads),
            lambda x: jnp.take(x, indices, axis),
            lambda x: jnp.moveaxis(jnp.moveaxis(x, axis, 0)[indices], 0, axis),
            lambda x: lax.dynamic_slice(x, starts, sizes),
            lambda x: jnp.roll(x, shift, axis),
            lambda x: jnp.repeat(x, 2, axis),
            lambda x: jnp.concatenate([x, const(x, np.ones(x.shape)), x], axis),
            lambda x: jnp.stack([x, lax.rev(x, (axis,))], axis),
            lambda x: jnp.concatenate(jnp.array_split(x, parts, axis)[::-1], axis),
            lambda x: reduce(
                jnp.add, [lax.slice_in_dim(x, i, i + 1, 1, axis) for i in range(side)]
            ),
        ]
    return draw.one(*options)


# Operations that mix entries.


def reduction(draw, shape):
    axes = tuple(i for i in range(len(shape)) if draw.int(0, 1))
    kept = draw.one(True, False)
    op = draw.one(jnp.sum, jnp.mean, jnp.max, jnp.min)
    soft = draw.one(jax.nn.softmax, jax.nn.log_softmax, jax.nn.standardize)
    lse = lambda x: jax.nn.logsumexp(x, axes or None, keepdims=kept)
    norm = lambda x: x / jnp.sqrt(jnp.square(x).sum(axes, keepdims=True) + const(x, 0.5))
    plain = lambda x: op(x, axes, keepdims=kept)
    if not shape:
        return plain
    return draw.one(plain, plain, plain, lambda x: soft(x, axis=-1), lse, norm)


def window(draw, shape):
    n = len(shape)
    sides = tuple(draw.int(1, min(4, s + 1)) for s in shape)
    strides, holes = draw.ints(1, 3, n), draw.ints(1, 3, n)
    base = draw.ints(1, 2, n)
    pads = tuple((draw.int(0, 3), draw.int(0, 3)) for _ in shape)
    reducer, start = draw.one((lax.add, 0.0), (lax.max, -np.inf), (lax.min, np.inf))
    return lambda x: jnp.clip(
        lax.reduce_window(
            x, np.asarray(start, x.dtype), reducer, sides, strides, pads, base, holes
        ),
        const(x, -50.0),
        const(x, 50.0),
    )


def dense(draw, shape):
    n = len(shape)
    axes = [i for i in range(n) if draw.int(0, 1)] or ([n - 1] if n else [])
    order = [int(i) for i in draw.rng.permutation(len(axes))]
    axes = [axes[i] for i in order]
    free = draw.ints(1, 4, draw.int(0, 2))
    summed = [shape[i] for i in axes]
    where = [int(i) for i in draw.rng.permutation(len(summed) + len(free))]
    dims = [(*summed, *free)[i] for i in where]
    w_axes = [where.index(i) for i in range(len(summed))]
    w = draw.array(*dims)
    if draw.one(True, False):
        return lambda x: lax.dot_general(x, const(x, w), ((axes, w_axes), ((), ())))
    return lambda x: lax.dot_general(const(x, w), x, ((w_axes, axes), ((), ())))


def convolution(draw, shape):
    """The value as the image `[N, C, *sides]`, or as the kernel `[O, I, *sides]`."""
    spatial = draw.int(1, 2)
    size = int(np.prod(shape))
    sides = draw.one(*[s for s in _factors(size, spatial) if max(s) <= 8] or [(size,) * 0])
    if len(sides) != spatial:
        return None
    rest = size // int(np.prod(sides))
    batch = draw.one(*[d for d in range(1, rest + 1) if rest % d == 0])
    first, second = batch, rest // batch
    image = draw.one(True, True, False)
    k = draw.ints(1, 3, spatial) if image else tuple(s + draw.int(0, 3) for s in sides)
    groups = draw.one(1, *[d for d in (2, 3) if second % d == 0 and image])
    batches = draw.one(1, 1, *[d for d in (2,) if first % d == 0 and groups == 1 and image])
    if image:
        w = draw.array(groups * batches * draw.int(1, 2), second // groups, *k)
    else:
        w = draw.array(draw.int(1, 2), second, *k)
    options = {
        "window_strides": draw.ints(1, 3, spatial),
        "padding": [(draw.int(-1, 3), draw.int(0, 3)) for _ in range(spatial)],
        "lhs_dilation": draw.ints(1, 2, spatial),
        "rhs_dilation": draw.ints(1, 3, spatial),
        "feature_group_count": groups,
        "batch_group_count": batches,
    }

    def apply(x):
        v, other = x.reshape(first, second, *sides), const(x, w)
        return lax.conv_general_dilated(*((v, other) if image else (other, v)), **options)

    return apply


def _factors(n, parts):
    if parts == 1:
        return [(n,)] + [(d,) for d in range(1, n) if n % d == 0]
    return [(a, b) for a in range(1, n + 1) for b in range(1, n + 1) if n % (a * b) == 0]


def joint(draw, shape):
    """What is bounded as one map of several values: sorted pairs, rotations, residuals, tori."""
    n = len(shape)
    axis = draw.int(0, n - 1) if n else 0
    side = shape[axis] if n else 1
    if n == 0 or side < 2:
        return jnp.abs
    half = side // 2
    first = lambda x: lax.slice_in_dim(x, 0, half, 1, axis)
    second = lambda x: lax.slice_in_dim(x, half, 2 * half, 1, axis)
    even = lambda x: lax.slice_in_dim(x, 0, 2 * half, 2, axis)
    odd = lambda x: lax.slice_in_dim(x, 1, 2 * half, 2, axis)
    late = lambda x: lax.slice_in_dim(x, side - half, side, 1, axis)  # shares an entry if odd
    a, b = draw.one((first, second), (even, odd), (first, late), (first, first))
    s, k, act = draw.one(1.0, 2.0, -0.5), draw.kink(), draw.one(jax.nn.relu, jnp.tanh, jnp.abs)
    both = lambda *parts: jnp.concatenate(parts, axis)
    stacked = lambda *parts: jnp.stack(parts, axis)
    join = draw.one(both, both, stacked)
    w = draw.array(draw.int(1, 4), side)
    scale = draw.one(1.0, 0.5, 2.0, -1.0) / max(float(np.square(w).sum()), 0.1)
    off = draw.one(0.0, 0.0, 0.3)
    width, low = draw.int(1, min(side, 3)), draw.int(0, 2)
    kernel = draw.array(draw.int(1, 2), 1, width)
    q = draw.one(1, 1, 2, 3)  # a stride and a dilation of the input that leave the side as it is
    size = draw.one(
        lambda x: jnp.sqrt(jnp.square(x).sum(axis)), lambda x: jnp.linalg.norm(x, axis=axis)
    )

    def residual(x):
        v = jnp.moveaxis(x, axis, -1).reshape(-1, side)[:1]
        branch = act(v @ const(x, w).T + const(x, [[k]])) @ (const(x, w) + const(x, off))
        return v - like(branch, scale) * branch

    def torus(x):
        v = jnp.moveaxis(x, axis, -1).reshape(-1, 1, side)[:1]
        padded = jnp.pad(v, ((0, 0), (0, 0), (low % width, (width - 1 - low) % width)), mode="wrap")
        return lax.conv_general_dilated(padded, const(x, kernel), (1,), "VALID")

    def transposed(x):
        v = jnp.moveaxis(x, axis, -1).reshape(-1, 1, side)[:1]
        pads = [(low % width, width - 1 - low % width)]
        w = const(x, kernel)
        u = act(lax.conv_general_dilated(v, w, (q,), pads, (q,)) + like(const(x, 0.0), k))
        back = lax.rev(w, (2,)).swapaxes(0, 1)
        turned = [pads[0][::-1]] if off == 0.0 else pads
        return v - like(u[:, :1], 0.3) * lax.conv_general_dilated(u, back, (q,), turned, (q,))

    return draw.one(
        lambda x: join(jnp.maximum(a(x), b(x)), jnp.minimum(a(x), b(x))),
        lambda x: join(jnp.maximum(a(x), s * b(x)), jnp.minimum(s * b(x), a(x))),
        lambda x: join(jnp.maximum(-a(x), -b(x)), jnp.maximum(b(x), a(x)), a(x)),
        lambda x: join(jnp.where(a(x) > b(x), a(x), b(x)), jnp.where(a(x) > b(x), b(x), a(x))),
        lambda x: join(a(x) + b(x), jnp.abs(a(x) - b(x)), b(x) - a(x)),
        lambda x: join(act(x), act(-x)),
        lambda x: join(jax.nn.relu(x - k), x, jnp.minimum(x, k)),
        lambda x: join(x.max(axis, keepdims=True), x.min(axis, keepdims=True)),
        lambda x: jnp.sort(s * x, axis),
        lambda x: jnp.sort(act(x), axis),
        size,
        lambda x: jnp.sqrt(jnp.square(s * x + k).mean(axis) + const(x, 0.25)),
        residual,
        residual,
        torus,
        torus,
        transposed,
    )


def common(draw, shape):
    """What networks are written with besides: thresholds, powers, waves, loops, normalisations."""
    n = len(shape)
    axis = draw.int(0, n - 1) if n else 0
    side = shape[axis] if n else 1
    k, s = draw.kink(), draw.one(1.0, 3.0, -2.0, 0.5)
    t = abs(draw.one(k, 0.3, 0.07)) + draw.one(0.0, 0.01)
    p = draw.one(1.5, 0.5, 2.0, -1.0, -2.5, 3.0, 1.0, 0.0)
    away = 0.1 + abs(draw.kink())
    inside = lambda x: jnp.logical_and(x > const(x, -t), x < const(x, t))
    simple = [
        lambda x: jnp.where(x > const(x, t), x, like(x, t)),
        lambda x: jnp.where(jnp.abs(x) > const(x, t), x - const(x, t) * jnp.sign(x), 0 * x),
        lambda x: jnp.where(x > const(x, t), x - t, jnp.where(x < const(x, -t), x + t, 0 * x)),
        lambda x: jnp.where(inside(x), x * x, const(x, t) * (2 * jnp.abs(x) - const(x, t))),
        lambda x: jnp.where(~inside(x) | (x == k), x, 0 * x),
        lambda x: jnp.where(x == const(x, k), like(x, k), x),
        lambda x: jnp.where(x != const(x, k), jnp.tanh(x), like(x, np.tanh(k))),
        lambda x: jnp.where(jnp.maximum(x, const(x, t)) == const(x, t), 0 * x, x - t),
        lambda x: x * (x > 0).astype(x.dtype),
        lambda x: (x > const(x, k)).astype(x.dtype),
        lambda x: jnp.abs(x) ** const(x, p),
        lambda x: (jnp.abs(x) + away) ** const(x, p),
        lambda x: x ** const(x, draw_whole),
        lambda x: (x + const(x, 5.0)) ** -2,
        lambda x: lax.integer_pow(jnp.abs(x) + away, -3),
        lambda x: jnp.sin(s * x + k),
        lambda x: jnp.cos(const(x, 30.0) * x),
        lambda x: x + jnp.square(jnp.sin(s * x)) / s,
        lambda x: jnp.arctan(s * x),
        lambda x: jnp.arcsinh(s * x),
        lambda x: jnp.exp2(-jnp.abs(x)),
        lambda x: jnp.log1p(jnp.exp(s * x)),
        lambda x: 1 / (1 + jnp.exp(-s * x)),
        lambda x: jnp.tanh(jnp.exp(s * x) - k),
    ]
    draw_whole = float(draw.int(-3, 4))
    if n == 0 or side < 2:
        return draw.one(*simple)
    w = draw.array(side, side)
    turns, back = draw.int(0, 3), draw.one(True, False)
    act = draw.one(jnp.tanh, jax.nn.relu, jnp.abs)
    few = np.asarray(draw.rng.permutation(side)[: draw.int(1, side)], np.int32)
    axes = tuple({axis, draw.int(0, n - 1)})
    sums = lambda x: jnp.square(x).sum(axes, keepdims=True)
    mean = lambda x: x.mean(axes, keepdims=True)
    gain = draw.one(1.0, -2.0, draw.array(*shape))
    parts = draw.one(*[d for d in range(1, side + 1) if side % d == 0])
    rows = lambda x: jnp.moveaxis(x, axis, -1)

    def loop(x):
        step = lambda i, v: act(v @ const(x, w) + const(x, k) * jnp.asarray(i, x.dtype))
        return lax.fori_loop(0, turns, step, rows(x))

    def scan(x):
        step = lambda c, v: (act(c + v), c - s * v)
        last, all_of_them = lax.scan(step, 0 * jnp.take(x, 0, axis), jnp.moveaxis(x, axis, 0))
        return jnp.concatenate([last[None], all_of_them])

    def grouped(x):
        v = rows(x).reshape(-1, parts, side // parts)
        u = (v - v.mean(2, keepdims=True)) * lax.rsqrt(v.var(2, keepdims=True) + away)
        return u.reshape(rows(x).shape) * const(x, s)

    mixed = [
        loop,
        scan,
        lambda x: lax.cumsum(x, axis, back),
        lambda x: x.at[(slice(None),) * axis + (few,)].set(const(x, k), unique_indices=True),
        lambda x: (
            like(x, k)
            .at[(slice(None),) * axis + (few,)]
            .set(jnp.take(x, jnp.arange(len(few)), axis), unique_indices=True)
        ),
        lambda x: x.at[(slice(None),) * axis + (few // 2,)].add(s * jnp.take(act(x), few, axis)),
        lambda x: lax.cond(const(x, k) > 0, jnp.tanh, lambda x: 2 * x, x),
        lambda x: jnp.einsum("...i,...ij->...j", rows(x), const(x, draw_blocks)),
        lambda x: jax.nn.softmax(s * x + k, axes),
        lambda x: jax.nn.log_softmax(s * x, axes),
        lambda x: jax.nn.logsumexp(s * x, axes, keepdims=back),
        lambda x: x - jax.nn.logsumexp(x, axes, keepdims=True),
        lambda x: x - s * jax.nn.logsumexp(x, axis, keepdims=True),
        lambda x: jnp.exp(x) / jnp.exp(x).sum(axis, keepdims=True),
        lambda x: jnp.exp(x - lax.rev(x, (axis,))) / jnp.exp(x).sum(axes, keepdims=True),
        lambda x: x * const(x, gain) / jnp.sqrt(sums(x) + const(x, away)),
        lambda x: x * lax.rsqrt(sums(x) / s**2 + const(x, away)) * const(x, gain),
        lambda x: x / (jnp.sqrt(sums(x)) + const(x, away)),
        lambda x: x / jnp.maximum(jnp.sqrt(sums(x)), const(x, away)),
        lambda x: x / (sums(x) + const(x, away)),
        lambda x: x * lax.rsqrt(sums(x) + const(x, 0.01 + np.abs(gain) * np.ones(x.shape))),
        lambda x: x * jnp.sqrt(sums(x)),
        lambda x: (x - mean(x)) * lax.rsqrt(x.var(axes, keepdims=True) + away) * const(x, gain),
        lambda x: (x - mean(x)) / jnp.sqrt(mean(x * x) - jnp.square(mean(x)) + away),
        lambda x: (x - s * mean(x)) / jnp.sqrt(mean(x * x) - s * jnp.square(mean(x)) + away),
        lambda x: lax.rev(x, (axis,)) / jnp.sqrt(sums(x) + const(x, away)),
        lambda x: jax.nn.standardize(x, axes, epsilon=away),
        grouped,
    ]
    draw_blocks = draw.array(*rows(np.zeros(shape)).shape, draw.int(1, 3))
    return draw.one(*mixed) if draw.int(0, 2) else draw.one(*simple)


def platforms(draw):
    one, other = elementwise(draw), elementwise(draw)
    same = lambda x: x + x
    return draw.one(
        lambda x: lax.platform_dependent(x, cpu=one, default=other),
        lambda x: lax.platform_dependent(x, cpu=same, default=lambda x: 2 * x),
        lambda x: lax.platform_dependent(x, cpu=lambda x: 9 * x, default=lambda x: x),
    )


PAIRS = (jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, jnp.minimum)
PAIRS += (lambda a, b: a / (jnp.abs(b) + const(b, 0.5)), lambda a, b: a * jax.nn.sigmoid(b))


def operations(draw, x, family):
    """`[(function, indices of its arguments)]` of one program on values like x."""
    values, made = [x], []

    def add(f, *indices):
        try:
            out = jax.eval_shape(f, *(values[i] for i in indices))
        except (TypeError, ValueError, ZeroDivisionError):
            return
        if 0 < out.size <= MOST and out.ndim <= 5:
            values.append(out)
            made.append((f, indices))

    for _ in range(draw.int(1, 6)):
        i = draw.one(len(values) - 1, len(values) - 1, draw.int(0, len(values) - 1))
        shape = values[i].shape
        same = [j for j, v in enumerate(values) if v.shape == shape]
        kind = draw.int(0, 11)
        if family and draw.int(0, 1):
            add(family(draw, shape), i)
        elif kind < 4:
            add(elementwise(draw), i)
        elif kind < 5:
            add(draw.one(*PAIRS), i, draw.one(*same))
        elif kind < 7:
            add(move(draw, shape), i)
        elif kind < 8:
            add(reduction(draw, shape), i)
        elif kind < 9:
            add(window(draw, shape), i)
        elif kind < 10:
            add(dense(draw, shape), i)
        elif kind < 11:
            f = convolution(draw, shape)
            if f:
                add(f, i)
        elif draw.int(0, 2) == 0:
            add(platforms(draw), i)
    return made


def program(seed, family=None):
    """A function of one example, `[...] -> [K]`, and the example's shape.

    Half of its operations are of the family, which is `joint` or `common`, if there is one.
    """
    draw = Draw(seed)
    shape = draw.one((1,), (2,), (5,), (6,), (2, 3), (3, 4), (4, 4), (4, 4, 2), (12,))
    made = operations(draw, jax.ShapeDtypeStruct(shape, np.float32), family)

    def f(x):
        values = [x]
        for g, indices in made:
            values.append(g(*(values[i] for i in indices)))
        return values[-1].reshape(-1)

    return f, shape


def batched(f):
    """The function of one example as one of a batch, which bounds expect."""
    return partial(lambda f, x: f(x[0])[None], f)
