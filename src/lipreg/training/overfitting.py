"""Catastrophic overfitting (2001.03994): a network resists one-step attacks and no others."""

from collections.abc import Mapping, Sequence

__all__ = ["FGSM", "PGD", "RISE", "overfitted"]

FGSM, PGD = "validation_error_fgsm", "validation_error_pgd10"  # of a report's numbers
RISE = 0.2  # of the error: with 64 images three standard deviations


def overfitted(reports: Sequence[Mapping[str, float]], rise: float = RISE) -> int | None:
    """The first step at which the error is `rise` above its least under PGD-10, and not under FGSM.

    That is, `pgd(t) >= pgd(s) + rise` and `fgsm(t) <= fgsm(s)`, s the report before t with the
    least error under PGD-10. A network that loses its robustness to both attacks is not meant.
    Reports without the two errors are passed over; None where there is no such step.

    >>> reports = [{"step": 1, FGSM: 0.5, PGD: 0.6}, {"step": 2, FGSM: 0.1, PGD: 0.9}]
    >>> overfitted(reports)
    2
    """
    least: Mapping[str, float] = {}
    for report in reports:
        if FGSM not in report or PGD not in report:
            continue
        if not least or report[PGD] < least[PGD]:
            least = report
        elif report[PGD] >= least[PGD] + rise and report[FGSM] <= least[FGSM]:
            return int(report["step"])
    return None
