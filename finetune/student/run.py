"""`capsmith train-student`: turns reinforced records into a finished CLIP model."""

import itertools
from collections.abc import Mapping
from typing import Any

from accelerate import PartialState

from finetune.card import write_student_card
from finetune.folder import run_folder, with_current_paths, write_finished
from finetune.identity import HeldOutRecords, find_duplicates
from finetune.launch import describe, run_in_ranks, say_once
from finetune.page import PAGE
from finetune.rejects import check_rejects, report_rejects
from finetune.student.classes import SCORES as CLASS_SCORES
from finetune.student.classes import HeldOutClasses
from finetune.student.config import StudentConfig
from finetune.student.model import StudentForward, load_student
from finetune.student.negatives import hard_negatives
from finetune.student.records import ReinforcedPictures
from finetune.student.retrieval import CHOICE, SCORES, WITH_NEGATIVE, HeldOutRetrieval, usable_records, write_page
from finetune.student.teachers import Teachers, check_texts, read_teachers
from finetune.trainer import Trainer
from imagetext.apart import check_apart
from imagetext.shown import say
from imagetext.sources import check_table_flags, read_samples


def run(config: StudentConfig) -> int:
    """Train a student, and return the exit code: 0, or that of the processes that it starts.

    Raises ValueError if the configuration, the model or the data have a problem.
    """
    return run_in_ranks(config, train)


def train(config: StudentConfig, state: PartialState) -> None:
    """Train in this process, which is one of those that `state` describes."""
    quiet = not state.is_main_process
    shards = read_samples(config.input, config.images, columns=config.table)
    eval_shards = read_samples(config.eval_input, config.images, columns=config.table) if config.eval_input else []
    classes = HeldOutClasses(config, quiet=quiet) if config.eval_classes else None
    all_shards = [*shards, *eval_shards, *(classes.shards if classes else ())]
    check_table_flags(all_shards, config.table)
    check_apart(config.output, [shard.path for shard in all_shards])
    teachers = read_teachers(shards, config)
    if "text" in config.kinds and teachers:
        check_texts(shards)
    paths = with_current_paths(config)
    student = load_student(paths.student, paths.pretrained)
    held_out, unusable = [], []
    if eval_shards:
        held_out, unusable = usable_records(itertools.chain.from_iterable(eval_shards), quiet=quiet)
        check_rejects(unusable, len(held_out), config, flag="--eval-input")
    only_validated = config.negatives and not config.weight_of_negatives
    if only_validated and not any(hard_negatives(sample, config.negatives) for sample in held_out):
        raise ValueError(
            f"--negatives {config.negatives!r}: with --negative-weight 0 they are used in validation only, and no "
            "picture of --eval-input has any"
        )
    pictures = ReinforcedPictures(shards, student, config, teachers=teachers, quiet=quiet)
    check_rejects(pictures.rejects, len(pictures), config)
    duplicates = find_duplicates(pictures, HeldOutRecords(held_out), range(len(held_out)))
    if classes:
        hashes = classes.survey.hashes
        duplicates |= {index for index, identity in enumerate(pictures.identities) if identity.hash in hashes}
    if duplicates:
        eval_flags = [*(["--eval-input"] if eval_shards else []), *(["--eval-classes"] if classes else [])]
        say_once(
            state,
            f"{len(duplicates):,} pictures of --input are also in {' or '.join(eval_flags)} and are not trained on",
        )
        pictures.leave_out(duplicates)
    with run_folder(config, pictures.input_hashes, state):
        if state.is_main_process:
            pictures.index.write()
            report_rejects([*pictures.rejects, *unusable], pictures.failed_before, config.output)
        trainer = Trainer(
            config,
            StudentForward(student, config, teachers),
            pictures,
            validate=HeldOutRetrieval(held_out, config.negatives, classes) if held_out or classes else None,
        )
        say_once(state, describe(trainer))
        if pictures.negatives:
            say_once(state, f"hard negatives: {share_with_negative(pictures)}")
        scores = trainer.fit()
        if state.is_main_process:
            finish(config, trainer, pictures, teachers=teachers, validation=scores)


def finish(
    config: StudentConfig,
    trainer: Trainer,
    pictures: ReinforcedPictures,
    *,
    teachers: Teachers | None,
    validation: Mapping[str, Any],
) -> None:
    """Write the page, the model card and the student, with the student's config last.

    `validation` is the last row of the validation log, {} without validation.
    """
    write_page(trainer)
    scores = [
        (measure.label, measure.text(validation), measure.definition)
        for measure in (*SCORES, CHOICE, WITH_NEGATIVE, *CLASS_SCORES)
        if measure.path[0] in validation
    ]
    records_seen = trainer.steps * config.batch_size
    data = {"trained on": f"{len(pictures):,} records of {', '.join(config.input)}, {records_seen:,} seen"}
    if validation:
        sources = ", ".join((*config.eval_input, *config.eval_classes))
        data["validated on"] = f"{validation['pictures']:,} pictures of {sources}"
    if pictures.negatives:
        data["hard negatives"] = share_with_negative(pictures)
    teacher_lines = []
    if teachers:
        teacher_lines = [
            f"{name}: {dimension} numbers, logit scale {scale:g}"
            for name, dimension, scale in zip(teachers.names, teachers.dimensions, teachers.logit_scales, strict=True)
        ]
    student = f"{config.student}, starting from {config.pretrained}" if config.pretrained else config.student
    write_student_card(
        config.output,
        name=config.output.name,
        student=student,
        data=data,
        losses=loss_lines(config),
        teachers=teacher_lines,
        scores=scores,
        recipe=config.model_dump(mode="json"),
    )
    with trainer.trained() as trained_student:
        write_finished(config, trained_student)
    say(f"student written to {config.output}; losses and scores: {config.output / PAGE}")


def loss_lines(config: StudentConfig) -> list[str]:
    """Return a line for each loss with its weight and its texts, for the model card."""
    kind_names = {"text": "original", "synthetic": "synthetic"}
    if config.single_text is None:
        parts = [f"{weight:g} × that of {kind_names[kind]} captions" for kind, weight in config.kinds.items()]
        texts = " and ".join(parts)
    else:
        shares = [f"{chance:.0%} {kind_names[kind]}" for kind, chance in config.kinds.items()]
        texts = f"that of one caption of each record, {' and '.join(shares)}"
    losses = {
        "distillation": config.distill_weight,
        "CLIP's contrastive loss": config.contrastive_weight,
        "the loss that hard negatives add as further texts of each picture": config.weight_of_negatives,
    }
    return [f"{weight:g} × {loss}, which is {texts}" for loss, weight in losses.items() if weight]


def share_with_negative(pictures: ReinforcedPictures) -> str:
    """Return, in words, how many records have a hard negative."""
    count, records = sum(pictures.has_negative), len(pictures)
    return f"{count:,} of {records:,} records have one ({count / records:.1%}), in columns like {pictures.negatives!r}"
