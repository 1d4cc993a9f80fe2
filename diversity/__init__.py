"""Measures of caption diversity, always reported together with measures of caption quality."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diversity.report import DiversityReport
    from diversity.score import score_captions

__all__ = ["METRIC", "DiversityReport", "score_captions"]

METRIC = str(Path(__file__).with_name("metric.py"))  # for evaluate.load(METRIC, "self_cider")


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from diversity import report, score  # late: --help imports `diversity.config` alone, which has to be fast

    return getattr(score if name == "score_captions" else report, name)
