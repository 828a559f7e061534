"""Every kind of function that can change is measured as it is at the call, then freed."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from lipreg import attacks, certificates, evaluation, tracing
from lipreg.certificates import smoothing
from lipreg.contracts import check_inputs
from lipreg.evaluation.cascade import Stage
from lipreg.evaluation.masking import masking_report
from lipreg.lipschitz import bounds, gradient_norms
from lipreg.norms import L2

KEY = jax.random.key(0)
X, Y = jnp.array([[0.6, 0.4], [0.9, 0.2]]), jnp.array([0, 0])
ONE = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
OTHER = np.array([[9.0, -3.0], [2.0, 1.0]], np.float32)


# Models whose weights w change in place: `f` is measured, `set` changes it.


class Closure:
    def __init__(self, w):
        self.set(w)
        self.f = lambda x: x @ self.w

    def set(self, w):
        self.w = jnp.asarray(w)


class InNumpy(Closure):
    def __init__(self, w):
        self.w = np.array(w)
        self.f = lambda x: x @ self.w

    def set(self, w):
        self.w[:] = w


class BoundMethod(Closure):
    def __init__(self, w):
        self.set(w)

    def forward(self, x):
        return x @ self.w

    @property
    def f(self):
        return self.forward


class Jitted(Closure):
    """The inner jit: jax does not trace it again."""

    def __init__(self, w):
        self.set(w)
        self.f = lambda x: jax.jit(lambda x: jax.nn.relu(x @ self.w))(x)


class InPartial(Closure):
    """Partly a pytree."""

    def __init__(self, w):
        self.set(w)
        self.f = Partial(lambda scale, x: scale * (x @ self.w), jnp.float32(1.0))


class OwnDerivative(Closure):
    """A derivative rule that holds the weights as well."""

    def __init__(self, w):
        self.set(w)
        product = jax.custom_vjp(lambda x: x @ self.w)
        product.defvjp(lambda x: (x @ self.w, None), lambda _, g: (g @ self.w.T,))
        self.f = lambda x: product(x)


class AFloat(Closure):
    def __init__(self, w):
        self.w = np.array(w)
        shift = jnp.array([[1.0, 0.0]])
        self.f = lambda x: float(self.w[0, 0]) * x + float(self.w[1, 0]) * shift

    def set(self, w):
        self.w[:] = w


class Dataclass:
    @dataclasses.dataclass
    class Model:
        w: jax.Array

        def __call__(self, x):
            return x @ self.w

    def __init__(self, w):
        self.f = self.Model(jnp.asarray(w))

    def set(self, w):
        self.f.w = jnp.asarray(w)

    @property
    def w(self):
        return self.f.w


class Module:
    class Model(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.layer(x)

    def __init__(self, w):
        self.f = self.Model()
        self.set(w)

    def set(self, w):
        self.f.layer.kernel[...] = jnp.asarray(w)

    @property
    def w(self):
        return self.f.layer.kernel[...]


MODELS = (
    Closure,
    InNumpy,
    BoundMethod,
    Jitted,
    InPartial,
    OwnDerivative,
    AFloat,
    Dataclass,
    Module,
)

PGD = Stage("pgd", lambda key, f, x, y, eps, round_: attacks.pgd(key, f, x, y, eps, steps=3))
SQUARE = lambda f: lambda x: (f(x) ** 2).sum(1)
MEASURES = {
    "lipschitz": lambda f: bounds.lipschitz(f, X)[:2],
    "interval": lambda f: bounds.interval(f, X, X + 0.1),
    "gradient norms": lambda f: gradient_norms(f, X),
    "local radius": lambda f: certificates.margin_local(f, X, Y).radius,
    "global radius": lambda f: (
        certificates.margin_lipschitz(f, X, Y, constant=bounds.lipschitz(f, X)).radius
    ),
    "interval radius": lambda f: certificates.interval_bound(f, X, Y).radius,
    "curvature": lambda f: certificates.largest_curvature(KEY, SQUARE(f), X),
    "smoothing": lambda f: smoothing.predict(KEY, f, X, sigma=0.3, n=64),
    "pgd": lambda f: attacks.pgd(KEY, f, X, Y, 0.1, steps=3),
    "cascade": lambda f: evaluation.cascade(KEY, f, X, Y, 0.3, [PGD], norm=L2).x_adv,
    "fingerprint": lambda f: [np.array(a) for a in tracing.captured(f, X)],
    "masking report": lambda f: [
        check.value for check in masking_report(KEY, f, X, Y, 0.3, steps=2, queries=2)
    ],
    "evaluate": lambda f: evaluation.evaluate(
        f, X, Y, protocol="deck", radii={"l2": (0.1,)}
    ).nearest("l2"),
}
EVERY_KIND = ("cascade", "fingerprint")


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), a, b))


@pytest.mark.parametrize("name", MEASURES)
def test_a_changed_model_is_measured_as_it_is_and_its_weights_are_free_afterwards(name):
    """In place, and as a second object of the class; the answer is that of a newly made model."""
    measure = MEASURES[name]
    for kind in MODELS if name in EVERY_KIND else (Closure,):
        model = kind(ONE)
        before = measure(model.f)
        model.set(OTHER)
        changed, new = measure(model.f), kind(OTHER)
        assert equal(changed, measure(new.f)), kind
        assert not equal(changed, before) or name in ("smoothing", "pgd", "masking report"), kind
        if name != "pgd":  # eager: jax keeps what a loop jits inside
            old = weakref.ref(model.w)
            del model, new
            gc.collect()
            assert old() is None, kind


def test_what_only_its_weights_tell_apart_is_compiled_once():
    tracing._run_of.cache_clear()
    for w in (ONE, OTHER, 2 * OTHER):
        for kind in (Closure, BoundMethod, Dataclass):
            evaluation.cascade(KEY, kind(w).f, X, Y, 0.3, [PGD], norm=L2)
    assert tracing._run_of.cache_info().misses == 2  # the clean images, and the attack
    evaluation.cascade(KEY, lambda x: jnp.sin(x) @ ONE, X, Y, 0.3, [PGD], norm=L2)
    assert tracing._run_of.cache_info().misses == 4


def test_programs_that_differ_in_a_number_a_rule_or_a_type_are_told_apart():
    """The same functions with another number, another derivative rule, or a narrower type."""

    def ruled(slope):
        f = jax.custom_vjp(lambda x: x)
        f.defvjp(lambda x: (x, None), lambda _, g: (slope * g,))
        return f

    slope = lambda f, x: jax.grad(lambda x: (f(x) ** 2).sum())(x)
    for f, expected in (
        (lambda x: 2 * x, 8 * X),
        (lambda x: 3 * x, 18 * X),
        (ruled(1.0), 2 * X),
        (ruled(-1.0), -2 * X),
    ):
        model = tracing.snapshot(f)
        found = tracing.compiled(model, slope)(model, X)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    model = tracing.snapshot(lambda x: x)
    double = tracing.compiled(model, lambda f, x: f(x) + f(x))
    assert double(model, X.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert double(model, X).dtype == jnp.float32


def test_a_program_that_calls_back_is_compiled_for_its_call_alone():
    seen, kept = [], tracing._run_of.cache_info().currsize
    model = tracing.snapshot(lambda x: x)

    def watched(f, x):
        jax.debug.callback(lambda x: seen.append(len(x)), x)
        return f(x)

    run = tracing.compiled(model, watched)
    run(model, X)
    run(model, X)
    jax.effects_barrier()
    assert seen == [2, 2]
    assert tracing._run_of.cache_info().currsize == kept


def test_a_model_with_more_classes_than_before_is_seen():
    widths = [2]
    f = lambda x: x[:, : widths[0]]
    x = jnp.full((1, 4), 0.5)
    check_inputs(f, x, jnp.array([1]), (0.0, 1.0))
    widths[0] = 4
    check_inputs(f, x, jnp.array([3]), (0.0, 1.0))


def test_an_evaluation_with_a_folder_notices_other_weights(tmp_path):
    """Even where they change no logit of the evaluated images."""
    model = Closure(ONE)
    f = lambda x: jnp.maximum(model.f(x), 0.0)
    options = {"protocol": "deck", "radii": {"l2": (0.1,)}, "folder": tmp_path, "checked": 2}
    evaluation.evaluate(f, X, Y, **options)
    evaluation.evaluate(f, X, Y, **options)
    model.set(OTHER)
    with pytest.raises(ValueError, match="another model"):
        evaluation.evaluate(f, X, Y, **options)
