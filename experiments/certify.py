"""Certify a run: `python experiments/certify.py --run=DIR [--examples=1000 ...]`.

How far can each image be moved, in l_2, before its class can change? By the rules of
lipreg.certificates that need the network alone, beside the distance that attacks find: certified <=
true <= attacked. The run gets certificates.md, .json and .npz (per image), from which `table.py`
takes the certified error. Radii of kind "estimate" prove nothing; how many of them reach beyond an
adversarial image is counted. `--sigma` certifies the smoothed network (1902.02918) as well, which
is another classifier.
"""

from absl import flags

import cli
from lipreg import reports, runs

_RUN = flags.DEFINE_string("run", None, "a run that has a checkpoint", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "which images")
_EXAMPLES = flags.DEFINE_integer("examples", 100, "images, from the first", lower_bound=1)
_SIGMA = flags.DEFINE_float("sigma", 0.0, "of smoothing's noise; 0: no smoothing", lower_bound=0)
_SEED = cli.seed("of attacks and noise")
_SILENT = flags.DEFINE_bool("silent", False, "no progress bar")


def main(_: list[str]) -> None:
    loaded = runs.load(_RUN.value, _SPLIT.value, _EXAMPLES.value)
    if loaded.step != loaded.steps:
        print(f"The weights are those of step {loaded.step} of {loaded.steps}.")
    with cli.progress(_SILENT.value) as progress:
        text = reports.certify(
            loaded,
            _RUN.value,
            split=_SPLIT.value,
            examples=_EXAMPLES.value,
            sigma=_SIGMA.value,
            seed=_SEED.value,
            progress=progress,
        )
    print(text)
    print(f"Written to {_RUN.value}: certificates.md, .json, .npz")


if __name__ == "__main__":
    cli.run(main, resumes=False)
