"""What is asked for a column, and where the answer goes: a template over the record, examples, fields of JSON, what to fall back to."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from generate.captions.examples import SHIPPED, Pair, draw_pairs, hash_of_pairs, read_pairs
from generate.captions.templates import Template, Texts, bounded
from imagetext import limits
from imagetext.columns import is_tags
from imagetext.fields import readable
from imagetext.hashes import name_hash
from imagetext.sample import Record
from imagetext.shards import check_column
from imagetext.stores import read_bytes

OF_RECORD = ("text", "texts", "label", "key", "json", "examples")  # names in a template, beside those of columns

template_of = lru_cache(32)(Template)  # a configuration asks for one at every turn, and making it takes milliseconds


def _read_file(instruction: Any) -> Any:
    """What stands in the file, where an instruction is @FILE."""
    if not isinstance(instruction, str) or not instruction.startswith("@"):
        return instruction
    try:
        read = readable(read_bytes(instruction[1:], limits.TEXT), instruction[1:])
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror or error}") from error
    if read.startswith("@"):
        raise ValueError("the file begins with @, which would name another file")
    return read


def _check_template(instruction: str) -> str:
    if not instruction.strip():
        raise ValueError("is empty")
    unknown = [
        name for name in sorted(template_of(instruction).names) if name not in OF_RECORD and not is_column(name)
    ]
    if unknown:
        raise ValueError(
            f"names {', '.join(unknown)}; a template knows {', '.join(OF_RECORD)} and columns of captions, such as syn_text_x; "
            "other fields of a record stand in json, as json.x"
        )
    return instruction


def is_column(name: str) -> bool:
    """Whether this can be the name of a column."""
    try:
        return bool(check_column(name))
    except ValueError:
        return False


def _as_mapping(fields: Any) -> Any:
    """A list of FIELD=COLUMN, as flags have it, as a mapping."""
    if not isinstance(fields, list):
        return fields
    if wrong := [one for one in fields if not isinstance(one, str) or one.count("=") != 1]:
        raise ValueError(f"{', '.join(map(str, wrong))}: is no FIELD=COLUMN")
    return dict(one.split("=") for one in fields)


def _check_fields(fields: dict[str, str]) -> dict[str, str]:
    columns = [check_column(column) for column in fields.values()]
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise ValueError(f"{', '.join(twice)}: is the column of two fields")
    return fields


def _check_fallback(name: str) -> str:
    if name != "text" and not is_column(name):
        raise ValueError("is neither text (an original caption) nor the name of a column")
    return name


class TaskConfig(BaseModel):
    """What a captioner is asked, and what becomes of its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruction: Annotated[str, BeforeValidator(_read_file), AfterValidator(_check_template)] | None = Field(
        None,
        description="what the captioner is asked, or @FILE: a template in Jinja's language over the record: {{ text }}, an original "
        "caption, texts, label, key, json.x, examples, and columns by their names; the captioner's own unless given",
    )
    examples: str | None = Field(
        None,
        description=f"pairs of captions that the instruction shows: {', '.join(SHIPPED)}; a .txt file with source => target in a "
        "line, or a .jsonl file with source and target; or any input with several captions a picture",
    )
    num_examples: int = Field(3, ge=1, le=100, description="pairs that are drawn for each record")
    text_only: bool = Field(False, description="ask by words alone, without the picture")
    fields: Annotated[dict[str, str], BeforeValidator(_as_mapping), AfterValidator(_check_fields)] = Field(
        {}, description="FIELD=COLUMN, where a field of an answer in JSON goes to; repeatable"
    )
    fallback: list[Annotated[str, AfterValidator(_check_fallback)]] = Field(
        [],
        description="what stands in the column where no answer passes: text, an original caption, or another column; repeatable, "
        "in order",
    )

    @model_validator(mode="after")
    def _task_fits_together(self) -> Self:
        names = template_of(self.instruction).names if self.instruction else frozenset()
        problems = []
        if "examples" in names and not self.examples:
            problems.append("instruction: names examples, and none are given (--examples)")
        if self.examples and "examples" not in names:
            problems.append(f"examples: {self.examples}: the instruction does not name them")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def names(self) -> frozenset[str]:
        """What the instruction takes from the record."""
        return template_of(self.instruction).names if self.instruction else frozenset()

    @property
    def columns_read(self) -> list[str]:
        """The columns that the instruction or a fallback reads."""
        return sorted(self.names.union(self.fallback).difference(OF_RECORD))

    @property
    def reads_originals(self) -> bool:
        """Whether the instruction needs an original caption: it names one, and does not ask first whether it is there."""
        return bool(self.instruction) and not template_of(self.instruction).needed.isdisjoint(("text", "texts"))

    def settled(self) -> "Task":
        """The task with its examples read; ValueError where they cannot be."""
        pairs = tuple(read_pairs(self.examples)) if self.examples else ()
        return Task(self.instruction, pairs, self.num_examples, self.text_only, self.fields, tuple(self.fallback))


