"""From run directories to results; works without torch.

    from t5ts.analysis import collect, draw, verdict, write_report

    study = collect(["multirun/2026-11-24_10-00-00"])   # reads every run below
    study.table()                                        # a polars row per run
    findings = verdict(study)                            # findings.headline, .reasons, .main.checks
    draw(findings, "curves")                             # a matplotlib figure
    write_report(findings, Path("report"))               # report.html, report.md, tables, figures

The way from runs to sentences: `study` reads run directories; `arms` groups them into settings,
arms and conditions, and `pairs` pairs the arms; `judgement` compares the arms of a pair, `validity`
checks whether they may be compared, `conclusions` reaches the verdict, `sentences.j2` words it.

Everything else in this package may change; these names and `Study`, `Run`, `Findings`, `Verdict`
are for notebooks. They are imported on first use, so a training run does not wait for scipy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t5ts.analysis.conclusions import verdict
    from t5ts.analysis.figures import draw
    from t5ts.analysis.judgement import Findings, Verdict
    from t5ts.analysis.page import write_report
    from t5ts.analysis.study import Run, Study, collect

_HOMES = {
    "collect": "study",
    "Run": "study",
    "Study": "study",
    "verdict": "conclusions",
    "Findings": "judgement",
    "Verdict": "judgement",
    "draw": "figures",
    "write_report": "page",
}
__all__ = ["Findings", "Run", "Study", "Verdict", "collect", "draw", "verdict", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
