"""The model card of a fine-tuned captioner, or of a student: a README.md as the Hugging Face Hub reads it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.validation import CAPTION_LOSS, CONTRASTIVE_LOSS, SCORES
from imagetext import cards


def write_card(
    folder: Path,
    *,
    name: str,
    base_model: str,
    data: Mapping[str, str],
    licences: Mapping[str, str],
    recipe: Mapping[str, Any],
    scores: Mapping[str, Any],
    datasets: Sequence[str] = (),
    library: str = "open_clip",
) -> None:
    """Writes `README.md` beside the weights: what the captioner began with, its data, licences, recipe and scores.

    `data` says what was trained and validated on, `licences` what each part of that, and of the weights, is under, `recipe`
    holds the settings. `scores` is a row of `validation.jsonl`, {} without validation. `datasets` are names on the Hub, as
    is `base_model` where it is `org/name` and no path. Of the machine's own paths only the last part is written. `library` is
    the one that loads the weights: open_clip, transformers or peft.
    """
    front = {
        "library_name": library,
        "pipeline_tag": "image-to-text",
        "tags": ["image-captioning", *(["coca"] if library == "open_clip" else []), "capsmith"],
    }
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base_model) and not Path(base_model).exists():
        front["base_model"] = base_model
    if datasets:
        front["datasets"] = list(datasets)
    _write(
        folder,
        "card.md",
        recipe,
        front=front,
        library=library,
        name=name,
        base_model=base_model,
        data=data,
        licences=licences,
        scores=_table(scores),
        pictures=scores.get("pictures"),
        samples=scores.get("samples"),
        warning=scores.get("warning", ""),
    )


def write_student_card(
    folder: Path,
    *,
    name: str,
    student: str,
    data: Mapping[str, str],
    losses: Sequence[str],
    teachers: Sequence[str],
    scores: Sequence[tuple[str, str, str]],
    recipe: Mapping[str, Any],
) -> None:
    """Writes `README.md` beside a student's weights: its architecture, data, losses, teachers, what is known of licences, scores.

    `losses` and `teachers` are lines of text; `scores` label, value and definition of each; the rest is as for a captioner.
    """
    front = {
        "library_name": "open_clip",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "capsmith"],
    }
    _write(
        folder,
        "student_card.md",
        recipe,
        front=front,
        name=name,
        student=student,
        data=data,
        losses=losses,
        teachers=teachers,
        scores=scores,
    )


def _write(folder: Path, template: str, recipe: Mapping[str, Any], **values: Any) -> None:
    given = {key: value for key, value in recipe.items() if value not in (None, [], "")}
    cards.write_card(folder, Path(__file__).parent / "templates" / template, settings=given, **values)


def _table(scores: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Label, the captioner's number, the human captions', and the definition of each score there is."""
    rows = []
    for measure in (CAPTION_LOSS, CONTRASTIVE_LOSS, *SCORES):
        name = measure.path[0]
        if name in scores:
            human = measure.text({name: scores.get("human", {}).get(name)})
            rows.append((f"{measure.label} {measure.arrow}", measure.text(scores), human, measure.definition))
    return rows
