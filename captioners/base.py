"""The interface of all captioners: requests, sampling, captions."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

if TYPE_CHECKING:  # configurations are read without torch
    from PIL import Image
    from torch import Tensor, nn


class SamplingConfig(BaseModel):
    """How captions are drawn; every processor means what transformers' processor of its name means.

    Order: start and pad tokens never; repetition penalty, no-repeat n-grams, minimum length; then, for samples,
    temperature, top-k, top-p. All problems of a configuration are raised at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    num_captions: int = Field(default=5, ge=1, description="captions per picture; greedy gives 1 and refuses more")
    strategy: Literal["sample", "greedy", "beam"] = Field(default="sample", description="how the next token is chosen")
    max_length: int | None = Field(
        default=None, ge=3, description="tokens in all, start and end included; none: the captioner's context + 1"
    )
    min_length: int = Field(default=5, ge=0, description="no end token before this many tokens, start included")
    temperature: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="divides the logits, before top-k and top-p"
    )
    top_p: float = Field(
        default=0.9, gt=0, le=1, description="sample from the most probable tokens that hold this mass"
    )
    top_k: int | None = Field(default=None, ge=1, description="sample from this many of the most probable tokens")
    repetition_penalty: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="above 1, used tokens come less often"
    )
    no_repeat_ngram_size: int = Field(default=0, ge=0, description="no n-gram of this size twice in a caption; 0: off")
    num_beams: int = Field(default=1, ge=1, description="beams of beam search")
    num_beam_groups: int = Field(default=1, ge=1, description="groups of beams, kept apart by diversity_penalty")
    diversity_penalty: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="between groups of beams")
    length_penalty: float = Field(
        default=1.0, allow_inf_nan=False, description="beams rank by log-probability / length ** this"
    )
    prefix: str = Field(default="", description="text that every caption starts with; of local captioners")
    answer: Literal["text", "line", "json"] = Field(
        default="text",
        description="what the captioner is to give: text; a line, which ends at the first line break; or JSON",
    )
    json_schema: str = Field(
        default="",
        description="the schema of an answer in JSON, for captioners that can heed it; made of its fields unless given",
    )
    stop: tuple[str, ...] = Field(default=(), description="a caption ends before this text; repeatable")
    seed: int = Field(default=0, ge=0, lt=2**64, description="of all draws")

    @model_validator(mode="before")
    @classmethod
    def _one_when_greedy(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("strategy") == "greedy":
            return {"num_captions": 1} | values
        return values

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a caption; a line break is one of them where the answer is a line."""
        return (*self.stop, "\n") if self.answer == "line" else self.stop

    # Fields are checked in their order, each with those before it: so one pass finds every problem.

    @field_validator("strategy")
    @classmethod
    def _greedy_gives_one(cls, strategy: str, info: ValidationInfo) -> str:
        if strategy == "greedy" and info.data.get("num_captions", 1) > 1:
            raise ValueError(f"greedy gives one caption, num_captions is {info.data['num_captions']}")
        return strategy

    @field_validator("min_length")
    @classmethod
    def _min_within_max(cls, min_length: int, info: ValidationInfo) -> int:
        max_length = info.data.get("max_length")
        if max_length is not None and min_length > max_length:
            raise ValueError(f"exceeds max_length {max_length}")
        return min_length

    @field_validator("num_beams")
    @classmethod
    def _beams_hold_captions(cls, num_beams: int, info: ValidationInfo) -> int:
        strategy = info.data.get("strategy")
        if strategy == "beam" and info.data.get("num_captions", 1) > num_beams:
            raise ValueError(
                f"beam search gives at most num_beams captions, num_captions is {info.data['num_captions']}"
            )
        if strategy in ("sample", "greedy") and num_beams > 1:
            raise ValueError(f"is for strategy beam, strategy is {strategy}")
        return num_beams

    @field_validator("num_beam_groups")
    @classmethod
    def _groups_divide_beams(cls, groups: int, info: ValidationInfo) -> int:
        if info.data.get("num_beams", groups) % groups:
            raise ValueError(f"does not divide num_beams {info.data['num_beams']}")
        return groups

    @field_validator("diversity_penalty")
    @classmethod
    def _penalty_between_groups(cls, penalty: float, info: ValidationInfo) -> float:
        if penalty and info.data.get("num_beam_groups") == 1:
            raise ValueError("is between groups of beams, num_beam_groups is 1")
        return penalty

    @field_validator("json_schema")
    @classmethod
    def _schema_is_an_object_of_json(cls, schema: str, info: ValidationInfo) -> str:
        if not schema:
            return schema
        try:
            if not isinstance(json.loads(schema), dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise ValueError("is no JSON object") from None
        if info.data.get("answer", "json") != "json":
            raise ValueError(f"is for answer json, answer is {info.data['answer']}")
        return schema

    @field_validator("stop")
    @classmethod
    def _stops_are_texts(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty text would end every caption at its start")
        return stop

    @field_validator("length_penalty")
    @classmethod
    def _length_penalty_of_beams(cls, penalty: float, info: ValidationInfo) -> float:
        if penalty != 1 and info.data.get("strategy") in ("sample", "greedy"):
            raise ValueError(f"is for strategy beam, strategy is {info.data['strategy']}")
        return penalty


class Request(NamedTuple):
    """A question to a captioner about one record: a picture, an instruction, or both."""

    key: str
    picture: "Tensor | None"  # (3, H, W), or what a server is sent (N,); None for captioners that look at none
    instruction: str | None = None  # None: the captioner's own


def picture_of(request: Request) -> "Tensor":
    """The picture of a request to a captioner that needs one; ValueError where there is none."""
    if request.picture is None:
        raise ValueError(f"{request.key}: there is no picture")
    return request.picture


def up_to_stop(text: str, stops: Iterable[str], begun: int = 0) -> str:
    """The text before the first stop; the whole text where there is none. Leading blanks are not searched.

    begun: how many characters at the start are not searched, as they were given and not drawn.
    """
    begun = begun or len(text) - len(text.lstrip())
    ends = [start for stop in stops if (start := text.find(stop, begun)) >= 0]
    return text[: min(ends)].rstrip() if ends else text


@dataclass(frozen=True)
class Caption:
    """A caption, as drawn for a request.

    `logprob` (nats) sums the log-probabilities of the drawn tokens, the end token included, under the model's own
    distribution: before temperature, penalties and truncation, without the prefix's tokens and without an end token that the
    limit forced; None where a server gives none. `truncated`: the limit ended it. `similarity`: cosine with the picture,
    where asked for. `cut`: what was cut off the reply, of `replies.CUTS`. `kind`: of a negative, what makes it false.
    """

    text: str
    logprob: float | None
    truncated: bool
    similarity: float | None = None
    cut: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Captioned:
    """A request's captions, in the order of their index, its picture's embedding (E,), normalised; `error`: why it has none."""

    key: str
    captions: tuple[Caption, ...]
    image_embedding: "Tensor | None" = None
    error: str = ""


class Captioner(Protocol):
    """Turns pictures, instructions, or both into captions."""

    name: str  # names their column, syn_text_<name>
    weights_sha256: str  # of the weights in float32, whatever the dtype
    description: str  # some lines on the model, to be printed
    batch_size: int  # requests in flight, unless `caption` is told otherwise
    looks_at_pictures: bool  # whether it can be given a picture at all
    needs_picture: bool  # whether it has nothing to say without a picture
    takes_instruction: bool  # whether it can be given an instruction
    needs_instruction: bool  # whether it has nothing to say without an instruction

    @property
    def preprocess(self) -> "Callable[[Image.Image], Tensor]":
        """Turns a decoded RGB picture into pixels (3, H, W), or what a server is sent (N,); can be sent to other processes."""
        ...

    def check(self, sampling: SamplingConfig, *, similarity: bool = False) -> None:
        """Raises ValueError with all that the captioner cannot do of what is asked, before any work."""

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
        """Answers requests, as many in flight as `batch_size` says; one result for each, in their order.

        Caption i of a request draws as number first_index + i of its key's draws in the column, whatever else is in flight: two
        columns of one captioner say different things. A result has
        `sampling.num_captions` captions, or none and an error. `similarity`: each caption comes with its own.

        Raises: ValueError as `check` does, before any request is taken. Iterating raises what is no request's fault:
        torch.OutOfMemoryError, FloatingPointError, ConnectionError.
        """
        ...

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        """About how much memory a request in flight and its captions take at most, in bytes; ValueError as of `check`."""
        ...


class TrainableCaptioner(Captioner, Protocol):
    """A captioner whose model is here, with a vocabulary of its own: it can be fine-tuned and saved."""

    @property
    def model(self) -> "nn.Module":
        """The model whose weights learn."""
        ...

    context_length: int  # tokens of a caption at most, start and end included
    pad_id: int  # what fills token ids up

    def encode_text_ids(self, text: str) -> list[int]:
        """Token ids of a caption, from start to end token, never cut."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a caption's token ids up to the first end token, without special tokens and outer blanks."""
        ...

    def save(self, folder: str | os.PathLike, name: str) -> None:
        """Writes what `load_captioner` loads from the folder, its config last; ValueError for a name that names no column."""
