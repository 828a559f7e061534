"""How fast minimisers of `E_n l(f, u0) + lam max(Lip(f) - L0, 0)` converge (1808.09540).

An experiment `(config, progress) -> Study` measures at several n, each time on `config.repeats`
independent samples. `config.reference` points stand for the manifold where a supremum is taken.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from lipreg import lipschitz, losses, models, objectives, optimizers, training
from lipreg.runs.config import Config
from lipreg.theory import convergence
from lipreg.theory.convergence import Manifold, covering_radius
from lipreg.theory.interpolation import extend, minimise
from lipreg.theory.study import Case, Curve, Progress, Study, check, compare, measure

__all__ = ["clean", "covering", "discrepancy", "noisy", "off_manifold"]


def _cells(m: int, per_axis: int) -> np.ndarray:
    """The centres of `per_axis^m` equal cells of the cube, `[per_axis^m, m]`."""
    axes = np.meshgrid(*[(np.arange(per_axis) + 0.5) / per_axis] * m, indexing="ij")
    return np.stack(axes, -1).reshape(-1, m)


def covering(config: Config, progress: Progress = iter) -> Study:
    """`|Id - sigma_n|_inf <= C (t log n / n)^{1/m}`, m of the manifold (Lemma 2.9, 1808.09540).

    Random points on cubes, a circle, a sphere and a roll in 20 dimensions; grids on the cubes,
    where the radius is `sqrt(m) / (2 n^{1/m})`.
    """
    check(config)
    manifolds = {f"cube, m = {m}": convergence.cube(m) for m in (1, 2, 3)} | {
        "circle, m = 1, d = 2": convergence.circle(),
        "sphere, m = 2, d = 3": convergence.sphere(),
        "Swiss roll, m = 2, d = 20": convergence.swiss_roll(jax.random.key(config.seed)),
    }

    def case(manifold: Manifold) -> Case:
        sample = jax.jit(manifold.sample, static_argnums=1)
        reference = manifold.reference(max(2, round(config.reference ** (1 / manifold.dimension))))
        return lambda key, n: {"radius": covering_radius(sample(key, n), reference)}

    cases = {name: case(manifold) for name, manifold in manifolds.items()}
    measured = measure(config, config.sizes, cases, progress)
    curves = {
        name: Curve(f"covering radius, m = {m}", config.sizes, values, -1 / m, logarithm=True)
        for (name, (m, _)), values in zip(manifolds.items(), measured.values(), strict=True)
    }
    powers = (2**6, 2**12, 2**18)  # of which square and cube roots are whole
    for m in (1, 2, 3):
        corners = convergence.cube(m).reference(2)  # nothing is farther from a grid of centres
        radii = [[covering_radius(_cells(m, round(n ** (1 / m))), corners)] for n in powers]
        curves[f"grid, m = {m}"] = Curve("covering radius, grids", powers, np.array(radii), -1 / m)
    sentences = [
        "The slope follows the dimension m of the manifold, not d of the space around it.",
        "Random points are fitted in n / log n; grids have no logarithm.",
        f"About {config.reference} points stand for each manifold: the radii are too small by the "
        "covering radius of these at most.",
    ]
    return Study(curves, sentences + compare(curves))


def _labels(x: ArrayLike) -> np.ndarray:
    """`u0 = 1/2 + 2/5 mean_i sin(2 pi x_i)` of x `[n, m]`, `[n]` in [0.1, 0.9], in float64."""
    return 0.5 + 0.4 * np.sin(2 * np.pi * np.asarray(x, np.float64)).mean(1)


def _constant(m: int) -> float:
    """`Lip(u0) = 4 pi / (5 sqrt(m))` in l_2, which its gradient has at 0."""
    return 0.8 * math.pi / math.sqrt(m)


@partial(jax.jit, static_argnames="steps")
def _train(
    key: Array, x: Array, u: Array, points: Array, *, lam: float, L0: float, steps: int
) -> tuple[Array, Array]:
    """A network with labels `(u, 1 - u)` in the simplex: its u at points, its largest gradient."""
    model = models.build("MLP", classes=2, widths=(64, 64), activation="silu")
    apply, tx = models.functional(model), optax.adam(optimizers.schedule("cosine", 0.01, steps))
    step = training.make_step(apply, objectives.lip_excess, tx, loss=losses.squared_l2)
    state = training.init(key, model.init(key, x[:1], False)["params"], {}, tx)
    batch = x, jnp.stack([u, 1 - u], 1)
    one = lambda _, state: step(state, {"lam": lam, "L0": L0}, batch)[0]
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        state = jax.lax.fori_loop(0, steps, one, state)
    f = lambda x: jax.nn.softmax(apply(state.params, {}, x, False)[0])
    return f(points)[:, 0], lipschitz.gradient_norms(f, points).max()


def clean(config: Config, progress: Progress = iter) -> Study:
    """`|u0 - f_n|_inf <= 2 L0 |Id - sigma_n|_inf <= C L0 (log n / n)^{1/m}` (Thm 2.7, 1808.09540).

    Exact minimisers for clean labels on [0, 1]^m: the lowest, the highest and their midpoint. And
    a network trained on the functional, which need not be one.
    """
    check(config)
    cubes = {f"m = {m}": m for m in (1, 2)}
    points = {m: _cells(m, max(2, round(config.reference ** (1 / m)))) for m in (1, 2)}

    def errors(m: int, name: str, values: Array) -> dict[str, float]:
        error = abs(np.asarray(values, np.float64) - _labels(points[m]))
        return {f"sup error, {name}": error.max(), f"mean squared error, {name}": (error**2).mean()}

    def exact(m: int, key: Array, n: int) -> dict[str, float]:
        x, L0 = convergence.cube(m).sample(key, n), _constant(m)
        lower, upper = (extend(x, _labels(x), L0, side=s)(points[m]) for s in ("lower", "upper"))
        bound = {"sup error, bound": 2 * L0 * covering_radius(x, points[m])}
        middle = errors(m, "midpoint", (lower + upper) / 2)
        return errors(m, "lower", lower) | middle | errors(m, "upper", upper) | bound

    def trained(m: int, key: Array, n: int) -> dict[str, float]:
        x = convergence.cube(m).sample(key, n)
        u, at = (jnp.asarray(a, jnp.float32) for a in (_labels(x), points[m]))
        values, lip = _train(key, x, u, at, lam=config.lam, L0=_constant(m), steps=config.steps)
        return errors(m, "network", values) | {"lip": float(lip)}

    measured, nets = (
        measure(config, sizes, {row: partial(case, m) for row, m in cubes.items()}, progress)
        for sizes, case in ((config.sizes, exact), (config.network_sizes, trained))
    )
    lips = {row: nets.pop((row, "lip")).max() for row in cubes}
    curves = {}
    for (row, quantity), values in (measured | nets).items():
        panel, name = quantity.split(", ")
        power = 1 if panel == "sup error" else 2
        curves[f"{panel}, {row}: {name}"] = (
            Curve(f"{panel}, {row}", config.network_sizes, values)
            if name == "network"
            else Curve(f"{panel}, {row}", config.sizes, values, -power / cubes[row], True)
        )
    in_n = {
        row: convergence.fit_rate(config.sizes, measured[row, "mean squared error, midpoint"]).slope
        for row in cubes
    }
    return Study(curves, _about_clean(measured, lips, in_n) + compare(curves))


def _about_clean(
    measured: dict[tuple[str, str], np.ndarray], lips: dict[str, float], in_n: dict[str, float]
) -> list[str]:
    # The extensions are rounded to float32, hence 1e-5.
    above = [
        measured[row, f"sup error, {side}"] > measured[row, "sup error, bound"] + 1e-5
        for row in lips
        for side in ("lower", "midpoint", "upper")
    ]
    x = np.linspace(0, 1, 11)[:, None]
    data_constant = lipschitz.of_data(x, np.sin(2 * np.pi * x[:, 0])).value
    each = lambda values: ", ".join(f"{value:.3g} for {row}" for row, value in values.items())
    return [
        f"Violations of the bound 2 L0 (covering radius): {np.sum(above)} of {np.size(above)}.",
        "The largest gradient of any network, an estimate from below, is "
        f"{each(lips)}; L0 is {each({row: _constant(int(row[-1])) for row in lips})}. A network is "
        "not the exact minimiser: the bound does not hold for it.",
        "Corollary 2.8 has exponent q/m, q = 2 for the squared error, in n / log n. The logarithm "
        f"is that of the worst point; in n alone the midpoint's slope is {each(in_n)}. Cross "
        "entropy is unbounded: it does not satisfy the corollary's growth condition.",
        "L0 is Lip(u0) here. That of the data can be less, and then the bound need not hold: "
        f"sin(2 pi x) on 11 equidistant points has {data_constant:.4g}, against "
        f"2 pi = {2 * np.pi:.4g}.",
    ]


def discrepancy(config: Config, progress: Progress = iter) -> Study:
    """`sup_{Lip(f) <= L} |E_n f - E f| <= C L (t log n / n)^{1/(m+2)}` (Lemma 2.12, 1808.09540).

    Exactly, as `L W_1`, for the uniform law on [0, 1]: there it is of order `n^{-1/2}`.
    """
    check(config)
    cube = convergence.cube(1)

    def case(key: Array, n: int) -> dict[str, float]:
        return {"": convergence.discrepancy(cube.sample(key, n)[:, 0], L=config.L)}

    values = measure(config, config.sizes, {"": case}, progress)["", ""]
    curves = {"L W_1": Curve("uniform discrepancy", config.sizes, values, -1 / 3, logarithm=True)}
    slope, low, high = convergence.fit_rate(config.sizes, values)
    constant = values[-1].mean() * math.sqrt(config.sizes[-1]) / config.L
    return Study(
        curves,
        [
            "Lemma 2.12 proves the exponent 1/(m+2) = 1/3 in n / log n, as a bound for every m. In "
            f"one dimension W_1 falls faster, as n^-1/2: in n the slope is {slope:.3g} "
            f"[{low:.3g}, {high:.3g}].",
            f"sqrt(n) W_1 is {constant:.3g} at n = {config.sizes[-1]}; its limit is that of the "
            f"Brownian bridge, sqrt(pi / 32) = {math.sqrt(math.pi / 32):.3g}.",
            *compare(curves),
        ],
    )


def noisy(config: Config, progress: Progress = iter) -> Study:
    """`u_n -> u*` uniformly, u* of `min E (f - E[y | x])^2 + lam (Lip f - L0)^+` (Theorem 2.11).

    (1808.09540; for the squared loss the noise adds a constant to the limit's functional.) On
    [0, 1], with Gaussian noise on the labels, and with labels u turned into 1 - u at random. u* is
    the exact minimiser on `config.limit` equal cells. With lam = 0 the limit is `E[y | x]` itself.
    """
    check(config)
    if config.flips > 1:
        raise ValueError(f"config.flips = {config.flips}; a probability is at most 1.")
    reference, grid = _cells(1, config.reference), _cells(1, config.limit)

    def minimiser(x: ArrayLike, y: ArrayLike, lam: float) -> np.ndarray:
        f = minimise(x, y, lam=lam, L0=config.L0)
        return np.asarray(extend(x, f.values, f.L)(reference), np.float64)

    def gaussian(key: Array, u: np.ndarray) -> np.ndarray:
        return u + config.noise * np.asarray(jax.random.normal(key, u.shape), np.float64)

    def flipped(key: Array, u: np.ndarray) -> np.ndarray:
        return np.where(jax.random.bernoulli(key, config.flips, u.shape), 1 - u, u)

    laws = {
        "gaussian noise": (gaussian, lambda u: u),
        "flipped labels": (flipped, lambda u: u + config.flips * (1 - 2 * u)),
    }
    limits = {
        name: (minimiser(grid, mean(_labels(grid)), config.lam), mean(_labels(reference)))
        for name, (_, mean) in laws.items()
    }

    def case(name: str, key: Array, n: int) -> dict[str, float]:
        key, own = jax.random.split(key)
        x = convergence.cube(1).sample(key, n)
        y = laws[name][0](own, _labels(x))
        return {
            f"lam = {lam:g}": abs(minimiser(x, y, lam) - limit).max()
            for lam, limit in zip((config.lam, 0.0), limits[name], strict=True)
        }

    measured = measure(config, config.sizes, {name: partial(case, name) for name in laws}, progress)
    curves = {
        f"{name}, {lam}": Curve(f"sup |u_n - u*|, {name}", config.sizes, values)
        for (name, lam), values in measured.items()
    }
    ends = [
        f"{k}: {c.values[0].mean():.3g} to {c.values[-1].mean():.3g}" for k, c in curves.items()
    ]
    return Study(
        curves,
        [
            f"From the first n to the last: {'; '.join(ends)}.",
            "The regularised minimiser converges (Theorem 2.11 has no rate). With lam = 0 it "
            "interpolates the noise, whose largest value does not fall with n.",
        ],
    )


def off_manifold(config: Config, progress: Progress = iter) -> Study:
    """Minimisers converge on M, and off it only subsequences of them (Theorem 2.11, 1808.09540).

    The lowest and the highest minimiser for `u0 = 2 x_1 x_2`, L0 = 2 = Lip(u0), on the unit circle.
    At its centre they tend to -1 and 1.
    """
    check(config)
    circle, L0 = convergence.circle(), 2.0
    reference = circle.reference(config.reference)
    square = 3 * (_cells(2, 20) - 0.5)

    def case(key: Array, n: int) -> dict[str, float]:
        x = circle.sample(key, n)
        u = 2 * np.asarray(x, np.float64).prod(1)
        lower, upper = (extend(x, u, L0, side=side) for side in ("lower", "upper"))
        apart = lambda points: float((upper(points) - lower(points)).max())
        slope = max(lipschitz.of_data(square, np.asarray(f(square))).value for f in (lower, upper))
        bound = 2 * L0 * covering_radius(x, reference)
        on, off = apart(reference), apart(np.zeros((1, 2)))
        return {"on the circle, largest": on, "bound": bound, "at its centre": off, "slope": slope}

    measured = measure(config, config.sizes, {"": case}, progress)
    slope = measured.pop(("", "slope")).max()
    curves = {
        name: Curve("upper - lower minimiser", config.sizes, values)
        if name == "at its centre"
        else Curve("upper - lower minimiser", config.sizes, values, -1.0, logarithm=True)
        for (_, name), values in measured.items()
    }
    on, off = (curves[name].values[-1] for name in ("on the circle, largest", "at its centre"))
    return Study(
        curves,
        [
            "A sequence that takes the lower and the upper minimiser in turn converges on the "
            f"circle (they differ by {on.max():.3g} at most at n = {config.sizes[-1]}) and not at "
            f"its centre (by {off.min():.4g} at least).",
            f"Both keep the constant: their largest slope between {len(square)} points of a square "
            f"around the circle is {slope:.7g}, of L0 = {L0:g}, in float32.",
            *compare(curves),
        ],
    )
