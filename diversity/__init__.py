"""Measures of captions: how varied they are, never without how good they are."""

__all__ = ["DiversityReport", "score_captions"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from diversity import report  # late: `diversity.config` alone must import in no time, for --help

    return getattr(report, name)
