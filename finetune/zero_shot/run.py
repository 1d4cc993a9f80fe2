"""`capsmith zero-shot`: measures how often CLIP models give the right class of labelled pictures."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captioners.device import choose_device
from finetune.rejects import check_rejects
from finetune.zero_shot.classify import read_templates
from finetune.zero_shot.compare import make_report
from finetune.zero_shot.config import ZeroShotConfig
from finetune.zero_shot.hierarchy import Hierarchy, read_hierarchy
from finetune.zero_shot.models import Classifier, load_models
from finetune.zero_shot.page import PAGE, render
from finetune.zero_shot.pictures import LabelSurvey, prepare_batches, read_labelled, survey_labels, workers
from finetune.zero_shot.report import KIND, ZeroShotReport
from finetune.zero_shot.support import draw_shots, read_descriptions
from imagetext.apart import check_apart
from imagetext.lock import LOCK, FolderLock, check_lock
from imagetext.outputs import UNFINISHED, write_file
from imagetext.sample import Shard
from imagetext.shown import Progress, masked, say
from imagetext.sources import check_table_flags

REPORT, PREDICTIONS = "zero_shot.json", "predictions.jsonl"
NO_NAME = re.compile(r"\d+|n\d{8}")  # a number or a WordNet id


def run(config: ZeroShotConfig) -> int:
    """Write report, page and predictions, and return the exit code.

    The code is 0, or 3 if a larger share of pictures failed than `--max-error-rate` allows.
    Raises ValueError for all problems of the configuration, the models and the set, before any picture is decoded.
    """
    _check_output(config)  # before the lock, so that nothing is written into a foreign folder
    with FolderLock(config.output):
        report, predictions = evaluate(config)
        files = {
            REPORT: json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n",  # first: it marks the folder
            PREDICTIONS: "".join(predictions),
            PAGE: render(report),
        }
        for name, text in files.items():
            check_lock(str(config.output))
            write_file(config.output / name, text)
    say(*report.answer, *report.notes, f"Report: {config.output / PAGE}")
    return 3 if report.failed > config.max_error_rate * (report.failed + report.pictures) else 0


def evaluate(config: ZeroShotConfig) -> tuple[ZeroShotReport, list[str]]:
    """Return the report, and a line of JSON for each picture; raises ValueError as `run` does."""
    device = choose_device(config.device)
    read_set = partial(
        read_labelled, images=config.images, table=config.table, label=config.label, class_names=config.class_names
    )
    (shards, names), support, templates, find_hierarchy, models = _call_all(
        lambda: read_set(config.input),
        lambda: read_set(config.support)[0] if config.support else [],
        lambda: read_templates(config.templates),
        lambda: read_hierarchy(config.hierarchy) if config.hierarchy else None,
        lambda: load_models(config.model, device, config.dtype),
    )
    check_table_flags([*shards, *support], config.table)
    check_apart(config.output, [shard.path for shard in (*shards, *support)])
    survey = survey_labels(shards, names)
    check_rejects(survey.failed, survey.usable, config)
    hierarchy = find_hierarchy(survey.classes) if find_hierarchy else None
    notes = _class_notes(survey, config)
    notes += _embed_classes(models, survey, templates, hierarchy=hierarchy, config=config)
    if support:
        notes += _add_support(models, survey, support, config=config)
    labels, rows = classify(models, shards, survey, config=config)
    failed = sum(bool(row["error"]) for row in rows)
    if not len(labels):
        raise ValueError(
            f"--input: none of the {failed:,} pictures can be used, e.g. {rows[0]['key']}: {rows[0]['error']}"
        )
    if failed:
        example = next(row for row in rows if row["error"])
        notes.append(
            f"{failed:,} of {len(rows):,} pictures cannot be used, e.g. {example['key']}: {example['error']}; all are "
            f"listed in {PREDICTIONS}."
        )
    report = make_report(
        {model.name: model.answers[0] for model in models},
        reranked={model.name: model.reranked for model in models},
        adapted={model.name: model.adapted for model in models},
        mistakes={model.name: model.mistakes for model in models},
        labels=labels,
        classes=survey.classes,
        failed=failed,
        notes=notes,
        settings=_settings(config) | {"said of a class": templates},
        seed=config.seed,
    )
    return report, _predictions(rows, models, survey.classes.labels)


def _settings(config: ZeroShotConfig) -> dict[str, Any]:
    """Return the settings that influence the answers, without those that are not given."""
    unused = {"output", "overwrite", "num_workers", "group"} | (set() if config.support else {"shots"})
    return {
        name: value
        for name, value in config.model_dump(mode="json", exclude=unused).items()
        if value not in (None, [])
    }


def _embed_classes(
    models: Sequence[Classifier],
    survey: LabelSurvey,
    templates: Sequence[str],
    *,
    hierarchy: Hierarchy | None,
    config: ZeroShotConfig,
) -> list[str]:
    """Embed the texts of the classes with all models, and return notes on these texts for the reader."""
    names, notes = survey.classes.names, []
    if hierarchy and hierarchy.known < len(names):
        notes.append(f"--hierarchy {config.hierarchy} knows {hierarchy.known:,} of {len(names):,} classes.")
    for model in models:
        if cut := model.embed_classes(names, templates, hierarchy):
            notes.append(
                f"{model.name} reads at most {model.clip.context_length} tokens, so {cut:,} texts of classes are cut."
            )
    return notes


def _add_support(
    models: Sequence[Classifier], survey: LabelSurvey, support: Sequence[Shard], *, config: ZeroShotConfig
) -> list[str]:
    """Add the support pictures to all models, and return notes on these pictures for the reader."""
    class_indices = survey.classes.indices
    records = itertools.chain.from_iterable(support)
    shots, left_out = draw_shots(records, class_indices, config.shots, seed=config.seed, input_hashes=survey.hashes)
    columns = read_descriptions(shots, config.column)
    for model in models:
        model.add_support(shots, columns, config.batch_size)
    counts = Counter(shot.label for shot in shots)
    incomplete = sum(counts[index] < config.shots for index in range(len(class_indices)))
    notes = []
    if left_out:
        notes.append(f"{left_out:,} pictures of --support are also in --input, and are not used as support.")
    if incomplete:
        notes.append(
            f"{incomplete:,} of {len(class_indices):,} classes have fewer than {config.shots} pictures in --support."
        )
    return notes


@torch.inference_mode()
def classify(
    models: Sequence[Classifier], shards: Sequence[Shard], survey: LabelSurvey, *, config: ZeroShotConfig
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Classify all pictures with all models, decoding each picture once.

    Returns the right classes of the usable pictures, as indices (P,), and a row for each record.
    """
    class_indices = survey.classes.indices
    records = itertools.chain.from_iterable(shards)
    transforms = [model.clip.transform for model in models]
    threads = workers(config.num_workers)
    labels, rows = [], []
    with Progress(total=survey.pictures, desc="classifying", unit="picture", mininterval=1) as progress:
        for batch in prepare_batches(records, transforms, batch_size=config.batch_size, threads=threads):
            for picture in batch:
                record = picture.record
                rows.append({"key": record.key, "label": record.label, "error": masked(picture.error)})
            usable = [picture for picture in batch if not picture.error]
            right = [class_indices[picture.record.label or ""] for picture in usable]
            labels += right
            if usable:
                for index, model in enumerate(models):
                    model.classify(torch.stack([picture.pixels[index] for picture in usable]), usable, right)
            progress.update(len(batch))
    return np.array(labels, int), rows


