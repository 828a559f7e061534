"""Attack a run: `python experiments/evaluate.py --run=DIR [--protocol=full --examples=1000 ...]`.

Without a protocol, PGD finds each test image's smallest perturbation in l_2 and in the maximum
norm; the run gets distances.npz (per image), curve.jsonl (error at each radius), the table's row,
and pictures of both curves and of attacked images. All distances are upper bounds of the true ones:
a stronger attack can only lower them. That is what the protocols are for (lipreg.evaluate): `deck`
measures as 1810.00953 did, `autoattack` at the table's and at RobustBench's radii, `full` does both
and more; each writes robustness_PROTOCOL.md, .json and .npz with the masking report, which says
what the numbers are worth. A killed one resumes where it was. All devices share the images.
"""

from functools import partial

import jax
from absl import flags
from tqdm import tqdm

import cli
from lipreg import curves, evaluation, parallel, reports, runs
from lipreg.runs.config import label

_RUN = flags.DEFINE_string("run", None, "a run that has a checkpoint", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "tune on validation only")
_EXAMPLES = flags.DEFINE_integer("examples", None, "images, from the first; default: the config's")
_PROTOCOL = flags.DEFINE_enum(
    "protocol", "pgd", ["pgd", *evaluation.PROTOCOLS], "how to measure; see above"
)
_SURROGATE = flags.DEFINE_string(
    "surrogate", None, "an undefended run whose adversarial images the masking report tries"
)
_KEEP = flags.DEFINE_bool("keep", False, "write the adversarial images of AutoAttack as .npz")
_STEPS = flags.DEFINE_integer("steps", None, "steps of PGD; default: the config's")
_RESTARTS = flags.DEFINE_integer("restarts", None, "of PGD; default: the config's")
_SEED = flags.DEFINE_integer("seed", 0, "of the attack")
_SILENT = flags.DEFINE_bool("silent", False, "no progress bar")

_CASCADES = [name for name, plan in evaluation.PROTOCOLS.items() if plan["autoattack"]]
_USED_BY = (
    (_STEPS, ["pgd"]),
    (_RESTARTS, ["pgd"]),
    (_SURROGATE, list(evaluation.PROTOCOLS)),
    (_KEEP, _CASCADES),
)


def main(_: list[str]) -> None:
    overrides = {"examples": _EXAMPLES.value, "steps": _STEPS.value, "restarts": _RESTARTS.value}
    for name, value in overrides.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name}={value}; it must be at least 1.")
    for flag, protocols in _USED_BY:
        if flag.present and _PROTOCOL.value not in protocols:
            raise ValueError(
                f"--{flag.name}={flag.value}: --protocol={_PROTOCOL.value} does not use it, only "
                f"{', '.join(protocols)}."
            )
    loaded = runs.load(_RUN.value, _SPLIT.value, _EXAMPLES.value)
    if loaded.step != loaded.steps and parallel.is_main():
        print(f"The weights are those of step {loaded.step} of {loaded.steps}.")
    loaded.config.evaluation.update({k: v for k, v in overrides.items() if v is not None})
    if _PROTOCOL.value != "pgd":
        if jax.process_count() > 1:
            raise ValueError(
                f"--protocol={_PROTOCOL.value} runs in one process: leave --processes."
            )
        _robustness(loaded)
        return
    main_process = parallel.is_main()
    silent = _SILENT.value or not main_process
    progress = partial(tqdm, desc=label(loaded.config), unit="batch", disable=silent)
    row = reports.evaluate(
        loaded, _RUN.value, split=_SPLIT.value, seed=_SEED.value, progress=progress
    )
    if main_process:
        print(curves.to_markdown({label(loaded.config): row}))
        print(f"Written to {_RUN.value}: curve.jsonl, distances.npz, curve_*.png, attacked_l2.png")


def _robustness(loaded: runs.Loaded) -> None:
    surrogate = runs.load(_SURROGATE.value, _SPLIT.value, 1) if _SURROGATE.value else None
    with tqdm(bar_format="{elapsed} {desc}", disable=_SILENT.value) as bar:
        text = reports.robustness(
            loaded,
            _RUN.value,
            _PROTOCOL.value,
            split=_SPLIT.value,
            seed=_SEED.value,
            surrogate=surrogate,
            keep=_KEEP.value,
            progress=bar.set_description_str,
        )
    print(text)
    print(f"Written to {_RUN.value}: robustness_{_PROTOCOL.value}.md, .json, .npz")


if __name__ == "__main__":
    cli.run(main, devices=True)