class Instructed(NamedTuple):
    """A record's instruction, and what the answer to it is judged beside."""

    instruction: str | None
    text: str = ""  # what the answer is made of: the captions that the instruction has of the record
    examples: tuple[str, ...] = ()  # all their texts


@dataclass(frozen=True)
class Task:
    """What is asked for a column and where the answer goes, as the run has settled it.

    What is drawn for a record, a caption of several and examples, is a function of seed, column and the record's key.
    """

    instruction: str | None = None
    pairs: Sequence[Pair] = field(default=(), repr=False)
    num_examples: int = 3
    text_only: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    fallback: Sequence[str] = ()

    @cached_property
    def template(self) -> Template | None:
        return template_of(self.instruction) if self.instruction is not None else None

    @cached_property
    def columns_read(self) -> frozenset[str]:
        """The columns that the instruction or a fallback reads."""
        names = self.template.names if self.template else frozenset()
        return names.union(self.fallback).difference(OF_RECORD)

    def instruct(self, record: Record, written: Mapping[str, Sequence[str]], column: str, seed: int) -> Instructed:
        """What is asked for a record, of which columns are `written` already; ValueError, with the reason, where it lacks a name."""
        if self.template is None:
            return Instructed(None)
        names, values = self.template.names, {}
        for name in names:
            value = self._value(name, record, written, column, seed)
            if value is not None:
                values[name] = bounded(value, name) if isinstance(value, str | Texts) else value
        instruction = self.template.render(values)
        made_of: list[str] = []
        for name in sorted(values.keys() - {"label", "key", "json", "examples"}):
            made_of += values[name] if name == "texts" else [str(values[name])]
        shown = [text for pair in values.get("examples", ()) for text in pair.values()]
        return Instructed(instruction, "\n".join(made_of), tuple(shown))

    def fall_back(
        self, record: Record, written: Mapping[str, Sequence[str]], column: str, seed: int
    ) -> tuple[str, str] | None:
        """What the column falls back to, and the text there: the first of `fallback` that the record has."""
        for name in self.fallback:
            if value := self._value(name, record, written, column, seed):
                return name, str(value)
        return None

    def _value(self, name: str, record: Record, written: Mapping[str, Sequence[str]], column: str, seed: int) -> Any:
        """What a name in a template or a fallback stands for; None where the record lacks it."""
        if name == "label":
            return record.label
        if name == "key":
            return record.key
        if name == "json":
            return {name: bounded(value, f"json.{name}") for name, value in record.meta.items()}
        if name == "examples":
            drawn = draw_pairs(self.pairs, self.num_examples, f"{column}\n{record.key}", seed)
            return [pair._asdict() for pair in drawn]
        texts = record.captions if name in ("text", "texts") else written.get(name) or record.columns.get(name) or ()
        if not (texts := [text for text in texts if text.strip()]):
            return None
        chosen = Texts(texts)
        chosen.shown = name_hash(f"{column}\n{name}\n{record.key}", "caption", seed=seed) % len(texts)
        return str(chosen) if name == "text" else chosen

    def fingerprint(self, *, looks: bool) -> dict[str, Any]:
        """All of it that decides what is written, and in words what captions are made of; looks: whether at the picture, too."""
        made_of = [*["the picture"] * looks, *["words"] * (self.instruction is not None)]
        return {
            "made_of": " and ".join(made_of),
            "instruction": self.instruction,
            "instruction_sha256": hashlib.sha256((self.instruction or "").encode("utf-8", "replace")).hexdigest(),
            "examples_sha256": hash_of_pairs(self.pairs) if self.pairs else None,
            "num_examples": self.num_examples,
            "fields": dict(self.fields),
            "fallback": list(self.fallback),
        }


def problems_of_order(columns: Sequence[tuple[Sequence[str], Collection[str]]]) -> list[str]:
    """Which names are written twice, or too late, by columns that each write and read some."""
    written = [name for writes, _ in columns for name in writes]
    problems = [
        f"columns: {name} named twice; give each its own name"
        for name in dict.fromkeys(written)
        if written.count(name) > 1
    ]
    for at, (writes, reads) in enumerate(columns):
        late = {name for others, _ in columns[at:] for name in others}.intersection(reads)
        problems += [
            f"{writes[0]}: reads {name}, which is not written before it; put its column first" for name in sorted(late)
        ]
    return problems


def schema_of(fields: Mapping[str, str]) -> str:
    """The JSON schema of an answer with these fields: tags are lists of texts, all others a text."""
    text = {"type": "string"}
    properties = {
        name: {"type": "array", "items": text} if is_tags(column) else text for name, column in fields.items()
    }
    return json.dumps(
        {"type": "object", "properties": properties, "required": list(fields), "additionalProperties": False}
    )
