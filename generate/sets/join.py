"""`capsmith join`: captions that were written apart, or with other copies of the pictures, into the pictures' own shards."""

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from generate.runs.config import Folder
from generate.runs.manifest import RULES, check_own, write_run
from imagetext.lock import FolderLock
from imagetext.readers.table_flags import TableFlags
from imagetext.sets.join import On, join, parse_text_from
from imagetext.shards import Format, read_shards
from imagetext.shown import say
from imagetext.sources import read_samples


def _check_text_from(text: str) -> str:
    parse_text_from(text)
    return text


class JoinConfig(TableFlags):
    """Put captions into the shards of their pictures, matched by what names these, never by order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: list[str] = Field(min_length=1, description="the pictures: shards, folder, CSV, JSONL, Parquet; repeatable")
    captions: list[str] = Field(
        [],
        description="the captions: a folder that capsmith generate wrote, records, or published ones (laclip:…, vecap:…, "
        "hq-clip:…, recap:…); repeatable",
    )
    on: On = Field("uid", description="what names a picture: its uid, its key, the hash of its bytes, its URL or path")
    output: Folder = Field(description="folder for the records, one file per input shard")
    format: Format = Field("webdataset", description="of the records")
    text_from: Annotated[str, AfterValidator(_check_text_from)] | None = Field(
        None, description="COLUMN:p: `txt` is a caption of this column with probability p, else the first original"
    )
    replace_columns: bool = Field(
        False, description="replace captions that a record has in these columns already; else an error"
    )
    drop_text_embeddings: bool = Field(
        False,
        description="leave out a reinforced set's text embeddings, which its readers would "
        "pair with the new column's captions; else an error",
    )
    seed: int = Field(0, ge=0, description="of the choice of texts")


def run(config: JoinConfig) -> int:
    """Join and say how many pictures got captions; 0, or 1 where none of them did though there are captions.

    Raises: ValueError for a bad input, for a column that is there already, for a folder of captions that is not whole, and for an
    output that holds something else than joined shards.
    """
    if not config.captions and not config.text_from:
        raise ValueError("--captions: required, unless --text-from draws texts from columns that are there")
    check_own(config.output, "join")  # then not even a lock is written there
    shards = read_samples(config.input, config.images, columns=config.table)
    earlier = read_shards(config.output) or []
    names = list(dict.fromkeys([*earlier, *(shard.name for shard in shards)]))
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
    say(
        f"{config.output}: {joined.matched:,} pictures with captions joined on {config.on}, "
        f"{joined.unmatched:,} without any to join, {joined.duplicate:,} with several that differ"
    )
    if not config.captions or joined.matched:
        return 0
    picture, caption = joined.unlike
    names = f": a picture has {picture!r} and captions have {caption!r}" if picture and caption else ""
    say(f"Nothing was joined{names}. Say with --on what names a picture in both.")
    return 1
