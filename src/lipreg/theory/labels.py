"""Wrong labels: what they do to the data's constant, and whether training resists them.

The functional `E_n l(f, u0) + lam max(Lip(f) - L0, 0)` "could correct errors in the labels"
(1808.09540), and refuse the random ones that plain networks fit (Zhang et al., 1611.03530). An
experiment `(config, progress) -> Study` has percentages of labels in place of n, and measures at
each on `config.repeats` draws of labels and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from lipreg import datasets, models, objectives, optimizers, training
from lipreg.lipschitz import ascended_pairs, of_data
from lipreg.runs.config import Config
from lipreg.theory.study import Case, Curve, Progress, Study, check, measure

__all__ = ["correction", "label_correction", "random_labels", "shuffled_labels"]


def shuffled_labels(key: Array, y: ArrayLike, fraction: float) -> np.ndarray:
    """y `[n]` with this fraction of its labels permuted among themselves (1611.03530).

    Some keep their class: one in K, if K classes are equally frequent.

    >>> shuffled_labels(jax.random.key(0), np.array([0, 1, 2, 3]), 1.0)
    array([0, 2, 3, 1])
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction = {fraction}; of the labels, it must be between 0 and 1.")
    shuffled = np.array(y)
    to_draw, to_mix = jax.random.split(key)
    rows = jax.random.permutation(to_draw, len(shuffled))[: round(fraction * len(shuffled))]
    shuffled[np.asarray(rows)] = shuffled[np.asarray(jax.random.permutation(to_mix, rows))]
    return shuffled


def correction(predicted: ArrayLike, given: ArrayLike, true: ArrayLike) -> tuple[float, float]:
    """The fraction of wrong given labels whose true class is predicted, and of right ones kept.

    Classes `[n]` each. NaN where no label is wrong, or none is right.

    >>> correction(np.array([0, 1, 2, 3]), np.array([1, 2, 2, 0]), np.array([0, 1, 2, 0]))
    (1.0, 0.5)
    """
    predicted, given, true = map(np.asarray, (predicted, given, true))
    if not (predicted.ndim == 1 and predicted.shape == given.shape == true.shape):
        shapes = ", ".join(str(list(a.shape)) for a in (predicted, given, true))
        raise ValueError(f"Classes of shapes {shapes}; want three times [n].")
    hit, wrong = predicted == true, given != true
    corrected, kept = (hit[rows].mean() if rows.any() else np.nan for rows in (wrong, ~wrong))
    return float(corrected), float(kept)


