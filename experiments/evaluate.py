"""Attack a run: `python experiments/evaluate.py --run=DIR [--protocol=full --examples=1000 ...]`.

Protocols (lipreg.evaluate):
  pgd         each image's smallest perturbation by PGD at radii that are bisected
  deck        distances as 1810.00953 measured them
  autoattack  AutoAttack at the table's and at RobustBench's radii
  full        deck and autoattack, and smaller distances by DeepFool, FMN and DDN
All but pgd come with the masking report, which says what the numbers are worth. All distances are
upper bounds of the true ones: a stronger attack can only lower them.

Everything goes into DIR/evaluations/PROTOCOL_SPLIT_N (N images): report.md, evaluation.json with
the table's row, distances.npz (per image), curve.jsonl (error at each radius), and pictures of the
curves and of attacked images. A killed evaluation resumes where it was. All devices share the
images, and those of all `--processes`.
"""

from absl import flags

import cli
from lipreg import attacks, doors, evaluation, parallel, reports, runs
from lipreg.runs import storage
from lipreg.runs.config import Config

_RUN = flags.DEFINE_string("run", None, "a run that has a checkpoint", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "tune on validation only")
_EXAMPLES = flags.DEFINE_integer("examples", None, "images, from the first; default: the config's")
_PROTOCOL = flags.DEFINE_enum("protocol", "pgd", list(evaluation.PROTOCOLS), "see above")
_NORMS = flags.DEFINE_list("norms", ["l2", "linf"], "some of l1, l2, linf")
_ATTACK = flags.DEFINE_multi_string(
    "attack", [], "one more attack: the library's or package.module:name; may be repeated"
)
_SURROGATE = flags.DEFINE_string(
    "surrogate", None, "an undefended run whose adversarial images the masking report tries"
)
_KEEP = flags.DEFINE_bool("keep", False, "write the adversarial images as .npz")
_STEPS = flags.DEFINE_integer("steps", None, "steps of PGD; default: the config's")
_RESTARTS = flags.DEFINE_integer("restarts", None, "of PGD; default: the config's")
_SEED = cli.seed("of the attack")
_SILENT = flags.DEFINE_bool("silent", False, "no progress")

_MASKING = [name for name, plan in evaluation.PROTOCOLS.items() if plan.masking]
_USED_BY = ((_STEPS, ["pgd"]), (_RESTARTS, ["pgd"]), (_SURROGATE, _MASKING))


def _surrogate(workdir: str, data: Config) -> runs.Loaded:
    """A run whose images the evaluated run can see, because both are of one data set."""
    other = storage.read_complete(workdir).data
    for name in ("name", "side", "bounds"):
        if other[name] != data[name]:
            raise ValueError(
                f"--surrogate={workdir}: its config.data.{name} is {other[name]!r}, and that of "
                f"--run={_RUN.value} is {data[name]!r}."
            )
    return runs.load(workdir, _SPLIT.value, 1)


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
    if len(set(_NORMS.value)) < max(len(_NORMS.value), 1):
        raise ValueError(f"--norms={','.join(_NORMS.value)}; name one or more, each once.")
    own = {name: getattr(attacks, name) for name in attacks.__all__}
    others = {}
    for name in _ATTACK.value:
        short = name.rpartition(":")[2]
        if short in others:
            raise ValueError(f"--attack={name}: there is another {short!r}; rename one.")
        others[short] = doors.named("attack", name, own)
    loaded = runs.load(_RUN.value, _SPLIT.value, _EXAMPLES.value)
    if loaded.step != loaded.steps and parallel.is_main():
        print(f"The weights are those of step {loaded.step} of {loaded.steps}.")
    loaded.config.evaluation.update({k: v for k, v in overrides.items() if v is not None})
    surrogate = _surrogate(_SURROGATE.value, loaded.config.data) if _SURROGATE.value else None
    with cli.progress(_SILENT.value) as progress:
        text = reports.evaluate(
            loaded,
            _RUN.value,
            protocol=_PROTOCOL.value,
            norms=_NORMS.value,
            attacks=others,
            split=_SPLIT.value,
            seed=_SEED.value,
            surrogate=surrogate,
            keep=_KEEP.value,
            progress=progress,
        )
    if parallel.is_main():
        print(text)


if __name__ == "__main__":
    cli.run(main, devices=True)
