"""The summary as a LaTeX table for a paper, in the style of the package booktabs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from downstream.evaluation.summary import SummaryRow

_ESCAPES = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\n": " ",
}


def latex_table(rows: Sequence[SummaryRow]) -> str:
    """A ``tabular`` of all rows, a rule between tasks; needs the package booktabs."""
    lines = [
        "% \\usepackage{booktabs}; mean over n test patients, 95 % bootstrap interval over",
        "% patients, p of the paired permutation test against the random twin, Holm-adjusted",
        r"\begin{tabular}{lllrlrcrr}",
        r"\toprule",
        r"Task & Weights & Method & $k$ & Metric & Mean & 95\,\% interval & $n$ & $p$ \\",
    ]
    for _, own in groupby(rows, key=lambda row: row.task):
        lines += [r"\midrule", *(_line(row) for row in own)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escaped(text: str) -> str:
    """`text` as LaTeX prints it."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def _line(row: SummaryRow) -> str:
    interval = "--" if math.isnan(row.ci_low) else f"{row.ci_low:.3f} to {row.ci_high:.3f}"
    p = "--" if row.p_holm is None else "$<$0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
    names = (escaped(text) for text in (row.task, row.weights, row.method))
    mean = "--" if math.isnan(row.mean) else f"{row.mean:.3f}"
    metric = row.metric if row.unit == "1" else f"{row.metric} ({row.unit})"
    cells = [*names, str(row.k), escaped(metric), mean, interval, str(row.n), p]
    return " & ".join(cells) + r" \\"
