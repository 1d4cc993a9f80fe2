"""Causal language models of transformers as captioners: base models complete a text, chat models answer it.

Dimensions: N prompts, R rows (captions in flight), V vocabulary.
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
from captioners.decoding.rows import Rules
from captioners.decoding.search import answered, evaluating, search, spoken
from captioners.decoding.special_tokens import SpecialTokens, Tokenizer, end_ids
from captioners.decoding.stops import Stops, closing_tokens
from captioners.lm.decode import begin_rows, read_head, stretches
from captioners.safe_reading import attempt, in_bounds

CONTEXT = 256  # tokens of a caption, unless the sampling says otherwise
PROMPT = 512  # tokens of a prompt that memory is planned for
QUESTION, ANSWER = "\0?", "\0!"  # stand for them in a chat template
DAY = datetime(2024, 7, 26)  # of all chats, whose templates may ask for it: captions are not those of a day


class LMCaptioner:
    """A transformers causal language model with its tokenizer, in eval mode, which is asked in words alone.

    A request's instruction is what a base model goes on with, and what a chat model, which its tokenizer's template makes it, is
    asked. That stands for the start token: captions, and the counts of their tokens, begin after it, and the processors of logits
    see nothing of it. Special tokens that an instruction names are left out of it: it may hold what strangers wrote. A prompt too
    long to leave room for a caption is that request's error, and never cut. What the model's generation config says of sampling is
    not looked at, but for the tokens that end. `context_length`: the model's positions. `start_id` is a special token that no
    caption holds. `batch_size`: requests answered at a time. `weights_sha256` is of the weights in float32.
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
        configured = model.generation_config.eos_token_id
        self.end_ids = end_ids(tokenizer, tokenizer.eos_token_id if configured is None else configured)
        self.special = SpecialTokens(tokenizer, self.end_ids)
        self.special_ids = self.special.ids
        self.context_length = positions(model.config)
        problems = [] if self.end_ids else ["no eos_token_id, in its generation config or of its tokenizer"]
        if len(tokenizer) > self.vocabulary:
            problems.append(f"its tokenizer has {len(tokenizer):,} tokens, and its model {self.vocabulary:,}")
        if self.context_length < 4:
            problems.append(f"its config says of {self.context_length} positions (max_position_embeddings)")
        if problems:
            raise ValueError(f"{source}: " + "; ".join(problems))
        self.end_id = self.end_ids[0]
        self.start_id = next(iter(self.special.not_ends), self.end_id)
        self.chats = tokenizer.chat_template is not None
        self._before, self._after, self._lead = "", "", " "
        if self.chats:
            self._before, self._after, self._lead = attempt(f"{source}: its chat template", self._template)
        self.description = self._describe(source)

    @property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        raise ValueError(f"{self.name}: a language model looks at no pictures")

    def check(self, sampling: SamplingConfig, *, similarity: bool = False) -> None:
        """Raises ValueError where the sampling does not fit the captioner; similarity never does."""
        if similarity:
            raise ValueError(f"similarity: {self.name} has no embedding that its captions and pictures share")
        self._rules(sampling)

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
        """Answers the instructions of requests, `batch_size` of them in flight; results in input order.

        What prompts begin with as the first of them does is computed once. Caption i of a request is number first_index + i
        of its key's draws in the column. A greedy caption is what transformers' greedy search gives.
        Raises ValueError as `check` does, before any request is looked at.
        """
        self.check(sampling, similarity=similarity)
        rules = self._rules(sampling)

        def answer(fitting: Iterable[Request]) -> Iterator[Captioned]:
            decoded = search(
                self._begin(rules),
                fitting,
                rules,
                batch_size=batch_size or self.batch_size,
                column=column,
                first_index=first_index,
            )
            return spoken(decoded, self.model, self.decode, stops=sampling.stops)

        return answered(requests, partial(self._refusal, rules), answer)

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        """About how much memory a request of a prompt of 512 tokens and its captions take, in bytes."""
        rules = self._rules(sampling)
        captions = sampling.num_beams if sampling.strategy == "beam" else sampling.num_captions
        with evaluating(self.model), torch.no_grad():
            rows = self._begin(rules)([Request("", None, "?")])[1]
        own = nbytes(rows.own.own)
        prompt = own // rows.limit * min(PROMPT, self.context_length)
        # twice: rows that leave or join are copied; the choice of a token holds about eight numbers for each of the vocabulary
        return 2 * (prompt + captions * own) + 8 * 4 * captions * self.vocabulary

    def _begin(self, rules: Rules) -> Callable[[Sequence[Request]], tuple[None, Continuing]]:
        """How the rows of requests begin, whose prompts share what they begin with as the first of all does."""
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

    def _rules(self, sampling: SamplingConfig) -> Rules:
        """The rules of this sampling; ValueError where it does not fit."""
        never = sorted({*self.special_ids, *range(len(self.tokenizer), self.vocabulary)} - {self.end_id})
        longest = sampling.max_length or min(CONTEXT, self.context_length // 2) + 1
        rules = Rules.of(self, sampling.model_copy(update={"max_length": longest}), never, self.model.device)
        problems = []
        if sampling.strategy == "beam" and (sampling.stops or sampling.answer == "json"):
            problems.append(
                "strategy beam looks for the ends of whole answers: line, json and stop are for sample and greedy"
            )
        if sampling.answer == "json" and sampling.prefix:
            problems.append("prefix is for text: an answer in JSON begins with JSON")
        if problems:
            raise ValueError("sampling: " + "; ".join(problems))
        if sampling.stops:
            may = closing_tokens(sampling.stops, self._words).to(self.model.device)
            rules = rules._replace(stops=Stops(sampling.stops, self._say, may, rules.prefix.tolist()))
        if sampling.answer == "json":
            rules = rules._replace(masked=JsonTokens(sampling.json_schema, self._json_words, self.end_id).masked)
        return rules

    def _refusal(self, rules: Rules, request: Request) -> str:
        """Why a request has no answer, "" where nothing hinders it."""
        length, room = len(self.prompt_ids(request.instruction or "")), self.context_length - rules.max_length + 2
        if not request.instruction or not request.instruction.strip():
            return "there is no instruction"
        if length > room:
            return (
                f"the prompt has {length:,} tokens, and {self.name} has {self.context_length:,} positions: captions of up to "
                f"{rules.max_length:,} tokens (max_length) leave it {max(0, room):,}"
            )
        return ""

    # Words and tokens

    def prompt_ids(self, instruction: str) -> list[int]:
        """Token ids of all that comes before a caption, never cut; special tokens that the instruction names are left out."""
        text = self._before + self.special.blanked(instruction) + self._after
        ids = self.tokenizer(text, add_special_tokens=not self.chats, verbose=False)["input_ids"]
        while not self.chats and ids and ids[-1] in self.end_ids:  # some tokenizers end all texts
            ids.pop()
        return ids

    def encode_text_ids(self, text: str) -> list[int]:
        """Token ids of a caption, from start to end token, never cut; special tokens that the text names are left out."""
        before, whole = (
            self.tokenizer("=" + words, add_special_tokens=False)["input_ids"] for words in ("", self._lead + text)
        )
        return [self.start_id, *(id for id in whole[len(before) :] if id not in self.special_ids), self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a caption's token ids up to the first end token, without special tokens and outer blanks."""
        return self._say(ids).strip()

    def _say(self, ids: Sequence[int]) -> str:
        """As `decode`, with outer blanks."""
        first, *others = ids  # the start token, which may be an end token, too
        said = itertools.takewhile(lambda id: id not in self.end_ids, others if first == self.start_id else ids)
        return self.tokenizer.decode([id for id in said if id not in self.special_ids])

    @cached_property
    def _words(self) -> list[str]:
        """The vocabulary (V,), each token decoded by itself."""
        return self.tokenizer.batch_decode([[id] for id in range(len(self.tokenizer))])

    @cached_property
    def _json_words(self) -> Any:
        return json_words(self.tokenizer, self.vocabulary, self.end_id)

    def _template(self) -> tuple[str, str, str]:
        """The chat template's text before and after a question, and before an answer; it is a program of the model's folder."""
        question, answer = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
        options = {"tokenize": False, "enable_thinking": False, "strftime_now": DAY.strftime}
        render = self.tokenizer.apply_chat_template
        text, whole = in_bounds(
            lambda: [
                render([question], add_generation_prompt=True, **options),
                render([question, answer], **options),
            ]
        )
        before, _, after = text.partition(QUESTION)
        if text.count(QUESTION) != 1:
            raise ValueError(f"it says what it is asked {text.count(QUESTION)} times, not once")
        whole = whole.partition(ANSWER)[0]
        return before, after, whole.removeprefix(text) if whole.startswith(text) else ""

    def _describe(self, source: str) -> str:
        return "\n".join(
            (
                f"architecture: {self.name}, {type(self.model).__name__} of {self.model.num_parameters() / 1e6:.1f} M parameters",
                f"context: {self.context_length} tokens, prompt and caption together",
                f"asked: {'by its chat template' if self.chats else 'to complete a text'}",
                f"weights: {source}",
            )
        )


def positions(config: PreTrainedConfig) -> int:
    """How many tokens prompt and caption may have together: decoding keeps all tokens in sight, so no more than a window holds.

    Where rotary embeddings stretch, one long prompt would change what all others in a batch say, so no more than they do not.
    """
    config = config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or 0
    kinds = getattr(config, "layer_types", None)
    if kinds is None or any(kind != "full_attention" for kind in kinds):
        windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size"))
        most = min(most, *(window for window in windows if isinstance(window, int) and window > 0), most)
    if stretches(config):
        original = (config.rope_parameters or {}).get("original_max_position_embeddings")
        most = min(most, original or most)
    return most
