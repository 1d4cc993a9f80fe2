"""`capsmith train-student`: from reinforced records to a finished CLIP model."""

from collections.abc import Mapping
from typing import Any

from accelerate import PartialState

from finetune.card import write_student_card
from finetune.folder import run_folder, with_current_paths, write_finished
from finetune.identity import HeldOutRecords, find_duplicates
from finetune.launch import describe, run_in_ranks, say_once
from finetune.not_finite import check_weights
from finetune.page import PAGE
from finetune.rejects import check_rejects, report_rejects
from finetune.student.classes import SCORES as CLASS_SCORES
from finetune.student.classes import HeldOutClasses
from finetune.student.config import StudentConfig
from finetune.student.model import StudentForward, load_student
from finetune.student.negatives import hard_negatives
from finetune.student.records import ReinforcedPictures, check_texts
from finetune.student.retrieval import CHOICE, SCORES, WITH_NEGATIVE, HeldOutRetrieval, usable_records, write_page
from finetune.student.teachers import Teachers, read_teachers
from finetune.trainer import Trainer
from imagetext.apart import check_apart
from imagetext.shown import say
from imagetext.sources import read_samples


def run(config: StudentConfig) -> int:
    """Train a student; exit code 0, or that of the ranks it starts; ValueError on a wrong configuration, model or data."""
    return run_in_ranks(config, train)


def train(config: StudentConfig, state: PartialState) -> None:
    """Train in this process, of those that `state` tells of."""
    quiet = not state.is_main_process
    shards = read_samples(config.input, config.images, columns=config.table)
    eval_shards = read_samples(config.eval_input, config.images, columns=config.table) if config.eval_input else []
    classes = HeldOutClasses(config, quiet=quiet) if config.eval_classes else None
    check_apart(config.output, [shard.path for shard in (*shards, *eval_shards, *(classes.shards if classes else ()))])
    teachers = read_teachers(shards, config)
    if "text" in config.kinds and teachers:
        check_texts(shards)
    where = with_current_paths(config)
    student = load_student(where.student, where.pretrained)
    check_weights(student.model, f"--student {config.student}")
    held_out = usable_records((sample for shard in eval_shards for sample in shard), quiet=quiet) if eval_shards else []
    if (
        config.negatives
        and not config.weight_of_negatives
        and not any(hard_negatives(sample, config.negatives) for sample in held_out)
    ):
        raise ValueError(
            f"--negatives {config.negatives!r}, --negative-weight 0: they are looked at in validation alone, and no picture of "
            "--eval-input has any"
        )
    pictures = ReinforcedPictures(shards, student, config, teachers, quiet=quiet)
    check_rejects(pictures.rejects, len(pictures), config)
    both = find_duplicates(pictures, HeldOutRecords(held_out), range(len(held_out)))
    if classes:
        both |= {number for number, (_, hash) in enumerate(pictures.identities) if hash in classes.seen.hashes}
    if both:
        flags = " and ".join(
            flag for flag, given in (("--eval-input", config.eval_input), ("--eval-classes", classes)) if given
        )
        say_once(state, f"{len(both):,} pictures of --input are held out by {flags}, and so are not trained on")
        pictures.leave_out(both)
    with run_folder(config, pictures.read, state):
        if state.is_main_process:
            report_rejects(pictures.rejects, pictures.failed_before, config.output)
        trainer = Trainer(
            config,
            StudentForward(student, config, teachers),
            pictures,
            HeldOutRetrieval(held_out, config.negatives, classes) if held_out or classes else None,
        )
        say_once(state, describe(trainer))
        if pictures.negatives:
            say_once(state, f"hard negatives: {share_with_negative(pictures)}")
        validated = trainer.fit()
        if state.is_main_process:
            finish(config, trainer, pictures, teachers, validated)


def finish(
    config: StudentConfig,
    trainer: Trainer,
    pictures: ReinforcedPictures,
    teachers: Teachers | None,
    validated: Mapping[str, Any],
) -> None:
    """Writes the page, the model card and the student, whose config comes last."""
    write_page(trainer)
    scores = [
        (measure.label, measure.text(validated), measure.definition)
        for measure in (*SCORES, CHOICE, WITH_NEGATIVE, *CLASS_SCORES)
        if measure.path[0] in validated
    ]
    seen = trainer.steps * config.batch_size
    data = {"trained on": f"{len(pictures):,} records of {', '.join(config.input)}, {seen:,} seen"}
    if validated:
        data["validated on"] = (
            f"{validated['pictures']:,} pictures of {', '.join((*config.eval_input, *config.eval_classes))}"
        )
    if pictures.negatives:
        data["hard negatives"] = share_with_negative(pictures)
    called = {"text": "original", "synthetic": "synthetic"}
    if config.single_text is None:
        texts = " and ".join(f"{weight:g} × that of {called[kind]} captions" for kind, weight in config.kinds.items())
    else:
        chances = (f"{chance:.0%} {called[kind]}" for kind, chance in config.kinds.items())
        texts = f"that of one caption of each record, {' and '.join(chances)}"
    losses = [
        f"{weight:g} × {what}, of which: {texts}"
        for what, weight in (
            ("distillation", config.distill_weight),
            ("CLIP's contrastive loss", config.contrastive_weight),
            (
                "what the losses of texts given pictures grow by with hard negatives as further texts",
                config.weight_of_negatives,
            ),
        )
        if weight
    ]
    names = (
        [
            f"{name}: {dimension} numbers, logit scale {scale:g}"
            for name, dimension, scale in zip(teachers.names, teachers.dimensions, teachers.logit_scales, strict=True)
        ]
        if teachers
        else []
    )
    student = f"{config.student}, beginning with {config.pretrained}" if config.pretrained else config.student
    write_student_card(
        config.output,
        name=config.output.name,
        student=student,
        data=data,
        losses=losses,
        teachers=names,
        scores=scores,
        recipe=config.model_dump(mode="json"),
    )
    with trainer.trained() as written:
        write_finished(config, written)
    say(f"student written to {config.output}; how it went: {config.output / PAGE}")


def share_with_negative(pictures: ReinforcedPictures) -> str:
    """How many records have a hard negative, in words."""
    count, records = sum(pictures.has_negative), len(pictures)
    return f"{count:,} of {records:,} records have one ({count / records:.1%}), in columns like {pictures.negatives!r}"
