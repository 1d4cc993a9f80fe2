"""`capsmith zero-shot`: labelled pictures and CLIP models in, how often these tell the classes out."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
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
from finetune.zero_shot.support import described, draw_shots
from imagetext.apart import check_apart
from imagetext.lock import LOCK, FolderLock, check_lock
from imagetext.outputs import UNFINISHED, write_file
from imagetext.sample import Shard
from imagetext.shown import Progress, masked, say

REPORT, PREDICTIONS = "zero_shot.json", "predictions.jsonl"
NO_NAME = re.compile(r"\d+|n\d{8}")  # a number, or an id of WordNet


def run(config: ZeroShotConfig) -> int:
    """Writes report, page and predictions; exit code 0, or 3 where more pictures failed than `--max-error-rate` allows.

    Raises ValueError for whatever is wrong with the configuration, the models or the set, before any picture is decoded.
    """
    _check_output(config)  # then not even a lock is written there
    with FolderLock(config.output):
        report, predictions = measure(config)
        files = {
            REPORT: json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"
        }  # first: it says whose folder this is
        files |= {PREDICTIONS: "".join(predictions), PAGE: render(report)}
        for name, text in files.items():
            check_lock(str(config.output))
            write_file(config.output / name, text)
    say(*report.answer, *report.notes, f"Report: {config.output / PAGE}")
    return 3 if report.failed > config.max_error_rate * (report.failed + report.pictures) else 0


def measure(config: ZeroShotConfig) -> tuple[ZeroShotReport, list[str]]:
    """The report, and a line of JSON for each picture; ValueError as `run` has it."""
    device = choose_device(config.device)
    (shards, names), support, templates, hierarchy, models = _all_or_told(
        lambda: read_labelled(config.input, config.images, config.table, config.label, config.class_names),
        lambda: (
            read_labelled(config.support, config.images, config.table, config.label, config.class_names)[0]
            if config.support
            else []
        ),
        lambda: read_templates(config.templates),
        lambda: read_hierarchy(config.hierarchy) if config.hierarchy else None,
        lambda: load_models(config.model, device, config.dtype),
    )
    check_apart(config.output, [shard.path for shard in (*shards, *support)])
    seen = survey_labels(shards, names)
    check_rejects(seen.failed, seen.pictures - len(seen.failed), config)
    notes = _notes(seen, config) + _teach(
        models, seen, templates, hierarchy(seen.classes) if hierarchy else None, config
    )
    if support:
        notes += _give_support(models, seen, support, config)
    labels, rows = ask(models, shards, seen, config)
    failed = sum(bool(row["error"]) for row in rows)
    if not len(labels):
        raise ValueError(
            f"--input: none of the {failed:,} pictures can be used, e.g. {rows[0]['key']}: {rows[0]['error']}"
        )
    if failed:
        example = next(row for row in rows if row["error"])
        notes.append(
            f"{failed:,} of {len(rows):,} pictures cannot be used, e.g. {example['key']}: {example['error']}; all are in "
            f"{PREDICTIONS}."
        )
    report = make_report(
        {model.name: model.answers[0] for model in models},
        {model.name: model.reranked for model in models},
        {model.name: model.adapted for model in models},
        {model.name: model.mistakes for model in models},
        labels,
        seen.classes,
        failed=failed,
        notes=notes,
        settings=_settings(config) | {"said of a class": templates},
        seed=config.seed,
    )
    return report, _predictions(rows, models, seen.classes.labels)


def _settings(config: ZeroShotConfig) -> dict[str, Any]:
    """What decides the answers, without what is not given."""
    unused = {"output", "overwrite", "num_workers", "group"} | (set() if config.support else {"shots"})
    return {
        name: value
        for name, value in config.model_dump(mode="json", exclude=unused).items()
        if value not in (None, [])
    }


def _teach(
    models: Sequence[Classifier],
    seen: LabelSurvey,
    templates: Sequence[str],
    families: Hierarchy | None,
    config: ZeroShotConfig,
) -> list[str]:
    """Has the models read the classes' texts; what a reader must know of these."""
    names, notes = seen.classes.names, []
    if families and families.known < len(names):
        notes.append(f"--hierarchy {config.hierarchy} knows {families.known:,} of {len(names):,} classes.")
    for model in models:
        if cut := model.name_classes(names, templates, families):
            notes.append(
                f"{model.name} reads {model.clip.context_length} tokens, and {cut:,} texts of classes are cut."
            )
    return notes