@partial(jax.jit, static_argnames=("classes", "widths", "epochs", "batch_size"))
def _train(
    key: Array,
    x: Array,
    y: Array,
    shown: Array,
    strengths: dict[str, ArrayLike],
    *,
    weight_decay: ArrayLike = 0.0,
    smoothing: ArrayLike = 0.0,
    learning_rate: float,
    classes: int,
    widths: tuple[int, ...],
    epochs: int,
    batch_size: int,
) -> tuple[Array, Callable[[Array], Array]]:
    """The classes of `shown` after each epoch, `[epochs, N]`, and the logits of the last as a
    function.

    Cross entropy, by `lip_excess` where there are strengths and by `j0` where there are none.
    """
    model, per_epoch = models.build("MLP", classes=classes, widths=widths), len(y) // batch_size
    apply, objective = models.functional(model), "lip_excess" if strengths else "j0"
    cosine = optimizers.schedule("cosine", learning_rate, epochs * per_epoch)
    # The derivative of a large lam times the largest gradient would throw the weights far off.
    tx = optimizers.sgd(cosine, weight_decay=weight_decay, clip=1.0)  # pyright: ignore
    step = training.make_step(apply, getattr(objectives, objective), tx)
    targets = optax.smooth_labels(jax.nn.one_hot(y, classes), smoothing)  # pyright: ignore

    def epoch(state: training.State, number: Array) -> tuple[training.State, Array]:
        rows = jax.random.permutation(jax.random.fold_in(key, number), len(y))
        rows = rows[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        one = lambda state, rows: step(state, strengths, (x[rows], targets[rows]))
        state, _ = jax.lax.scan(one, state, rows)
        return state, training.logits_fn(apply, state)(shown).argmax(1)

    state = training.init(key, model.init(key, x[:1], False)["params"], {}, tx)
    state, predicted = jax.lax.scan(epoch, state, jnp.arange(epochs))
    return predicted, training.logits_fn(apply, state)


@jax.jit
def _fitted(key: Array, logits_fn: Callable, x: Array, y: Array) -> dict[str, Array]:
    """How the probabilities f fit labels `[n]`. Lip(f) is from pairs; training saw gradients."""
    f = lambda x: jax.nn.softmax(logits_fn(x))
    given = jnp.take_along_axis(f(x), y[:, None], 1)
    return {
        "training error": (f(x).argmax(1) != y).mean(),
        "mean |f - y|": (1 - given).mean(),
        "Lip(f)": ascended_pairs(key, f, x).quotients.max(),
    }


def _first(dataset: datasets.Dataset, n: int) -> datasets.Dataset:
    if n < 2:
        raise ValueError(f"{n} examples of a split; want 2 or more: raise config.examples.")
    return dataset._replace(x=dataset.x[:n], y=dataset.y[:n])


def _trainer(config: Config, training: datasets.Dataset, shown: Array) -> Callable:
    """`_train` on the images of `training`, a function of key, labels and strengths."""
    n = len(training.y)
    if config.batch_size > n:
        raise ValueError(f"config.batch_size = {config.batch_size}; there are {n} examples.")
    settings = {name: config[name] for name in ("epochs", "batch_size", "learning_rate")}
    settings |= {"widths": tuple(config.widths), "classes": training.classes}
    x = datasets.to_unit(training.x)

    def fit(key: Array, y: ArrayLike, strengths: dict[str, ArrayLike], **more: ArrayLike) -> Any:
        predicted, logits_fn = _train(key, x, y, shown, strengths, **settings, **more)
        if not jnp.isfinite(logits_fn(shown)).all():
            used = {name: np.asarray(value).item() for name, value in (strengths | more).items()}
            raise FloatingPointError(
                f"A network has diverged, with config.learning_rate = {config.learning_rate:g} and "
                f"{used or 'no regulariser'}."
            )
        return predicted, logits_fn

    return fit


def _curves(config: Config, measured: Mapping[tuple[str, str], np.ndarray]) -> dict[str, Curve]:
    """A panel for each data set and quantity, a curve in it for each method."""
    curves = {}
    for (name, quantity), values in measured.items():
        what, method = quantity.split(", ")
        curves[f"{what}, {name}: {method}"] = Curve(f"{what}, {name}", config.percents, values)
    return curves


def random_labels(config: Config, progress: Progress = iter) -> Study:
    """`L0 = max |y_i - y_j| / |x_i - x_j|` of labels partly shuffled, and networks that learn them.

    The first `examples` images of each data set. Plain networks fit any labels (1611.03530). Those
    of `lip_excess` are penalised where they are steeper than the clean labels, and a function with
    Lip(f) <= L0 cannot come near steeper ones (1808.09540). That the penalty keeps Lip(f) to L0 is
    not said, nor that the class is not the given one, by however little. Lip(f) is the steepest of
    pairs ascended from the training images, an estimate from below.
    """
    check(config, repeats=1)

    def case(name: str) -> Case:
        training = _first(datasets.load(name, "train", dir=config.dir), config.examples)
        x = datasets.to_unit(training.x)
        clean = of_data(x, training.y).value
        fit = _trainer(config, training, x)

        def quantities(key: Array, percent: int) -> dict[str, ArrayLike]:
            y = shuffled_labels(key, training.y, percent / 100)
            values: dict[str, ArrayLike] = {"L0, data": of_data(x, y).value}
            regularised = {"lam": config.lam, "L0": clean}
            for method, strengths in {"plain": {}, "lip_excess": regularised}.items():
                _, logits_fn = fit(key, y, strengths)
                fitted = _fitted(key, logits_fn, x, y)
                values |= {f"{what}, {method}": value for what, value in fitted.items()}
            return values

        return quantities

    cases = {name: case(name) for name in config.data}
    measured = measure(config, config.percents, cases, progress)
    at = lambda name, place, quantity: measured[name, quantity][place].mean()
    sentences = [
        f"{name}, {percent} % shuffled: L0 {at(name, place, 'L0, data'):.3g}; training error "
        f"{at(name, place, 'training error, plain'):.1%} without the regulariser and "
        f"{at(name, place, 'training error, lip_excess'):.1%} with it; mean |f - y| "
        f"{at(name, place, 'mean |f - y|, plain'):.2f} and "
        f"{at(name, place, 'mean |f - y|, lip_excess'):.2f}."
        for name in config.data
        for place, percent in enumerate(config.percents)
        if place in (0, len(config.percents) - 1)
    ]
    return Study(_curves(config, measured), sentences, axis="% shuffled")


def label_correction(config: Config, progress: Progress = iter) -> Study:
    """How many wrong training labels a network corrects: `lip_excess` against simple methods.

    A percentage of the first `examples` training labels is replaced by other classes
    (`datasets.wrong_labels`). Each method's strength, and the epoch of early stopping, is the one
    with the smallest error on clean validation images, a quarter as many, the first at a tie; it is
    chosen anew in each repeat. L0 is that of the validation images: the given labels have another.
    """
    check(config, repeats=1)
    splits = (
        datasets.load(config.data, s, dir=config.dir, validation=0.2) for s in datasets.SPLITS
    )
    training, validation, test = splits
    training = _first(training, config.examples)
    validation = _first(validation, config.examples // 4)
    L0 = of_data(datasets.to_unit(validation.x), validation.y).value
    fit = _trainer(
        config, training, datasets.to_unit(np.concatenate([training.x, validation.x, test.x]))
    )
    ends = np.cumsum([len(training.y), len(validation.y)])

    def candidates(key: Array, y: np.ndarray) -> dict[str, tuple[Any, Any]]:
        """Each method's strengths, and for each of them the classes of all images, `[C, N]`."""
        last = lambda strengths, **more: fit(key, y, strengths, **more)[0][-1]
        plain, _ = fit(key, y, {})
        decays, smoothings, lams = config.weight_decays, config.smoothings, config.lams
        return {
            "plain": ([0.0], plain[-1:]),
            "early stopping": (range(1, config.epochs + 1), plain),
            "weight decay": (decays, [last({}, weight_decay=s) for s in decays]),
            "label smoothing": (smoothings, [last({}, smoothing=s) for s in smoothings]),
            "lip_excess": (lams, [last({"lam": s, "L0": L0}) for s in lams]),
        }

    def case(key: Array, percent: int) -> dict[str, float]:
        seed = int(jax.random.bits(key))
        given = datasets.wrong_labels(training, percent / 100, seed=seed).y
        values = {}
        for method, (strengths, predicted) in candidates(key, given).items():
            on_training, on_validation, on_test = np.split(np.asarray(predicted), ends, axis=1)
            best = (on_validation != validation.y).mean(1).argmin()
            corrected, kept = correction(on_training[best], given, training.y)
            values |= {
                f"wrong labels corrected, {method}": corrected,
                f"right labels kept, {method}": kept,
                f"test error, {method}": (on_test[best] != test.y).mean(),
                f"strength chosen, {method}": strengths[best],
            }
        return values

    measured = measure(config, config.percents, {config.data: case}, progress)
    about = [f"L0 = {L0:.3g}, that of {len(validation.y)} clean validation images."]
    about += [
        _verdict(percent, {quantity: values[place] for (_, quantity), values in measured.items()})
        for place, percent in enumerate(config.percents)
    ]
    return Study(_curves(config, measured), about, axis="% wrong")


def _verdict(percent: int, values: Mapping[str, np.ndarray]) -> str:
    """Which method wins, and how lip_excess does against the best of the others."""
    errors, corrected = (
        {name.removeprefix(what): v for name, v in values.items() if name.startswith(what)}
        for what in ("test error, ", "wrong labels corrected, ")
    )
    best, *rest = sorted(errors, key=lambda method: errors[method].mean())
    most = max(corrected, key=lambda method: corrected[method].mean())
    other = best if best != "lip_excess" else rest[0]
    margin = 100 * (errors["lip_excess"] - errors[other])
    spread = f" ± {margin.std(ddof=1):.1f}" if len(margin) > 1 else ""
    corrects = "nothing to correct"
    if not np.isnan(corrected[most]).any():
        corrects = f"most corrected by {most} ({corrected[most].mean():.1%})"
    return (
        f"{percent} % wrong: smallest test error by {best} ({errors[best].mean():.1%}), {corrects};"
        f" lip_excess less {other}, the best other: {margin.mean():+.1f}{spread} points of test "
        "error."
    )
