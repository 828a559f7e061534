"""The table and both curves of some runs: `python experiments/table.py RUN RUN ... --out=DIR`.

Prints the table as Markdown and writes table.md, table.csv and the error curves (PNG and SVG).
Every run must have been evaluated (experiments/evaluate.py) on the same images by the same protocol
with the same settings; `--split` and `--examples` choose where a run has several evaluations. Runs
that differ in their seeds alone make one row: mean ± standard deviation. `--radii=l2=0.5,1` adds
the errors at these radii; the text says at which the rows differ most.
"""

from absl import flags

import cli
from lipreg import reports
from lipreg.runs import sweep

_OUT = flags.DEFINE_string("out", "runs/table", "where to write")
_PROTOCOL = flags.DEFINE_string("protocol", "pgd", "whose numbers; with others' attacks: pgd+NAME")
_NORMS = flags.DEFINE_list("norms", ["l2", "linf"], "those of the evaluation")
_SPLIT = flags.DEFINE_enum("split", "", ["", "test", "validation"], "of the evaluation; any")
_EXAMPLES = flags.DEFINE_integer("examples", 0, "images of the evaluation; 0: any", lower_bound=0)
_RADII = flags.DEFINE_multi_string("radii", [], "NORM=EPS,EPS,... of further columns")


def main(workdirs: list[str]) -> None:
    if not workdirs:
        raise ValueError("No runs: python experiments/table.py RUN RUN ... --out=DIR.")
    if not _NORMS.value:
        raise ValueError("--norms=; name one or more.")
    text, files = reports.table(
        workdirs,
        _OUT.value,
        protocol=_PROTOCOL.value,
        norms=_NORMS.value,
        split=_SPLIT.value,
        examples=_EXAMPLES.value,
        radii=sweep.parse(_RADII.value),
    )
    print(text)
    print("Written:", *files, sep="\n  ")


if __name__ == "__main__":
    cli.run(main, positional=True, resumes=False)
