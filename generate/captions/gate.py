"""The gate: each caption is cut to whole sentences and judged from its own picture's record alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from captioners.base import Caption
from diversity.words.degenerate import degenerate_reasons
from diversity.words.sentences import is_finished, joined, sentences
from diversity.words.tokens import words


class Gate(BaseModel):
    """What becomes of a caption once it is drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sentences: Literal["all", "first"] = Field(
        "all",
        description="keep all whole sentences or the first; an unfinished last one is dropped unless it stands alone",
    )
    min_similarity: float | None = Field(
        None, ge=-1, le=1, description="least CoCa similarity with the picture, at one text pass"
    )
    redraws: int = Field(2, ge=0, le=100, description="times that a degenerate caption is drawn anew; sampling only")
    on_degenerate: Literal["drop", "keep"] = Field(
        "drop", description="captions still degenerate: left out, or kept and flagged"
    )


@dataclass(frozen=True)
class Judged:
    """A caption as the gate cut it, and why it is degenerate: reasons of `diversity.measures.fidelity`, `duplicate`, `unlike`."""

    text: str
    drawn: Caption
    truncated: bool = False
    flags: tuple[str, ...] = ()
    words: Sequence[str] = field(default=(), repr=False)  # of the text, as every measure counts them


def cut_sentences(caption: Caption, keep: Literal["all", "first"]) -> tuple[str, bool]:
    """The text with the sentences to keep, and whether it still ends where the length limit cut it.

    A limit counts tokens, several of which may be one character: what it left of the last one is dropped.
    """
    found = sentences(caption.text.rstrip("\ufffd") if caption.truncated else caption.text)
    unfinished = caption.truncated and bool(found) and not is_finished(found[-1])
    if unfinished and len(found) > 1:
        found, unfinished = found[:-1], False
    if keep == "first" and len(found) > 1:
        found, unfinished = found[:1], False
    return joined(found), unfinished


def judge(caption: Caption, siblings: Sequence[Judged], gate: Gate) -> Judged:
    """The caption as the gate cuts it, with its flags; `siblings` are the picture's other captions that stand before it."""
    text, truncated = cut_sentences(caption, gate.sentences)
    found = words(text)
    flags = degenerate_reasons(text, truncated, found)
    if found and any(sibling.words == found for sibling in siblings):
        flags += ("duplicate",)
    if gate.min_similarity is not None and caption.similarity < gate.min_similarity:
        flags += ("unlike",)
    return Judged(text, caption, truncated, flags, found)


def judge_all(captions: Sequence[Caption], gate: Gate) -> list[Judged]:
    """The captions of a picture, each judged beside those before it."""
    judged: list[Judged] = []
    for caption in captions:
        judged.append(judge(caption, judged, gate))
    return judged


def replace_failing(judged: Sequence[Judged], redrawn: Sequence[Caption], gate: Gate) -> list[Judged]:
    """The captions with each failing one replaced by its redraw, where that passes; `redrawn` has one for each, in order."""
    result = list(judged)
    for i, caption in enumerate(redrawn):
        if result[i].flags:
            others = [other for j, other in enumerate(result) if j != i and not other.flags]
            candidate = judge(caption, others, gate)
            if not candidate.flags:
                result[i] = candidate
    return result
