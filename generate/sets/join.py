"""`capsmith join`: puts captions into the shards of their pictures.

The captions were written without pictures, or beside other copies of the pictures.
"""

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from generate.runs.config import Folder
from generate.runs.manifest import RULES, check_own, write_run
from generate.runs.set_card import write_set_card
from imagetext.lock import FolderLock
from imagetext.readers.table_flags import TableFlags
from imagetext.sets.join import On, join, parse_text_from
from imagetext.shards import Format, read_markers, read_shards
from imagetext.shown import say
from imagetext.sources import check_table_flags, read_samples


def _check_text_from(text: str) -> str:
    parse_text_from(text)
    return text


class JoinConfig(TableFlags):
    """Put captions into the shards of their pictures. Pictures and captions are matched by name, never by order.

    The flags for tables are for those in --input. Tables in --captions need columns with the usual names: key, uid or
    id for keys, syn_text_… for captions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: list[str] = Field(min_length=1, description="pictures: shards, folder, CSV, JSONL, Parquet; repeatable")
    captions: list[str] = Field(
        [],
        description="captions to join: a folder that capsmith generate wrote, records, or a published set (laclip:…, "
        "vecap:…, hq-clip:…, recap:…); repeatable; required without --text-from",
    )
    on: On = Field(
        "uid", description="what pictures and captions are matched by: uid, key, hash of the bytes, URL or path"
    )
    output: Folder = Field(description="folder for the records, one file per input shard")
    format: Format = Field("webdataset", description="file format of the records")
    text_from: Annotated[str, AfterValidator(_check_text_from)] | None = Field(
        None,
        description="COLUMN:p: write a caption of this column as `txt` with probability p, and otherwise the first "
        "original caption; make this the last step, because other commands write the original caption again",
    )
    replace_columns: bool = Field(
        False,
        description="replace the captions that a record already has in the joined columns; without this flag, such "
        "captions are an error",
    )
    drop_text_embeddings: bool = Field(
        False,
        description="remove the text embeddings of a reinforced set, which do not belong to the new captions; without "
        "this flag, they are an error",
    )
    seed: int = Field(0, ge=0, description="random seed for --text-from")


def run(config: JoinConfig) -> int:
    """Join the captions, print how many pictures got some, and return the exit code.

    Returns: 0, or 1 where captions were given and none of them was joined, or no record has the column of --text-from.
    Raises: ValueError for a bad input, for a column that is there already, for a folder of captions that is
    incomplete, and for an output that holds something else than joined shards.
    """
    if not config.captions and not config.text_from:
        raise ValueError("--captions: required, unless --text-from draws texts from columns that are there")
    check_own(config.output, "join")  # before the lock, so that nothing is written to another command's folder
    shards = read_samples(config.input, config.images, columns=config.table)
    check_table_flags(shards, config.table)
    earlier_names = read_shards(config.output) or []
    names = list(dict.fromkeys([*earlier_names, *(shard.name for shard in shards)]))
    fingerprint = {
        "rules": RULES,
        "columns": {},
        "join": config.model_dump(mode="json", exclude={"input", "output", "images"}),
    }
    with FolderLock(config.output):
        joined = join(
            shards,
            config.captions,
            config.output,
            on=config.on,
            format=config.format,
            overwrite=config.replace_columns,
            drop_text_embeddings=config.drop_text_embeddings,
            text_from=parse_text_from(config.text_from) if config.text_from else None,
            seed=config.seed,
            begin=lambda: write_run(config.output, fingerprint, names),
        )
    settings = config.model_dump(mode="json", exclude={"output", "format"}, exclude_defaults=True)
    title = f"Pictures of {', '.join(config.input)}, joined with captions"
    markers = read_markers(config.output)
    write_set_card(config.output, "join", title, [markers[name] for name in names], settings)
    if config.captions:
        say(
            f"{config.output}: {joined.matched:,} pictures with captions joined on {config.on}, "
            f"{joined.unmatched:,} without any to join, {joined.duplicate:,} with several that differ"
        )
    if config.text_from and not joined.drawable:
        say(f"--text-from {config.text_from}: no record has captions in this column, so no `txt` was drawn")
        return 1
    if config.text_from:
        column, probability = parse_text_from(config.text_from)
        say(
            f"{config.output}: {joined.drawable:,} records have captions in {column}; their `txt` is one of these "
            f"with probability {probability:g}, and always if they have no original caption"
        )
    if not config.captions or joined.matched:
        return 0
    picture, caption = joined.unlike
    examples = f": a picture has {picture!r} and captions have {caption!r}" if picture and caption else ""
    tables = "; a table in --captions needs it in a column key, uid or id" if config.on in ("uid", "key") else ""
    say(f"Nothing was joined{examples}. Use --on to say what names a picture in both{tables}.")
    return 1