def _predictions(rows: Sequence[dict[str, Any]], models: Sequence[Classifier], labels: Sequence[str]) -> list[str]:
    """Return a line of JSON for each picture: its class and each model's best answers, or why it cannot be used.

    With a hierarchy, `agreement` is the share of templates that give the first answer when used alone, and `reranked`
    has the reranked classes of the pictures that the model is unsure of.
    """
    answers = {model.name: iter(zip(*model.answers, strict=True)) for model in models}
    doubts = {model.name: iter(zip(*model.doubts, strict=True)) for model in models if model.doubts}
    lines = []
    for row in rows:
        prediction: dict[str, Any] = {"answers": {}}
        if doubts:
            prediction |= {"agreement": {}, "reranked": {}}
        if not row["error"]:
            for name, model_answers in answers.items():
                classes, probabilities = next(model_answers)
                prediction["answers"][name] = _answer_rows(classes, probabilities, labels)
            for name, model_doubts in doubts.items():
                unsure, agreement, ranked = next(model_doubts)
                prediction["agreement"][name] = round(float(agreement), 6)
                if unsure:
                    prediction["reranked"][name] = [labels[index] for index in ranked.tolist()]
        lines.append(json.dumps(row | prediction, ensure_ascii=False) + "\n")
    return lines


def _answer_rows(classes: np.ndarray, probabilities: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"class": labels[index], "probability": round(probability, 6)}
        for index, probability in zip(classes.tolist(), probabilities.tolist(), strict=True)
    ]


def _class_notes(survey: LabelSurvey, config: ZeroShotConfig) -> list[str]:
    """Return notes on the classes for the reader."""
    notes, names = [], survey.classes.names
    if not config.class_names and all(NO_NAME.fullmatch(name) for name in names):
        notes.append(
            f"The models are asked for {', '.join(map(repr, names[:2]))} and the like, because the set calls its "
            "classes so: give their names by --class-names."
        )
    empty = [name for name, pictures in zip(names, survey.classes.pictures, strict=True) if not pictures]
    if empty:
        more = ", …" if len(empty) > 3 else ""
        notes.append(
            f"{len(empty):,} of {len(names):,} classes have no picture ({', '.join(empty[:3])}{more}): a model may "
            "answer them, but they do not count in the mean over classes."
        )
    return notes


def _call_all(*calls: Callable[[], Any]) -> list[Any]:
    """Return the results of all calls; raises one ValueError with the problems of all calls that fail."""
    results, problems = [], []
    for call in calls:
        try:
            results.append(call())
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n  ".join(problems))
    return results


def _check_output(config: ZeroShotConfig) -> None:
    """Raise ValueError unless the folder is new, empty, or holds an earlier report that `--overwrite` replaces."""
    folder = config.output
    if not folder.exists():
        return
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {LOCK, REPORT + UNFINISHED}:
        return
    if not is_report(folder / REPORT):
        raise ValueError(f"--output {folder}: is not empty and has no report of {KIND}; choose another folder")
    if not config.overwrite:
        raise ValueError(f"--output {folder}: holds a report; --overwrite replaces it, or choose another folder")


def is_report(path: Path) -> bool:
    """Return whether the file is a report of `capsmith zero-shot`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["kind"] == KIND
    except (OSError, ValueError, KeyError, TypeError):
        return False
