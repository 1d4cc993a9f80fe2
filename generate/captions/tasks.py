"""What the captioner of a column is asked, and which column its answer goes to.

A task is a template over the record, with examples, the fields of a JSON answer, and the columns to fall back to.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from generate.captions.examples import SHIPPED, Pair, draw_pairs, hash_of_pairs, read_pairs
from generate.captions.sandbox import Texts, bounded
from generate.captions.templates import Template
from imagetext import limits
from imagetext.columns import is_tags
from imagetext.fields import readable
from imagetext.hashes import name_hash
from imagetext.sample import Record
from imagetext.shards import check_column
from imagetext.stores import read_bytes

RECORD_NAMES = ("text", "texts", "label", "key", "json", "examples")  # names in a template, beside columns
NO_CAPTIONS = {"label", "key", "json", "examples"}  # those that hold no captions of the record
_IN_BRACES = re.compile(r"(?<!\{)\{ ?(\w+)(?:\.\w+)? ?\}(?!\})")

# Cached, because validation asks for the same template again and again, and parsing takes milliseconds.
template_of = lru_cache(32)(Template)


def _read_file(instruction: Any) -> Any:
    """Return the content of FILE where an instruction is @FILE, and any other instruction as it is."""
    if not isinstance(instruction, str) or not instruction.startswith("@"):
        return instruction
    try:
        content = readable(read_bytes(instruction[1:], limits.TEXT), instruction[1:])
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror or error}") from error
    if content.startswith("@"):
        raise ValueError("the file begins with @, which would name another file")
    return content


def _check_template(instruction: str) -> str:
    if not instruction.strip():
        raise ValueError("is empty")
    names = sorted(template_of(instruction).names)
    unknown = [name for name in names if name not in RECORD_NAMES and not _is_valid_column(name)]
    if unknown:
        raise ValueError(
            f"names {', '.join(unknown)}; a template knows {', '.join(RECORD_NAMES)} and columns of captions, such as "
            "syn_text_x; other fields of a record are in json, as json.x"
        )
    return instruction


def literal_names(instruction: str) -> list[str]:
    """Return the names of captions and other parts of a record that are in single braces, and so mean nothing."""
    names = _IN_BRACES.findall(instruction)
    return [name for name in names if name in (*RECORD_NAMES, "caption", "captions") or _is_valid_column(name)]


def _is_valid_column(name: str) -> bool:
    try:
        check_column(name)
    except ValueError:
        return False
    return True


def _as_mapping(fields: Any) -> Any:
    """Turn a list of FIELD=COLUMN, which flags give, into a mapping."""
    if not isinstance(fields, list):
        return fields
    if wrong := [entry for entry in fields if not isinstance(entry, str) or entry.count("=") != 1]:
        raise ValueError(f"{', '.join(map(str, wrong))}: is no FIELD=COLUMN")
    return dict(entry.split("=") for entry in fields)


def _check_fields(fields: dict[str, str]) -> dict[str, str]:
    columns = [check_column(column) for column in fields.values()]
    if repeated := sorted({column for column in columns if columns.count(column) > 1}):
        raise ValueError(f"{', '.join(repeated)}: is the column of two fields")
    return fields


def _check_fallback(name: str) -> str:
    if name != "text" and not _is_valid_column(name):
        raise ValueError("is neither text (an original caption) nor the name of a column")
    return name


class TaskConfig(BaseModel):
    """What a captioner is asked, and which columns its answer goes to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruction: Annotated[str, BeforeValidator(_read_file), AfterValidator(_check_template)] | None = Field(
        None,
        description="what the captioner is asked, or @FILE to read it from a file; a Jinja template that may name "
        "{{ text }} (an original caption), texts (all of them), label, key, json.x (field x of the record), "
        "examples, and columns by their names (default: the captioner's own instruction)",
    )
    examples: str | None = Field(
        None,
        description=f"pairs of captions that the instruction shows: {', '.join(SHIPPED)}; a .txt file with a line "
        "source => target for each pair; a .jsonl file with source and target; or any input with several captions a "
        "picture",
    )
    num_examples: int = Field(3, ge=1, le=100, description="pairs of captions to draw from --examples for each record")
    text_only: bool = Field(False, description="send the instruction to the captioner without the picture")
    fields: Annotated[dict[str, str], BeforeValidator(_as_mapping), AfterValidator(_check_fields)] = Field(
        {}, description="FIELD=COLUMN: write this field of a JSON answer to this column; repeatable"
    )
    fallback: list[Annotated[str, AfterValidator(_check_fallback)]] = Field(
        [],
        description="what to write where no answer is accepted: text (an original caption) or the captions of another "
        "column; repeatable, the first that the record has is taken",
    )

    @model_validator(mode="after")
    def _task_fits_together(self) -> Self:
        problems = []
        if "examples" in self.names and not self.examples:
            problems.append("instruction: names examples, and none are given (--examples)")
        if self.examples and "examples" not in self.names:
            problems.append(f"examples: {self.examples}: the instruction does not name them")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def names(self) -> frozenset[str]:
        """The names that the instruction takes from the record."""
        return template_of(self.instruction).names if self.instruction else frozenset()

    @property
    def columns_read(self) -> list[str]:
        """The columns that the instruction or a fallback reads."""
        return sorted(self.names.union(self.fallback).difference(RECORD_NAMES))

    @property
    def reads_captions(self) -> bool:
        """Whether the instruction names captions of the record, from which the answer is then written."""
        return bool(self.names - NO_CAPTIONS)

    @property
    def reads_originals(self) -> bool:
        """Whether the instruction needs an original caption: it names one and has no test whether it is defined."""
        return bool(self.instruction) and not template_of(self.instruction).needed.isdisjoint(("text", "texts"))

    def settled(self) -> "Task":
        """Return the task with its examples read. Raises: ValueError where they cannot be read."""
        pairs = tuple(read_pairs(self.examples)) if self.examples else ()
        return Task(
            self.instruction,
            pairs,
            self.num_examples,
            text_only=self.text_only,
            fields=self.fields,
            fallback=tuple(self.fallback),
        )


