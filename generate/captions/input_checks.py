"""Checks that the input has the pictures, captions, classes and columns needed, before a captioner is loaded."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from captioners.resolve import is_transformers, shipped_models
from generate.captions.column import ColumnConfig
from generate.captions.config import GenerateConfig
from generate.captions.tasks import Task, literal_names
from imagetext.readers.labels import IMAGENET, Labels, imagenet_ids, keys_of_unique_names, read_class_names
from imagetext.readers.table_columns import Need
from imagetext.sample import Shard

FOR_PHOTOGRAPHS = (
    "coca_ViT-L-14 --pretrained mscoco_finetuned_laion2b_s13b_b90k, or Salesforce/blip-image-captioning-base"
)
SHARDS_LOOKED_AT = 3
RECORDS_LOOKED_AT = 100  # of the first shard, for columns that are read


def labels_of(config: GenerateConfig) -> Labels | None:
    """Return where the classes of the pictures are read from, and their names; None without --label.

    Raises: ValueError where the names cannot be read.
    """
    if not config.label:
        return None
    if not config.class_names:
        return Labels(config.label)
    names = read_class_names(config.class_names)
    numbers = {name: number for number, name in imagenet_ids().items()} if config.class_names == IMAGENET else {}
    return Labels(config.label, names, keys_of_unique_names(names) | numbers)


def needs_of(config: GenerateConfig) -> list[Need]:
    """Return what tables must have: pictures if a column looks at them, captions if an instruction needs one."""
    needs: list[Need] = []
    if any(map(may_look, config.column_configs)):
        needs.append("pictures")
    if any(column.task.reads_originals for column in config.column_configs):
        needs.append("captions")
    return needs or ["either"]


def may_look(column: ColumnConfig) -> bool:
    """Return whether the column's captioner may be shown pictures, as far as that is known before it is loaded."""
    if not column.can_look or column.instruction is None or column.of_server:
        return column.can_look
    if not is_transformers(column.captioner):
        return True
    from captioners.lm.load import is_language_model  # late: it imports transformers

    return not is_language_model(column.captioner)


def check_instructions(config: GenerateConfig) -> None:
    """Check that a captioner that is not shown the picture is told something of the record.

    Raises: ValueError that names an instruction that would be the same for all records, as of "Rewrite {text}".
    """
    for column in config.column_configs:
        if column.instruction is not None and column.task.names <= {"examples"} and not may_look(column):
            raise ValueError(
                f"instruction: {column.instruction.strip()!r} is the same for every record, and no picture is sent; "
                "write {{ text }} where the record's caption should stand"
            )


def warning_about_braces(config: GenerateConfig) -> str:
    """Return a warning where an instruction names a part of the record in single braces, as {text}; else ""."""
    instructions = [column.instruction for column in config.column_configs if column.instruction]
    names = [name for instruction in instructions for name in literal_names(instruction)]
    if not names:
        return ""
    name, *_ = names
    known = "text" if name.startswith("caption") else name
    return f"instruction: {{{name}}} is sent as it stands; for what the record has there, write {{{{ {known} }}}}"


def check_columns_read(config: GenerateConfig, shards: Sequence[Shard]) -> None:
    """Check that each column that is read is written by this run or is in one of the input's first records.

    Raises: ValueError that names the columns that are neither.
    """
    configs = config.column_configs
    if not all(column.named_columns for column in configs[:-1]):
        return  # a captioner may give its column the name that is read
    missing = {name for column in configs for name in column.task.columns_read}
    missing -= {name for column in configs for name in column.named_columns}
    in_input: set[str] = set()
    for shard in shards[:1] if missing else ():
        with suppress(OSError, ValueError):  # reported when the shard is captioned
            for record in islice(shard, RECORDS_LOOKED_AT):
                in_input |= record.columns.keys()
                if missing <= in_input:
                    return
    missing -= in_input
    if missing:
        has = f"it has {', '.join(sorted(in_input))}" if in_input else "it has no columns of captions"
        raise ValueError(
            f"instruction or fallback: reads {', '.join(sorted(missing))}, which is neither made earlier in this run "
            f"nor in the first {RECORDS_LOOKED_AT} records of the input; {has}"
        )


def check_fields_read(config: GenerateConfig, shards: Sequence[Shard]) -> None:
    """Check that one of the input's first records has the fields of `json` that an instruction reads.

    Raises: ValueError that says what the first record lacks, and which fields it has.
    """
    for task in (column.task for column in config.column_configs):
        reads_fields_alone = "json" in task.names and not task.columns_read and not task.fallback
        if reads_fields_alone and (reason := _why_none_is_instructed(task.settled(), shards[0])):
            raise ValueError(reason)


def _why_none_is_instructed(task: Task, shard: Shard) -> str:
    """Return why no instruction can be made for any of the shard's first records; "" where one can."""
    reason = ""
    with suppress(OSError, ValueError):  # reported when the shard is captioned
        for record in islice(shard, RECORDS_LOOKED_AT):
            if record.error:
                continue
            try:
                task.instruct(record, {}, column="", seed=0)
                return ""
            except ValueError as error:
                fields = ", ".join(f"json.{name}" for name in record.meta)
                reason = reason or (
                    f"none of the first {RECORDS_LOOKED_AT} records of the input has what the instruction reads: "
                    f"{error}; {record.key} has {fields}"
                )
    return reason


def warning_about_photographs(config: GenerateConfig, shards: Sequence[Shard]) -> str:
    """Return a warning where the built-in captioner, which knows drawn shapes only, gets other pictures; else "".

    The first record of each of the first shards is looked at.
    """
    names = [column.model for column in config.column_configs if column.model in shipped_models()]
    if not names:
        return ""
    for shard in [shard for shard in shards if not shard.path.startswith("scenes:")][:SHARDS_LOOKED_AT]:
        with suppress(OSError, ValueError):  # reported when the shard is captioned
            first = next(iter(shard.samples), None)
            if first is not None and "scene" not in first.meta:
                return (
                    f"{names[0]} knows only drawn shapes like those of scenes:…; if {first.key} shows anything else, "
                    f"its captions will mean nothing. For photographs, use --model {FOR_PHOTOGRAPHS}"
                )
    return ""
