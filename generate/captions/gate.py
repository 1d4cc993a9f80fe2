"""The gate: cuts each caption to whole sentences, and judges it by the record of its own picture alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from captioners.base import Caption
from diversity.words.degenerate import degenerate_reasons, tag_reasons
from diversity.words.sentences import is_finished, joined, sentences
from diversity.words.tokens import words
from diversity.words.written import Source, written_reasons

DUPLICATE = "duplicate"  # the flag of a caption with the words of an earlier caption of its picture


class Gate(BaseModel):
    """Which generated captions are accepted, and what happens to those that are not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sentences: Literal["all", "first"] = Field(
        default="all",
        description="sentences to keep of a caption: all, or only the first; an unfinished last sentence is dropped, "
        "unless it is the only one",
    )
    min_similarity: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="refuse captions with a lower CoCa similarity with the picture, which costs one more text pass",
    )
    redraws: int = Field(
        default=2, ge=0, le=100, description="how often a refused caption is drawn again; only with --strategy sample"
    )
    on_degenerate: Literal["drop", "keep"] = Field(
        default="drop",
        description="what happens to captions that are still refused after all redraws: drop leaves them out, keep "
        "writes them with flags",
    )
    max_words: int | None = Field(default=None, gt=0, description="refuse captions with more words")
    max_clip_tokens: int | None = Field(
        default=None,
        gt=2,
        description="refuse captions with more CLIP tokens, start and end included; CLIP reads 77",
    )
    must_change: bool = Field(
        default=False, description="refuse captions with the same words as the caption they were written from"
    )
    keep_facts: bool = Field(
        default=False,
        description="refuse captions with numbers, colours or names that are not in the text they were written from; "
        "for English captions",
    )
    min_overlap: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="refuse negatives that keep less than this share (0 to 1) of the true caption's words",
    )


@dataclass(frozen=True)
class Judged:
    """A caption as the gate cut it, with the reasons why it is refused.

    flags: names of `REASONS` and `WRITTEN`, and `duplicate`, `unlike`, `unparsed`.
    """

    text: str
    drawn: Caption
    truncated: bool = False
    flags: tuple[str, ...] = ()
    words: Sequence[str] = field(default=(), repr=False)  # of the text, as every measure counts them


def cut_sentences(caption: Caption, keep: Literal["all", "first"]) -> tuple[str, bool]:
    """Return the sentences to keep as text, and whether the text still ends where the length limit cut it.

    The limit counts tokens, and one character may take several: a replacement character at the cut is dropped.
    """
    parts = sentences(caption.text.rstrip("\ufffd") if caption.truncated else caption.text)
    unfinished = caption.truncated and bool(parts) and not is_finished(parts[-1])
    if unfinished and len(parts) > 1:
        parts, unfinished = parts[:-1], False
    if keep == "first" and len(parts) > 1:
        parts, unfinished = parts[:1], False
    return joined(parts), unfinished


def judge(caption: Caption, siblings: Sequence[Judged], gate: Gate, source: Source | None = None) -> Judged:
    """Return the caption as the gate cuts it, with its flags.

    siblings: the earlier captions of the same picture. source: what the caption was written from, if it was.
    """
    is_tag = source is not None and source.tag
    if is_tag:
        text, truncated = " ".join(caption.text.split()), False
    else:
        text, truncated = cut_sentences(caption, gate.sentences)
    text_words = words(text)
    flags = tag_reasons(text, text_words) if is_tag else degenerate_reasons(text, truncated, text_words)
    if "short" in flags and source is not None:
        # A negative of a short caption may be as short.
        if any(len(words(line)) <= len(text_words) for line in source.positive.splitlines()):
            flags = tuple(flag for flag in flags if flag != "short")
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
        flags += (DUPLICATE,)
    if gate.min_similarity is not None and (caption.similarity is None or caption.similarity < gate.min_similarity):
        flags += ("unlike",)
    return Judged(text, caption, truncated, flags=flags, words=text_words)


def unparsed(caption: Caption) -> Judged:
    """Return an answer that `answers.read_answer` cannot read as a refused caption."""
    return Judged(caption.text, caption, caption.truncated, flags=("unparsed",))
