"""Properties of every attack, image by image, for unusual images and networks."""

import functools
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipreg import attacks
from lipreg.keys import example_keys
from lipreg.norms import L1, L2, LINF, wide

KEY = jax.random.key(0)
BATCH, PIXELS, CLASSES = 4, (4, 4, 1), 3
KEYS = example_keys(KEY, BATCH)
X = jax.random.uniform(jax.random.fold_in(KEY, 1), (BATCH, *PIXELS), minval=0.05, maxval=0.95)
normal = lambda i, *shape: jax.random.normal(jax.random.fold_in(KEY, 10 + i), shape)
W1, W2 = 0.5 * normal(0, 6, 16), normal(1, CLASSES + 1, 6)
# What is added to the logits: the last class is masked, or no class is.
NO_MASK = jnp.zeros((1, CLASSES + 1))
MASK = NO_MASK.at[0, CLASSES].set(-jnp.inf)
label = lambda value: getattr(value, "name", None)


def net(x, mask=NO_MASK):
    """Sums row by row, since the rounding of a matrix product depends on the batch's shape. The
    first pixel enters by a square root, whose slope at 0 is infinite."""
    x = wide(x).reshape(x.shape[0], 1, 16)
    root = jnp.sqrt(jnp.square(x[:, :, 0]))
    hidden = jnp.tanh((x * W1[None]).sum(2)) + root
    return (hidden[:, None] * W2[None, : mask.shape[1]]).sum(2) + mask


# The last image is misclassified.
Y = (net(X, MASK).argmax(1) + (jnp.arange(BATCH) == BATCH - 1).astype(jnp.int32)) % CLASSES
takes = lambda name: inspect.signature(getattr(attacks, name)).parameters

# Contracts need no strong attack, so there are fewer steps than by default.
SHORT = {
    "apgd": {"steps": 12, "restarts": 2},
    "basic_iterative": {"growths": 4, "bisections": 4},
    "boundary": {"steps": 40},
    "carlini_wagner": {"steps": 40, "searches": 3, "c": 0.1},
    "ddn": {"steps": 30},
    "deepfool": {"steps": 10},
    "ead": {"steps": 40, "searches": 3, "c": 0.1},
    "fab": {"steps": 8, "targets": 2},
    "fmn": {"steps": 40},
    "hopskipjump": {"steps": 3, "evaluations": 15},
    "log_barrier": {"outer": 3, "inner": 15},
    "square": {"queries": 40},
}
LEAST = {
    "basic_iterative": {"steps": 1, "growths": 1, "bisections": 1},
    "carlini_wagner": {"steps": 1, "searches": 1},
    "deepfool": {"steps": 1, "classes": 1, "refine": 0},
    "ead": {"steps": 1, "searches": 1},
    "fab": {"steps": 1, "classes": 1},
    "fgsm": {},
    "hopskipjump": {"steps": 1, "evaluations": 1, "starts": 1},
    "boundary": {"steps": 1, "starts": 1},
    "log_barrier": {"outer": 1, "inner": 1, "draws": 1},
    "square": {"queries": 1},
}


def serves(name, norm):
    try:
        jax.eval_shape(partial(run, name, norm, {}), KEYS, X, Y, 0.1)
    except ValueError as e:
        if "no form for the norm" not in str(e):
            raise
        return False
    return True


def run(name, norm, options, keys, x, y, eps, model=net):
    radius = {"eps": eps} if "eps" in takes(name) else {}
    attack = partial(getattr(attacks, name), norm=norm, **options, **radius)
    return attack(keys, model, x, y)


@functools.cache
def compiled(name, norm):
    """One program for each shape and type of the images."""
    options = SHORT.get(name, {})
    model = lambda mask: partial(net, mask=mask)
    return jax.jit(
        lambda keys, x, y, eps, mask=NO_MASK: run(name, norm, options, keys, x, y, eps, model(mask))
    )


def one_norm(name):
    return next(norm for norm in (L2, L1) if serves(name, norm))


MEMBERS = [(name, one_norm(name)) for name in attacks.__all__]
MEMBERS += [("apgd", L1), ("fmn", L1), ("square", LINF)]
each_member = pytest.mark.parametrize(("name", "norm"), MEMBERS, ids=label)
each_attack = pytest.mark.parametrize("name", attacks.__all__)


def radius(norm, scale=0.1):
    """The size of a step of `scale` in every pixel."""
    return scale * norm.size(jnp.ones((1, *PIXELS)))[0]


