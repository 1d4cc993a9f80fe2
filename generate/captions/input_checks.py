"""What columns ask of the input, told before any captioner is loaded: pictures, captions, classes, columns that are read."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from captioners.resolve import is_transformers, shipped_models
from generate.captions.config import ColumnConfig, GenerateConfig
from imagetext.readers.labels import IMAGENET, Labels, imagenet_ids, keys_of_unique_names, read_class_names
from imagetext.readers.table_columns import Need
from imagetext.sample import Shard

FOR_PHOTOGRAPHS = (
    "coca_ViT-L-14 --pretrained mscoco_finetuned_laion2b_s13b_b90k, or Salesforce/blip-image-captioning-base"
)
SHARDS_LOOKED_AT = 3
RECORDS_LOOKED_AT = 100  # of the first shard, for columns that are read


def labels_of(config: GenerateConfig) -> Labels | None:
    """Where the pictures' classes stand, if they are asked for; ValueError where their names cannot be read."""
    if not config.label:
        return None
    if not config.class_names:
        return Labels(config.label)
    names = read_class_names(config.class_names)
    numbers = {name: number for number, name in imagenet_ids().items()} if config.class_names == IMAGENET else {}
    return Labels(config.label, names, keys_of_unique_names(names) | numbers)


def needs_of(config: GenerateConfig) -> list[Need]:
    """What tables must have for the columns: pictures where one is looked at, captions where one is named."""
    needs: list[Need] = []
    if any(map(may_look, config.column_configs)):
        needs.append("pictures")
    if any(column.task.reads_originals for column in config.column_configs):
        needs.append("captions")
    return needs or ["either"]


def may_look(column: ColumnConfig) -> bool:
    """Whether the column's captioner is shown pictures, as far as can be told before it is loaded."""
    if not column.can_look or column.instruction is None or column.of_server:
        return column.can_look
    if not is_transformers(column.captioner):
        return True
    from captioners.lm.load import is_language_model  # late: it imports transformers

    return not is_language_model(column.captioner)


def check_columns_read(config: GenerateConfig, shards: Sequence[Shard]) -> None:
    """Raises ValueError where a column is read that neither this run writes nor one of the input's first records has."""
    configs = config.column_configs
    if not all(column.named_columns for column in configs[:-1]):  # it may be one that has its captioner's name
        return
    wanted = {name for column in configs for name in column.task.columns_read}
    wanted -= {name for column in configs for name in column.named_columns}
    seen: set[str] = set()
    for shard in shards[:1] if wanted else ():
        with suppress(OSError, ValueError):  # which its turn tells of
            for record in islice(shard, RECORDS_LOOKED_AT):
                seen |= record.columns.keys()
                if wanted <= seen:
                    return
    if wanted - seen:
        has = f"it has {', '.join(sorted(seen))}" if seen else "it has no columns of captions"
        raise ValueError(
            f"instruction or fallback: reads {', '.join(sorted(wanted - seen))}, which is neither made earlier in this run nor in "
            f"the first {RECORDS_LOOKED_AT} records of the input; {has}"
        )


def told_of_drawn_shapes(config: GenerateConfig, shards: Sequence[Shard]) -> str:
    """What there is to say where the built-in captioner gets other pictures than it knows, by the first of some shards."""
    names = [column.model for column in config.column_configs if column.model in shipped_models()]
    if not names:
        return ""
    for shard in [shard for shard in shards if not shard.path.startswith("scenes:")][:SHARDS_LOOKED_AT]:
        with suppress(OSError, ValueError):  # which its turn tells of
            if (first := next(iter(shard.samples), None)) is not None and "scene" not in first.meta:
                return (
                    f"{names[0]} knows drawn shapes alone, those of scenes:…, and {first.key} is none: what it says of it "
                    f"means nothing. For photographs, say --model {FOR_PHOTOGRAPHS}"
                )
    return ""
