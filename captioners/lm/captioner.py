"""Causal language models of transformers as captioners: base models complete a text, chat models answer it.

Dimensions: V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from captioners.base import Captioned, Request, SamplingConfig
from captioners.decoding.cache import Head, nbytes
from captioners.decoding.continuing import Continuing
from captioners.decoding.json_answers import JsonTokens, json_words
from captioners.decoding.rows import Rules, peak_bytes
from captioners.decoding.search import caption_valid_requests, evaluating, search, to_captions
from captioners.decoding.special_tokens import SpecialTokens, Tokenizer, end_ids
from captioners.decoding.stops import Stops, closing_tokens
from captioners.lm.decode import begin_rows, read_head, stretches
from captioners.replies import with_closed_thoughts
from captioners.safe_reading import attempt, in_bounds

CONTEXT = 256  # maximum tokens of a caption, if the sampling sets no max_length
PROMPT = 512  # tokens of a prompt for which memory is estimated
QUESTION, ANSWER = "\0?", "\0!"  # placeholders for question and answer in a chat template
DAY = datetime(2024, 7, 26)  # the date that chat templates get, so that captions do not depend on the present date


class LMCaptioner:
    """A transformers causal language model with its tokenizer, in eval mode, for requests without pictures.

    A base model continues a request's instruction. A chat model, one whose tokenizer has a chat template, answers it.
    The prompt takes the place of the start token; it counts neither for token limits nor for logit processors. Names
    of special tokens are removed from instructions, because these may contain text that is not trusted. A prompt is
    never truncated: if it leaves no room for a caption, the request's result is an error. Of the model's generation
    config, only the end tokens are used; the special token that a chat template puts after an answer is another one.

    context_length: the model's number of positions.
    start_id: a special token that no caption contains.
    batch_size: default number of requests answered at a time.
    weights_sha256: hash of the weights in float32.
    """

    looks_at_pictures = needs_picture = False
    takes_instruction = needs_instruction = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        name: str,
        weights_sha256: str,
        source: str,
    ):
        self.model, self.tokenizer, self.name, self.weights_sha256 = model, tokenizer, name, weights_sha256
        self.batch_size, self.vocabulary = 32, model.config.get_text_config().vocab_size
        self.chats = tokenizer.chat_template is not None
        self._before, self._after, self._lead, tail = "", "", " ", ""
        if self.chats:
            self._before, self._after, self._lead, tail = attempt(f"{source}: its chat template", self._template)
        configured = model.generation_config.eos_token_id
        self.end_ids = end_ids(tokenizer, tokenizer.eos_token_id if configured is None else configured)
        # Where a base model was taught to chat, its generation config may lack the token that ends an answer.
        after_answer = tokenizer(tail.strip(), add_special_tokens=False)["input_ids"][:1]
        self.end_ids += [id for id in after_answer if id in SpecialTokens(tokenizer, self.end_ids).not_ends]
        self.special = SpecialTokens(tokenizer, self.end_ids)
        self.special_ids = self.special.ids
        self.context_length = positions(model.config)
        problems = []
        if not self.end_ids:
            problems.append("neither its generation config nor its tokenizer has an eos_token_id")
        if len(tokenizer) > self.vocabulary:
            problems.append(f"its tokenizer has {len(tokenizer):,} tokens, but its model {self.vocabulary:,}")
        if self.context_length < 4:
            problems.append(f"its config has only {self.context_length} positions (max_position_embeddings)")
        if problems:
            raise ValueError(f"{source}: " + "; ".join(problems))
        self.end_id = self.end_ids[0]
        self.start_id = next(iter(self.special.not_ends), self.end_id)
        self.description = self._describe(source)

    @property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """Raises ValueError always."""
        raise ValueError(f"{self.name}: a language model cannot look at pictures")

    def check(self, sampling: SamplingConfig, *, similarity: bool = False) -> None:
        """Raise ValueError if the captioner does not support the sampling, or if similarity is requested."""
        self._rules(sampling, similarity=similarity)

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
        """Answer the instructions of requests (see `captioners.base.Captioner`); results in input order.

        Tokens that a prompt has in common with the start of the first prompt are computed once for all prompts.
        Greedy captions equal those of transformers' greedy search.
        Raises ValueError as `check` does, before the first request is read.
        """
        rules, in_flight = self._rules(sampling, similarity=similarity), batch_size or self.batch_size

        def caption(requests: Iterable[Request]) -> Iterator[Captioned]:
            decoded = search(
                self._begin(rules), requests, rules, batch_size=in_flight, column=column, first_index=first_index
            )
            return to_captions(decoded, self.model, self.decode, stops=sampling.stops)

        return caption_valid_requests(requests, partial(self._find_problem, rules), caption)

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        """Estimate the memory, in bytes, of a request with a prompt of 512 tokens and its captions."""
        rules = self._rules(sampling)
        with evaluating(self.model), torch.no_grad():
            rows = self._begin(rules)([Request("", None, "?")])[1]
        caption = nbytes(rows.shared_cache.caption_layers)
        prompt = caption // rows.limit * min(PROMPT, self.context_length)
        return peak_bytes(sampling, lambda captions: prompt + captions * caption, self.vocabulary)

    def _begin(self, rules: Rules) -> Callable[[Sequence[Request]], tuple[None, Continuing]]:
        """Return the function that begins the rows of requests; all prompts share the head of the first one."""
        head: Head | None = None

        def begin(requests: Sequence[Request]) -> tuple[None, Continuing]:
            nonlocal head
            prompts = [self.prompt_ids(request.instruction or "") for request in requests]
            head = head or read_head(self.model, prompts[0])
            rows = begin_rows(
                self.model,
                prompts,
                head,
                limit=rules.max_length - 2,
                ends=self.end_ids,
                greedy=rules.sampling.strategy == "greedy",
            )
            return None, rows

        return begin

    def _rules(self, sampling: SamplingConfig, *, similarity: bool = False) -> Rules:
        """The decoding rules for this sampling; ValueError as `check` raises it."""
        if similarity:
            raise ValueError(f"similarity: {self.name} has no embeddings that can compare captions and pictures")
        banned = sorted({*self.special_ids, *range(len(self.tokenizer), self.vocabulary)} - {self.end_id})
        max_length = sampling.max_length or min(CONTEXT, self.context_length // 2) + 1
        sampling = sampling.model_copy(update={"max_length": max_length})
        rules = Rules.of_captioner(self, sampling, banned, device=self.model.device)
        problems = []
        if sampling.strategy == "beam" and (sampling.stops or sampling.answer == "json"):
            problems.append("strategy beam does not support answer line, answer json and stop: use sample or greedy")
        if sampling.answer == "json" and sampling.prefix:
            problems.append("prefix is only for answers in text: an answer in JSON begins with JSON")
        if problems:
            raise ValueError("sampling: " + "; ".join(problems))
        if sampling.stops:
            closing = closing_tokens(sampling.stops, self._words).to(self.model.device)
            stops = Stops(sampling.stops, self._decode, closing=closing, prefix=rules.prefix.tolist())
            rules = rules._replace(stops=stops)
        if sampling.answer == "json":
            rules = rules._replace(masked=JsonTokens(sampling.json_schema, self._json_words, self.end_id).masked)
        return rules

    def _find_problem(self, rules: Rules, request: Request) -> str:
        """Return why a request cannot be answered; "" if it can."""
        if not request.instruction or not request.instruction.strip():
            return "there is no instruction"
        length = len(self.prompt_ids(request.instruction))
        room = self.context_length - rules.max_length + 2
        if length > room:
            return (
                f"the prompt has {length:,} tokens, but only {max(0, room):,} of the {self.context_length:,} "
                f"positions of {self.name} are left beside captions of up to {rules.max_length:,} tokens (max_length)"
            )
        return ""

    # Text and tokens

    def prompt_ids(self, instruction: str) -> list[int]:
        """All token ids before a caption; names of special tokens in the instruction are removed."""
        text = self._before + self.special.blanked(instruction) + self._after
        ids = self.tokenizer(text, add_special_tokens=not self.chats, verbose=False)["input_ids"]
        while not self.chats and ids and ids[-1] in self.end_ids:  # some tokenizers append an end token to every text
            ids.pop()
        return ids

    def encode_text_ids(self, text: str) -> list[int]:
        """All token ids of a caption, from start to end token; special tokens that the text names are removed."""
        # "=" takes the place of the prompt, because some tokenizers treat the start of a text differently
        before = self.tokenizer("=", add_special_tokens=False)["input_ids"]
        ids = self.tokenizer("=" + self._lead + text, add_special_tokens=False)["input_ids"]
        return [self.start_id, *(id for id in ids[len(before) :] if id not in self.special_ids), self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids up to the first end token, without special tokens and outer white space."""
        return self._decode(ids).strip()

    def _decode(self, ids: Sequence[int]) -> str:
        """Do as `decode`, but keep outer white space."""
        first, *others = ids
        # the start token is skipped first, because it may be an end token, too
        without_start = others if first == self.start_id else ids
        until_end = itertools.takewhile(lambda id: id not in self.end_ids, without_start)
        return self.tokenizer.decode([id for id in until_end if id not in self.special_ids])

    @cached_property
    def _words(self) -> list[str]:
        """The vocabulary (V,), each token decoded by itself."""
        return self.tokenizer.batch_decode([[id] for id in range(len(self.tokenizer))])

    @cached_property
    def _json_words(self) -> Any:
        """The vocabulary for llguidance."""
        return json_words(self.tokenizer, self.vocabulary, self.end_id)

    def _template(self) -> tuple[str, str, str, str]:
        """The chat template's text before a question, after a question, directly before an answer, and after it.

        The template is a program from the model's folder, so it runs within bounds and never gets an instruction.
        """
        question, answer = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
        options = {"tokenize": False, "enable_thinking": False, "strftime_now": DAY.strftime}
        render = self.tokenizer.apply_chat_template
        text, chat = in_bounds(
            lambda: [
                render([question], add_generation_prompt=True, **options),
                render([question, answer], **options),
            ]
        )
        text = with_closed_thoughts(text)
        before, _, after = text.partition(QUESTION)
        if text.count(QUESTION) != 1:
            raise ValueError(f"it contains the question {text.count(QUESTION)} times, but must contain it once")
        before_answer, _, tail = chat.partition(ANSWER)
        lead = before_answer.removeprefix(text) if before_answer.startswith(text) else ""
        return before, after, lead, tail

    def _describe(self, source: str) -> str:
        """The lines about the model that are printed before a run."""
        kind = f"{type(self.model).__name__} of {self.model.num_parameters() / 1e6:.1f} M parameters"
        return "\n".join(
            (
                f"architecture: {self.name}, {kind}",
                f"context: {self.context_length} tokens, prompt and caption together",
                f"asked: {'by its chat template' if self.chats else 'to complete a text'}",
                f"weights: {source}",
            )
        )


def positions(config: PreTrainedConfig) -> int:
    """The maximum number of tokens of prompt and caption together.

    Our decoding attends to all tokens, so the number is limited to the smallest attention window. If rotary embeddings
    change beyond some length, one long prompt would change the captions of all others in its batch, so the number is
    limited to that length.
    """
    config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or 0
    kinds = getattr(config, "layer_types", None)
    if kinds is None or any(kind != "full_attention" for kind in kinds):
        windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size"))
        limit = min([limit, *(window for window in windows if isinstance(window, int) and window > 0)])
    if stretches(config):
        original = (config.rope_parameters or {}).get("original_max_position_embeddings")
        limit = min(limit, original or limit)
    return limit
