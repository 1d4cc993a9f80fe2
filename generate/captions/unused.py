"""Settings of a column that have no effect beside its other settings."""

from collections.abc import Iterator, Sequence

from captioners.base import SamplingConfig
from captioners.rules.negatives import NEGATIVES
from generate.captions.gate import Gate
from generate.captions.tasks import TaskConfig
from imagetext.columns import is_caption_column

OF_MODELS = (
    "temperature",
    "top_p",
    "top_k",
    "max_length",
    "min_length",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "prefix",
    "stop",
)


def unused_settings(
    model: str | None, sampling: SamplingConfig, task: TaskConfig, gate: Gate, columns: Sequence[str]
) -> dict[str, str]:
    """Return, for each setting that is given and has no effect on the column, the reason.

    columns: the names of the columns that the answers go to; () where the captioner names the column.
    """
    if model == NEGATIVES:
        columns = columns or ("neg_text_",)
    given = {
        name
        for settings in (sampling, task, gate)
        for name, field in type(settings).model_fields.items()
        if getattr(settings, name) != field.default
    }
    if not gate.redraws:  # asks for nothing
        given.discard("redraws")
    return {name: reason for name, reason in _without_effect(model, sampling, task, columns) if name in given}


def _without_effect(
    model: str | None, sampling: SamplingConfig, task: TaskConfig, columns: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield the settings that have no effect on the column, each with the reason."""
    if sampling.strategy != "sample":
        for name in ("temperature", "top_p", "top_k", "redraws"):
            yield name, f"is only for strategy sample, but strategy is {sampling.strategy}"
    if model == NEGATIVES:
        for name in OF_MODELS:
            yield name, f"is only for models, and {NEGATIVES} has none"
    if not task.reads_captions:
        for name in ("must_change", "keep_facts"):
            yield name, "compares a caption with the text that it was written from, and the instruction names none"
    if columns and all(name.startswith("neg_") for name in columns):
        yield "keep_facts", f"is not for columns of negatives, as {', '.join(columns)}"
    if not any(name.startswith("neg_text_") for name in columns):
        yield "min_overlap", "is only for columns of negatives, neg_text_…"
    if columns and not any(map(is_caption_column, columns)):
        yield "fallback", f"is only for columns of captions, not for {', '.join(columns)}"
    if not task.examples:
        yield "num_examples", "is only for --examples"