def inside(x_adv, x, norm, eps=jnp.inf):
    size = norm.size(wide(x_adv) - wide(x))
    return bool(((x_adv >= 0) & (x_adv <= 1)).all() & (size <= eps * (1 + 1e-5)).all())


@each_member
def test_an_image_is_attacked_alone_as_it_is_beside_others(name, norm):
    """Images that are broken at once, later and never, each with its own key."""
    eps = radius(norm) * jnp.array([0.1, 3.0, 1.0, 1.0])
    attack = compiled(name, norm)
    together = attack(KEYS, X, Y, eps)
    for row in range(BATCH):
        one = slice(row, row + 1)
        alone = attack(KEYS[one], X[one], Y[one], eps[one])
        np.testing.assert_allclose(alone, together[one], atol=1e-6)


@each_member
def test_an_entry_without_a_slope_costs_no_image(name, norm):
    x = X.at[:, 0, 0, 0].set(0.0)
    y = net(x).argmax(1)
    x_adv = compiled(name, norm)(KEYS, x, y, jnp.full(BATCH, radius(norm, 0.3)))
    assert inside(x_adv, x, norm)
    assert (net(x_adv).argmax(1) != y).mean() >= 0.5


# One decorator widens both types in all norms: float16 is tried on two attacks.
HALVES = [
    (name, one_norm(name), jnp.float16 if name in ("apgd", "deepfool") else jnp.bfloat16)
    for name in attacks.__all__
]


@pytest.mark.parametrize(("name", "norm", "dtype"), HALVES, ids=label)
def test_images_in_half_precision_are_attacked_in_single(name, norm, dtype):
    """The result has their type, lies in the ball as measured, and is misclassified as returned."""
    x = X.astype(dtype)
    y = net(x).argmax(1)
    x_adv = compiled(name, norm)(KEYS, x, y, jnp.full(BATCH, radius(norm, 0.3)))
    assert x_adv.dtype == dtype
    assert inside(x_adv, x, norm, radius(norm, 0.3) if "eps" in takes(name) else jnp.inf)
    assert (net(x_adv).argmax(1) != y).mean() >= 0.5


def test_bounds_that_half_precision_rounds_are_those_of_its_images():
    """White in MNIST's normalisation, 2.8215, is 2.828 in bfloat16."""
    low, high = -0.4242, 2.8215
    x = jnp.array([[high, low, 1.0]], jnp.bfloat16)
    assert float(x.max()) > high
    logits = lambda x: x[:, :2].astype(jnp.float32)
    options = {"norm": LINF, "bounds": (low, high)}
    x_adv = attacks.pgd(KEYS[0], logits, x, jnp.zeros(1, jnp.int32), 0.5, **options)
    assert x_adv.dtype == jnp.bfloat16
    assert float(jnp.abs(x_adv.astype(jnp.float32) - x.astype(jnp.float32)).max()) <= 0.5
    assert logits(x_adv)[0, 0] - logits(x_adv)[0, 1] < high - low - 0.9
    with pytest.raises(ValueError, match="outside bounds"):
        attacks.pgd(KEYS[0], logits, 2 * x, jnp.zeros(1, jnp.int32), 0.5, **options)


@each_attack
def test_at_the_limits_of_its_options_an_attack_stays_inside(name):
    """Two classes, one image, the fewest steps, a radius of 0 and one beyond the box; and a margin
    of 0, at which argmax returns the first class."""
    norm = one_norm(name)
    first_two = partial(net, mask=NO_MASK[:, :2])
    two = lambda x: first_two(x) - first_two(X[:1])
    options = LEAST.get(name, {"steps": 1})
    attack = jax.jit(lambda x, eps: run(name, norm, options, KEYS[:1], x, Y[:1] * 0, eps, two))
    for x in (X[:1], jnp.zeros_like(X[:1]), jnp.ones_like(X[:1])):
        assert inside(attack(x, 0.0), x, norm, 0.0 if "eps" in takes(name) else jnp.inf)
        assert inside(attack(x, 1e3), x, norm)


@each_attack
def test_a_class_that_is_masked_costs_no_image(name):
    """Its logit is -inf, and it has no boundary."""
    norm = one_norm(name)
    eps = jnp.full(BATCH, 4 * radius(norm))
    x_adv = compiled(name, norm)(KEYS, X, Y, eps, MASK)
    assert inside(x_adv, X, norm, eps if "eps" in takes(name) else jnp.inf)
    wrong = lambda x: (net(x, MASK).argmax(1) != Y).sum()
    assert wrong(x_adv) > wrong(X) + 1