def _give_support(
    models: Sequence[Classifier], seen: LabelSurvey, support: Sequence[Shard], config: ZeroShotConfig
) -> list[str]:
    """Has the models look at the support pictures; what a reader must know of these."""
    number = {label: at for at, label in enumerate(seen.classes.labels)}
    records = (record for shard in support for record in shard)
    shots, held = draw_shots(records, number, config.shots, config.seed, seen.hashes)
    columns = described(shots, config.column)
    for model in models:
        model.learn(shots, columns, config.batch_size)
    counts = Counter(shot.label for shot in shots)
    few = sum(counts[one] < config.shots for one in range(len(number)))
    return [
        *([f"{held:,} pictures of --support are among those of --input, and do not help."] if held else []),
        *(
            [f"{few:,} of {len(number):,} classes have fewer than {config.shots} pictures in --support."]
            if few
            else []
        ),
    ]


@torch.inference_mode()
def ask(
    models: Sequence[Classifier], shards: Sequence[Shard], seen: LabelSurvey, config: ZeroShotConfig
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """All models answer for all pictures, each decoded once; the numbers of the pictures' classes, and a row a record."""
    number = {label: at for at, label in enumerate(seen.classes.labels)}
    records = (record for shard in shards for record in shard)
    transforms = [model.clip.transform for model in models]
    labels, rows = [], []
    with Progress(total=seen.pictures, desc="asking", unit="picture", mininterval=1) as progress:
        for batch in prepare_batches(records, transforms, config.batch_size, workers(config.num_workers)):
            rows += [{"key": one.record.key, "label": one.record.label, "error": masked(one.error)} for one in batch]
            good = [one for one in batch if not one.error]
            right = [number[one.record.label or ""] for one in good]
            labels += right
            for at, model in enumerate(models if good else ()):
                model.ask(torch.stack([one.pixels[at] for one in good]), good, right)
            progress.update(len(batch))
    return np.array(labels, int), rows


def _predictions(rows: Sequence[dict[str, Any]], models: Sequence[Classifier], labels: Sequence[str]) -> list[str]:
    """Each picture's class, and the best answers of each model with their probabilities; or the reason why there are none.

    With a hierarchy, `agreement` is the share of templates that alone give the first answer, and `reranked` the classes of those
    pictures that the model is unsure of, ranked anew.
    """
    found = {model.name: iter(zip(*model.answers, strict=True)) for model in models}
    doubts = {model.name: iter(zip(*of, strict=True)) for model in models if (of := model.doubts)}
    lines = []
    for row in rows:
        said: dict[str, Any] = {"answers": {}} | ({"agreement": {}, "reranked": {}} if doubts else {})
        if not row["error"]:
            said["answers"] = {name: _named(*next(of), labels) for name, of in found.items()}
            for name, of in doubts.items():
                unsure, agreement, ranked = next(of)
                said["agreement"][name] = round(float(agreement), 6)
                if unsure:
                    said["reranked"][name] = [labels[one] for one in ranked.tolist()]
        lines.append(json.dumps(row | said, ensure_ascii=False) + "\n")
    return lines


def _named(classes: np.ndarray, probabilities: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"class": labels[one], "probability": round(probability, 6)}
        for one, probability in zip(classes.tolist(), probabilities.tolist(), strict=True)
    ]


def _notes(seen: LabelSurvey, config: ZeroShotConfig) -> list[str]:
    """What a reader must know of the classes."""
    notes = []
    if not config.class_names and all(NO_NAME.fullmatch(name) for name in seen.classes.names):
        notes.append(
            f"The models are asked for {', '.join(map(repr, seen.classes.names[:2]))} and the like, as the set calls its classes: "
            "--class-names says what these are."
        )
    empty = [name for name, pictures in zip(seen.classes.names, seen.classes.pictures, strict=True) if not pictures]
    if empty:
        more = ", …" if len(empty) > 3 else ""
        notes.append(
            f"{len(empty):,} of {len(seen.classes.names):,} classes have no picture ({', '.join(empty[:3])}{more}): they are "
            "among the answers, and not in the mean over classes."
        )
    return notes


def _all_or_told(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls return; ValueError with what is wrong with any of them."""
    found, problems = [], []
    for call in calls:
        try:
            found.append(call())
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n  ".join(problems))
    return found


def _check_output(config: ZeroShotConfig) -> None:
    """Raises ValueError unless the folder is empty or new, or holds an earlier report that `--overwrite` replaces."""
    folder = config.output
    if not folder.exists() or (
        folder.is_dir() and {one.name for one in folder.iterdir()} <= {LOCK, REPORT + UNFINISHED}
    ):
        return
    if not is_report(folder / REPORT):
        raise ValueError(f"--output {folder}: not empty, and no report of {KIND}; choose another folder")
    if not config.overwrite:
        raise ValueError(f"--output {folder}: holds a report; --overwrite replaces it, or choose another folder")


def is_report(path: Path) -> bool:
    """Whether the file is the report of such a run."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["kind"] == KIND
    except (OSError, ValueError, KeyError, TypeError):
        return False
