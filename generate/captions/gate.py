"""The gate: each caption is cut to whole sentences and judged from its own picture's record alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from captioners.base import Caption
from diversity.words.degenerate import degenerate_reasons, tag_reasons
from diversity.words.sentences import is_finished, joined, sentences
from diversity.words.tokens import words
from diversity.words.written import Source, written_reasons


class Gate(BaseModel):
    """What becomes of a caption once it is drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sentences: Literal["all", "first"] = Field(
        default="all",
        description="keep all whole sentences or the first; an unfinished last one is dropped unless it stands alone",
    )
    min_similarity: float | None = Field(
        default=None, ge=-1, le=1, description="least CoCa similarity with the picture, at one text pass"
    )
    redraws: int = Field(
        default=2, ge=0, le=100, description="times that a degenerate caption is drawn anew; sampling only"
    )
    on_degenerate: Literal["drop", "keep"] = Field(
        default="drop", description="captions still degenerate: left out, or kept and flagged"
    )
    max_words: int | None = Field(default=None, gt=0, description="most words of a caption")
    max_clip_tokens: int | None = Field(
        default=None,
        gt=2,
        description="most tokens of a caption by CLIP's tokenizer, start and end included: CLIP reads 77",
    )
    must_change: bool = Field(
        default=False, description="refuse captions with no other words than the caption they were made of"
    )
    keep_facts: bool = Field(
        default=False,
        description="refuse captions with numbers, colours or names that what they were made of has not; English",
    )
    min_overlap: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="of a negative: least share of the true caption's words, so that little is changed",
    )


@dataclass(frozen=True)
class Judged:
    """A caption as the gate cut it, and why it is refused: names of `REASONS` and `WRITTEN`, `duplicate`, `unlike`."""

    text: str
    drawn: Caption
    truncated: bool = False
    flags: tuple[str, ...] = ()
    words: Sequence[str] = field(default=(), repr=False)  # of the text, as every measure counts them


def cut_sentences(caption: Caption, keep: Literal["all", "first"]) -> tuple[str, bool]:
    """The text with the sentences to keep, and whether it still ends where the length limit cut it.

    A limit counts tokens, several of which may be one character: what it left of the last one is dropped.
    """
    parts = sentences(caption.text.rstrip("\ufffd") if caption.truncated else caption.text)
    unfinished = caption.truncated and bool(parts) and not is_finished(parts[-1])
    if unfinished and len(parts) > 1:
        parts, unfinished = parts[:-1], False
    if keep == "first" and len(parts) > 1:
        parts, unfinished = parts[:1], False
    return joined(parts), unfinished


def judge(caption: Caption, siblings: Sequence[Judged], gate: Gate, source: Source | None = None) -> Judged:
    """The caption as the gate cuts it, with its flags.

    siblings: the picture's other captions that stand before it. source: what it was written of, where it was.
    """
    tag = source is not None and source.tag
    text, truncated = (" ".join(caption.text.split()), False) if tag else cut_sentences(caption, gate.sentences)
    text_words = words(text)
    flags = tag_reasons(text, text_words) if tag else degenerate_reasons(text, truncated, text_words)
    if (
        "short" in flags
        and source is not None
        and any(len(words(line)) <= len(text_words) for line in source.positive.splitlines())
    ):
        flags = tuple(flag for flag in flags if flag != "short")  # what changes a short caption is as short
    flags += written_reasons(
        text,
        source,
        text_words,
        max_words=gate.max_words,
        max_clip_tokens=gate.max_clip_tokens,
        must_change=gate.must_change,
        keep_facts=gate.keep_facts,
        min_overlap=gate.min_overlap,
    )
    if text_words and any(sibling.words == text_words for sibling in siblings):
        flags += ("duplicate",)
    if gate.min_similarity is not None and (caption.similarity is None or caption.similarity < gate.min_similarity):
        flags += ("unlike",)
    return Judged(text, caption, truncated, flags, text_words)


def unparsed(caption: Caption) -> Judged:
    """An answer that `answers.read_answer` cannot read."""
    return Judged(caption.text, caption, caption.truncated, ("unparsed",))
