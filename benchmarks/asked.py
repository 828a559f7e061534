"""Flags of the programs that time training steps: which steps, how often, the output folder."""

import steps
from absl import flags

CASES = flags.DEFINE_list(
    "cases",
    ["CNN/32", "CNN/128", "ResNeXt34_2x32/32"],
    f"NETWORK/BATCH, the network one of {', '.join(steps.NETWORKS)}",
)
ONLY = flags.DEFINE_list("only", [], "rows, as the table names them; j0 always; default: all")
REPEATS = flags.DEFINE_integer("repeats", 9, "interleaved repetitions", lower_bound=3)
OUT = flags.DEFINE_string("out", "results/speed", "folder of the reports")


@flags.validator("cases", f"a case is NETWORK/BATCH, NETWORK of {', '.join(steps.NETWORKS)}")
def _known(cases: list[str]) -> bool:
    parts = [case.split("/") for case in cases]
    return all(len(p) == 2 and p[0] in steps.NETWORKS and p[1].isdecimal() for p in parts)


def cases() -> list[tuple[str, int]]:
    """The networks and batch sizes asked for."""
    parts = (case.split("/") for case in CASES.value)
    return [(network, int(batch)) for network, batch in parts]


def wanted(name: str) -> bool:
    """Whether the row is asked for."""
    return name == "j0" or not ONLY.value or name in ONLY.value
