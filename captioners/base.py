"""The interface that all captioners share: requests, sampling configuration, captions."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

if TYPE_CHECKING:  # configurations must be readable without importing torch
    from PIL import Image
    from torch import Tensor, nn


class SamplingConfig(BaseModel):
    """How captions are generated; each option means the same as the option of that name in transformers.

    The logits are processed in this order: start and pad tokens are banned; repetition penalty, no-repeat n-grams and
    minimum length are applied; then, for sampling only, temperature, top-k and top-p.
    Raises ValueError with all problems of a configuration at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    num_captions: int = Field(default=5, ge=1, description="captions per picture; greedy allows only 1")
    strategy: Literal["sample", "greedy", "beam"] = Field(
        default="sample",
        description="how the next token is chosen: drawn at random, the most probable one, or by beam search",
    )
    max_length: int | None = Field(
        default=None,
        ge=3,
        description="maximum tokens per caption, start and end included (default: the captioner's context + 1)",
    )
    min_length: int = Field(default=5, ge=0, description="minimum tokens before the end token, start included")
    temperature: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="divisor of the logits, applied before top-k and top-p"
    )
    top_p: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="sample only from the most probable tokens that together have this probability",
    )
    top_k: int | None = Field(
        default=None, ge=1, description="sample only from this many of the most probable tokens (default: all)"
    )
    repetition_penalty: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="values above 1 make tokens that are already in the caption less likely",
    )
    no_repeat_ngram_size: int = Field(
        default=0, ge=0, description="no n-gram of this many tokens occurs twice in a caption (0: no such rule)"
    )
    num_beams: int = Field(default=1, ge=1, description="number of beams, for strategy beam")
    num_beam_groups: int = Field(
        default=1, ge=1, description="number of groups of beams; --diversity-penalty makes the groups differ"
    )
    diversity_penalty: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="penalty on tokens that an earlier group of beams chose at the same step",
    )
    length_penalty: float = Field(
        default=1.0, allow_inf_nan=False, description="beams are ranked by log-probability / length ** this"
    )
    prefix: str = Field(default="", description="text that every caption starts with (local captioners only)")
    answer: Literal["text", "line", "json"] = Field(
        default="text",
        description="form of the answer: text, line (text up to the first line break), or json",
    )
    json_schema: str = Field(
        default="",
        description="JSON schema of the answer, for captioners that support one (default: made from its fields)",
    )
    stop: tuple[str, ...] = Field(default=(), description="text before which a caption ends; repeatable")
    seed: int = Field(default=0, ge=0, lt=2**64, description="seed of all random draws")

    @model_validator(mode="before")
    @classmethod
    def _default_to_one_greedy_caption(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("strategy") == "greedy":
            return {"num_captions": 1} | values
        return values

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which a caption ends, with the line break if the answer is a line."""
        return (*self.stop, "\n") if self.answer == "line" else self.stop

    # Pydantic checks the fields in order. Each check uses only earlier fields, so one pass finds every problem.

    @field_validator("strategy")
    @classmethod
    def _greedy_allows_one_caption(cls, strategy: str, info: ValidationInfo) -> str:
        if strategy == "greedy" and info.data.get("num_captions", 1) > 1:
            raise ValueError(f"greedy gives one caption, but num_captions is {info.data['num_captions']}")
        return strategy

    @field_validator("min_length")
    @classmethod
    def _min_length_within_max_length(cls, min_length: int, info: ValidationInfo) -> int:
        max_length = info.data.get("max_length")
        if max_length is not None and min_length > max_length:
            raise ValueError(f"exceeds max_length {max_length}")
        return min_length

    @field_validator("num_beams")
    @classmethod
    def _beams_suffice_for_captions(cls, num_beams: int, info: ValidationInfo) -> int:
        strategy = info.data.get("strategy")
        if strategy == "beam" and info.data.get("num_captions", 1) > num_beams:
            raise ValueError(
                f"beam search gives at most num_beams captions, but num_captions is {info.data['num_captions']}"
            )
        if strategy in ("sample", "greedy") and num_beams > 1:
            raise ValueError(f"is only for strategy beam, but strategy is {strategy}")
        return num_beams

    @field_validator("num_beam_groups")
    @classmethod
    def _groups_divide_beams(cls, groups: int, info: ValidationInfo) -> int:
        if info.data.get("num_beams", groups) % groups:
            raise ValueError(f"does not divide num_beams {info.data['num_beams']}")
        return groups

    @field_validator("diversity_penalty")
    @classmethod
    def _diversity_penalty_needs_groups(cls, penalty: float, info: ValidationInfo) -> float:
        if penalty and info.data.get("num_beam_groups") == 1:
            raise ValueError("applies between groups of beams, but num_beam_groups is 1")
        return penalty

    @field_validator("json_schema")
    @classmethod
    def _schema_is_a_json_object(cls, schema: str, info: ValidationInfo) -> str:
        if not schema:
            return schema
        try:
            if not isinstance(json.loads(schema), dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise ValueError("is not a JSON object") from None
        if info.data.get("answer", "json") != "json":
            raise ValueError(f"is only for answer json, but answer is {info.data['answer']}")
        return schema

    @field_validator("stop")
    @classmethod
    def _stops_are_not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty text would end every caption at its start")
        return stop

    @field_validator("length_penalty")
    @classmethod
    def _length_penalty_needs_beams(cls, penalty: float, info: ValidationInfo) -> float:
        if penalty != 1 and info.data.get("strategy") in ("sample", "greedy"):
            raise ValueError(f"is only for strategy beam, but strategy is {info.data['strategy']}")
        return penalty


class Request(NamedTuple):
    """What a captioner is asked about one record: a picture, an instruction, or both."""

    key: str
    picture: "Tensor | None"  # pixels (3, H, W), or an encoded file (N,) for a server; None if only text is sent
    instruction: str | None = None  # None: the captioner uses its default instruction


def picture_of(request: Request) -> "Tensor":
    """Return the picture of a request; raise ValueError if the request has none."""
    if request.picture is None:
        raise ValueError(f"{request.key}: there is no picture")
    return request.picture


def up_to_stop(text: str, stops: Iterable[str], prefix_length: int = 0) -> str:
    """Return the text before the first stop text, or the whole text if none occurs.

    prefix_length: number of characters at the start that are not searched, because they were given and not generated.
        If 0, leading white space is not searched.
    """
    search_start = prefix_length or len(text) - len(text.lstrip())
    stop_positions = [text.find(stop, search_start) for stop in stops]
    ends = [position for position in stop_positions if position >= 0]
    return text[: min(ends)].rstrip() if ends else text


@dataclass(frozen=True)
class Caption:
    """A caption generated for a request.

    logprob: sum of the log-probabilities (nats) of the generated tokens, end token included, under the model's
        distribution before temperature, penalties and truncation. The prefix's tokens, and an end token that the
        length limit forced, are not counted. None if a server returns no log-probabilities.
    truncated: whether the length limit ended the caption.
    similarity: cosine similarity with the picture, if requested.
    cut: names from `replies.CUTS` of the parts that were removed from the reply.
    kind: for a hard negative, the kind of change that makes it false.
    """

    text: str
    logprob: float | None
    truncated: bool
    similarity: float | None = None
    cut: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Captioned:
    """The captions of a request, in the order of their indices.

    image_embedding: the picture's normalised embedding (E,), or None.
    error: why the request has no captions; empty if it has some.
    """

    key: str
    captions: tuple[Caption, ...]
    image_embedding: "Tensor | None" = None
    error: str = ""


class Captioner(Protocol):
    """A model that turns pictures, instructions, or both into captions."""

    name: str  # its captions' column is syn_text_<name>
    weights_sha256: str  # hash of the weights in float32, whatever dtype they are computed in
    description: str  # a few lines about the model, for printing
    batch_size: int  # default number of requests in flight
    looks_at_pictures: bool  # whether a request may contain a picture
    needs_picture: bool  # whether every request must contain a picture
    takes_instruction: bool  # whether a request may contain an instruction
    needs_instruction: bool  # whether every request must contain an instruction

    @property
    def preprocess(self) -> "Callable[[Image.Image], Tensor]":
        """The transform from a decoded RGB picture to pixels (3, H, W), or to an encoded file (N,) for a server.

        It can be pickled.
        """
        ...

    def check(self, sampling: SamplingConfig, *, similarity: bool = False) -> None:
        """Raise ValueError, before any work, with all requested options that the captioner does not support."""

    def caption(
        self,
        requests: Iterable[Request],
        sampling: SamplingConfig,
        *,
        column: str = "",
        first_index: int = 0,
        similarity: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[Captioned]:
        """Yield one result for each request, in the order of the requests.

        The random draws of a caption depend only on the seed, the column, the request's key and the caption's number
        first_index + i, and not on other requests in flight. Two columns of one captioner therefore differ.
        A result has `sampling.num_captions` captions, or no captions and an error.

        similarity: also compute each caption's cosine similarity with its picture.
        batch_size: number of requests in flight (default: the captioner's `batch_size`).
        Raises: ValueError as `check` does, before the first request is read. Iterating raises errors that no request
            is to blame for: torch.OutOfMemoryError, FloatingPointError, ConnectionError.
        """
        ...

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        """Estimate the peak memory, in bytes, of one request in flight and its captions.

        Raises ValueError as `check` does.
        """
        ...


class TrainableCaptioner(Captioner, Protocol):
    """A captioner whose model runs in this process and has its own vocabulary, so it can be fine-tuned and saved."""

    @property
    def model(self) -> "nn.Module":
        """The model whose weights are trained."""
        ...

    context_length: int  # maximum tokens of a caption, start and end included
    pad_id: int  # token id that pads shorter captions

    def encode_text_ids(self, text: str) -> list[int]:
        """Return all token ids of a caption, from start to end token, without truncation."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids up to the first end token, without special tokens and outer white space."""
        ...

    def save(self, folder: str | os.PathLike, name: str) -> None:
        """Write a folder that `load_captioner` can load, its config last.

        Raises ValueError if a column cannot have this name.
        """
