"""The model card of a fine-tuned captioner or a student: a README.md in the format of the Hugging Face Hub."""

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
    """Write a captioner's `README.md` beside its weights.

    base_model: the model that training started from; a name on the Hub if it is `org/name` and not a path.
    data: description of the data -> which data, for training and validation.
    licences: each data set, and each model the weights derive from -> its licence.
    recipe: the settings. scores: a row of `validation.jsonl`, {} without validation.
    datasets: names on the Hub. library: the one that loads the weights: open_clip, transformers or peft.
    Only the last part of a path on this machine is written.
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
        scores=_score_rows(scores),
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
    """Write a student's `README.md` beside its weights.

    losses, teachers: lines of text. scores: label, value and definition of each score. The rest is as for a captioner.
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
    settings = {key: value for key, value in recipe.items() if value not in (None, [], "")}
    cards.write_card(folder, Path(__file__).parent / "templates" / template, settings=settings, **values)


def _score_rows(scores: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the label, the captioner's value, the human captions' value and the definition of each score."""
    rows = []
    for measure in (CAPTION_LOSS, CONTRASTIVE_LOSS, *SCORES):
        if measure.path[0] in scores:
            human = measure.text(scores.get("human", {}))
            rows.append((f"{measure.label} {measure.arrow}", measure.text(scores), human, measure.definition))
    return rows