class Instructed(NamedTuple):
    """The instruction for one record, and the texts that the answer to it is compared with."""

    instruction: str | None
    text: str = ""  # the captions of the record that are in the instruction: the answer is written from them
    examples: tuple[str, ...] = ()  # the texts of all examples in the instruction


@dataclass(frozen=True)
class Task:
    """What the captioner of a column is asked, with the examples read.

    The original caption (of several) and the examples that are drawn for a record depend only on the seed, the column
    and the record's key.
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
        return names.union(self.fallback).difference(RECORD_NAMES)

    def instruct(self, record: Record, written: Mapping[str, Sequence[str]], *, column: str, seed: int) -> Instructed:
        """Return the instruction for a record.

        written: the captions that this run has written so far, by column.
        Raises: ValueError, with the reason, where the record lacks something that the template needs.
        """
        if self.template is None:
            return Instructed(None)
        values = {}
        for name in self.template.names:
            value = self._value(name, record, written, column=column, seed=seed)
            if value is not None:
                values[name] = bounded(value, name) if isinstance(value, str | Texts) else value
        instruction = self.template.render(values)
        source_texts: list[str] = []
        for name in sorted(values.keys() - NO_CAPTIONS):
            source_texts += values[name] if name == "texts" else [str(values[name])]
        example_texts = [text for pair in values.get("examples", ()) for text in pair.values()]
        return Instructed(instruction, "\n".join(source_texts), tuple(example_texts))

    def fall_back(
        self, record: Record, written: Mapping[str, Sequence[str]], *, column: str, seed: int
    ) -> tuple[str, str] | None:
        """Return the first name of `fallback` that the record has, and its text; None where it has none of them."""
        for name in self.fallback:
            if value := self._value(name, record, written, column=column, seed=seed):
                return name, str(value)
        return None

    def _value(
        self, name: str, record: Record, written: Mapping[str, Sequence[str]], *, column: str, seed: int
    ) -> Any:
        """Return the value of a name in a template or fallback; None where the record lacks it."""
        if name == "label":
            return record.label
        if name == "key":
            return record.key
        if name == "json":
            return {field: bounded(value, f"json.{field}") for field, value in record.meta.items()}
        if name == "examples":
            pairs = draw_pairs(self.pairs, self.num_examples, f"{column}\n{record.key}", seed=seed)
            return [pair._asdict() for pair in pairs]
        if name in ("text", "texts"):
            texts = record.captions
        else:
            texts = written.get(name) or record.columns.get(name) or ()
        texts = [text for text in texts if text.strip()]
        if not texts:
            return None
        chosen = Texts(texts)
        chosen.shown = name_hash(f"{column}\n{name}\n{record.key}", "caption", seed=seed) % len(texts)
        return str(chosen) if name == "text" else chosen

    def fingerprint(self, *, looks: bool) -> dict[str, Any]:
        """Return all settings of the task that decide what is written, as JSON; looks: whether the picture is sent."""
        made_of = ["the picture"] if looks else []
        if self.instruction is not None:
            made_of.append("words")
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
    """Return a line for each column that is written twice, or read before it is written.

    columns: for each entry, the columns that it writes and those that it reads.
    """
    written = [name for writes, _ in columns for name in writes]
    problems = [
        f"columns: {name} named twice; give each its own name"
        for name in dict.fromkeys(written)
        if written.count(name) > 1
    ]
    for index, (writes, reads) in enumerate(columns):
        not_yet_written = {name for later_writes, _ in columns[index:] for name in later_writes}
        problems += [
            f"{writes[0]}: reads {name}, which is not written before it; list the column {name} first"
            for name in sorted(not_yet_written.intersection(reads))
        ]
    return problems


def schema_of(fields: Mapping[str, str]) -> str:
    """Return the JSON schema of an answer with these fields: a list of texts for tags, and one text for all others."""
    text = {"type": "string"}
    properties = {
        name: {"type": "array", "items": text} if is_tags(column) else text for name, column in fields.items()
    }
    return json.dumps(
        {"type": "object", "properties": properties, "required": list(fields), "additionalProperties": False}
    )
