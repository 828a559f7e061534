"""The table and both curves of some runs: `python experiments/table.py RUN RUN ... --out=DIR`.

Prints the table as Markdown and writes table.md, table.csv and the error curves in l_2 and in the
maximum norm (PNG and SVG). Every run must have been evaluated with the same settings. Runs that
differ in their seeds alone make one row: mean ± standard deviation.
"""

from absl import flags

import cli
from lipreg import reports

_OUT = flags.DEFINE_string("out", "runs/table", "where to write")


def main(workdirs: list[str]) -> None:
    if not workdirs:
        raise ValueError("No runs: python experiments/table.py RUN RUN ... --out=DIR.")
    text, files = reports.table(workdirs, _OUT.value)
    print(text)
    print("Written:", *files, sep="\n  ")


if __name__ == "__main__":
    cli.run(main, positional=True)
