"""A model behind an OpenAI-compatible server as a captioner: `openai:http://host:port#model`."""

import asyncio
import hashlib
import itertools
import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait

from captioners.base import Captioned, Request, SamplingConfig
from captioners.names import column_name
from captioners.server.address import PREFIX, Address, read_address
from captioners.server.answers import Choice
from captioners.server.client import FEW_RETRIES, Connection, Refusal
from captioners.server.config import ServerConfig
from captioners.server.fields import INSTRUCTION, LOST, Dialect, fields_of
from captioners.server.handover import HandOver
from captioners.server.journal import Journal, request_key
from captioners.server.load import Fault
from captioners.server.requests import BLANK, LONGEST_SIDE, WORDS, encode_picture, request_seed

logger = logging.getLogger(__name__)

IN_FLIGHT = 64  # default number of requests at a time
LAST_WORDS = 60  # seconds for which active requests are awaited if a shard fails
CHARACTERS = 4  # average characters per token
WITHOUT_PICTURES = (400, 404, 415, 422, 500, 501)  # HTTP statuses of servers without vision, for a picture
ALIKE_TOLD = 4  # pictures whose captions are all the same before a warning, if they are at least half of all
STILL_THINKING = (
    "the model may write thoughts before its answer: raise --max-length, or turn them off, for example by --extra-body"
)


class ServerCaptioner:
    """A model behind a server.

    A server does not report its weights, so `weights_sha256` is the hash of the model's name. Therefore a run can be
    resumed at another address. The requests of a command, with their seeds, are always the same; the captions are only
    if the server has the same weights and its results depend on nothing but the request.
    Sampling options at their default are not sent, except temperature and top_p; the server's defaults apply.

    batch_size: default maximum of requests at a time; the server forms its own batches.
    journal: where answers are kept in case the shard fails, or None.
    looks_at_pictures: whether requests may contain pictures; otherwise no picture is sent as a probe either.
    """

    takes_instruction = True
    needs_picture = needs_instruction = False

    def __init__(self, address: Address, server: Connection, listed: Sequence[str], *, looks_at_pictures: bool = True):
        self.address, self.listed, self.looks_at_pictures = address, listed, looks_at_pictures
        self.name = column_name(address.model.rstrip("/").rpartition("/")[2])
        self.weights_sha256 = hashlib.sha256(f"{PREFIX}{address.model}".encode()).hexdigest()
        self.batch_size = IN_FLIGHT
        self.preprocess = encode_picture  # does not refer to the server, so other processes can run it
        unencrypted = ", unencrypted" if address.base.startswith("http:") and not address.is_local else ""
        where, model = f"{address.base}{unencrypted}", f"model: {address.model}"
        self.description = f"pictures are sent to {where}, as JPEG, longest side at most {LONGEST_SIDE} px\n{model}"
        self.description_by_words = f"words alone are sent to {where}, no pictures\n{model}"
        self.journal: Journal | None = None
        self._server = server
        self._dialects: dict[SamplingConfig, Dialect] = {}
        self._probe_tokens: dict[SamplingConfig, int] = {}  # tokens of a probe, 0 if the server does not count them
        # the server's error for a picture, for samplings with which it answers requests without pictures only
        self._refuses_pictures: dict[SamplingConfig, str] = {}
        self._alike: Counter[bool] = Counter()  # number of pictures, by whether all their captions are the same
        self._told_alike = False
        self._worked_at = float("-inf")  # when a probe was sent that was answered

    def check(self, sampling: SamplingConfig, *, similarity: bool = False) -> None:
        """Raise ValueError if the server does not support what is requested.

        For a new sampling, probes are sent to find out which fields the server supports: a blank picture or, if no
        pictures will be sent or the server takes none, a question. If it cannot return several captions at a time,
        captions are requested one by one, each with its own seed.
        """
        problems = []
        if similarity:
            problems.append(f"similarity: {self.name} has no embeddings that can compare captions and pictures")
        if sampling.prefix:
            problems.append(
                f"prefix {sampling.prefix!r}: servers do not support it; to steer captions, use --instruction"
            )
        if sampling.strategy == "beam":
            problems.append(
                f"strategy 'beam', num_beams {sampling.num_beams}: servers support only 'sample' and 'greedy'"
            )
        if sampling.no_repeat_ngram_size:
            problems.append(f"no_repeat_ngram_size {sampling.no_repeat_ngram_size}: servers have no such rule")
        if problems:
            raise ValueError("sampling: " + "; ".join(problems))
        if sampling not in self._dialects:
            self._dialects[sampling] = self._find_dialect(sampling)

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
        """Caption requests (see `captioners.base.Captioner`); results in input order.

        A request without an instruction asks for a description of its picture. Its seed depends on sampling.seed, the
        column, its key and first_index. `Caption.logprob` is the server's, or None if it returns none.
        batch_size: maximum requests at a time; fewer are sent if the server cannot serve as many.

        If the server does not answer a request after retries, a probe is sent: a blank picture, or a question for
        requests without pictures. If the probe is answered, the request's result is an error.
        Raises ValueError as `check` does, before the first request is read.
        Iterating raises ConnectionError if the server cannot be reached, or does not answer the probe.
        """
        self.check(sampling, similarity=similarity)
        return self._caption(
            iter(requests),
            sampling,
            column=column,
            first_index=first_index,
            batch_size=batch_size or self.batch_size,
        )

    def _find_dialect(self, sampling: SamplingConfig) -> Dialect:
        """Find the fields that the server supports with this sampling; ValueError if it does not support enough."""
        with self._server as server:
            try:
                dialect, choices = self._probe_with_picture_or_words(server, sampling)
            except Refusal as refusal:
                message = f"{self.address.base}: {refusal}"
                if refusal.status in (401, 403):
                    message = server.about_the_key(refusal)
                raise ValueError(self._with_models(message)) from None
            except ConnectionError as error:
                raise ValueError(self._with_models(str(error))) from None
        if choices[0].is_cut and not any(choice.text for choice in choices):
            probe = "a blank picture" if self._takes_pictures(sampling) else "a plain question"
            why = f"no text came for {probe}, finish_reason {choices[0].reason!r}; {STILL_THINKING}"
            raise ValueError(self._with_models(why))
        for name in dialect.replaced.keys() & LOST:
            logger.warning("%s takes no %s: %s", self.address.base, name, LOST[name])
        self._probe_tokens[sampling] = server.prompt_tokens
        return dialect

    def _probe_with_picture_or_words(
        self, server: Connection, sampling: SamplingConfig
    ) -> tuple[Dialect, Sequence[Choice]]:
        """Send a picture as a probe or, if the server takes no pictures, a question; note which of them it was.

        Raises Refusal, with the errors for the picture, if the server answers neither.
        """
        if not self.looks_at_pictures:
            return self._probe(server, sampling, WORDS)
        try:
            return self._probe(server, sampling, BLANK)
        except Refusal as refusal:
            if refusal.status not in WITHOUT_PICTURES:
                raise
            try:
                answered = self._probe(server, sampling, WORDS)
            except Refusal:
                raise refusal from None
            self._refuses_pictures[sampling] = str(refusal)
            return answered

    def _takes_pictures(self, sampling: SamplingConfig) -> bool:
        """Whether the probe that the server answered had a picture."""
        return self.looks_at_pictures and sampling not in self._refuses_pictures

    def _probe(self, server: Connection, sampling: SamplingConfig, probe: Request) -> tuple[Dialect, Sequence[Choice]]:
        """Find the fields with which the server answers a probe; return them and its answer.

        Raises Refusal with all the server's errors if it answers with no fields.
        """
        dialect, fields, refusals = Dialect(), self._fields(sampling, probe, 0), {}
        while True:
            try:
                return dialect, server.submit(server.complete(dialect.translate(fields), FEW_RETRIES)).result()
            except Refusal as refusal:
                refusals[str(refusal)] = None
                if not dialect.give_up(fields, sampling, status=refusal.status, words=refusal.words):
                    raise Refusal("; then ".join(refusals), refusal.status, refusal.words) from None

    def _with_models(self, problem: str) -> str:
        """A message about the model, with the models that the server lists."""
        if self.listed:
            models = f"the server names the models {', '.join(self.listed[:20])}"
        else:
            models = "the server names no models"
        return f"model {self.address.model!r}: {problem} ({models})"

    def _caption(
        self,
        requests: Iterator[Request],
        sampling: SamplingConfig,
        *,
        column: str,
        first_index: int,
        batch_size: int,
    ) -> Iterator[Captioned]:
        # reading the first request may fork processes, which should happen before there is another thread
        first = next(requests, None)
        if first is None:
            return
        requests = itertools.chain([first], requests)
        waiting: deque[Future[Captioned]] = deque()
        with self._server as server, HandOver(server.loop) as handover:
            server.load.maximum = batch_size
            try:
                while True:
                    # twice as many as are sent at a time, so that a slow request does not delay later ones
                    for request in itertools.islice(requests, 2 * batch_size - len(waiting)):
                        task = self._caption_request(request, sampling, column, first_index=first_index)
                        waiting.append(handover.submit(task))
                    if not waiting:
                        return
                    yield waiting.popleft().result()
            except Fault:
                if self.journal is not None:  # the answers of active requests are paid for, so keep them
                    wait(waiting, LAST_WORDS)
                raise

    async def _caption_request(
        self, request: Request, sampling: SamplingConfig, column: str, *, first_index: int
    ) -> Captioned:
        """Get the captions of a request, all at once or one by one."""
        key = request.key
        if request.picture is None and not request.instruction:
            return Captioned(key, (), error="there is neither a picture nor an instruction")
        if request.picture is not None and sampling in self._refuses_pictures:
            raise self._server.give_up(f"the server takes no pictures: {self._refuses_pictures[sampling]}")
        dialect = self._dialects[sampling]
        choices: list[Choice] = []
        try:
            while len(choices) < sampling.num_captions:
                index = first_index + len(choices)
                seed = request_seed(sampling.seed, key, index, column=column)
                fields = dialect.translate(self._fields(sampling, request, seed))
                choices += await self._answer(fields, (column, key, index, sampling.seed))
            if not any(choice.text for choice in choices):
                hint = f"; {STILL_THINKING}" if choices[0].is_cut else ""
                raise Refusal(f"no text came, finish_reason {choices[0].reason!r}{hint}", 200)
        except Refusal as refusal:
            await self._check_server(sampling, request, since=asyncio.get_running_loop().time(), refusal=refusal)
            what = "request" if request.picture is None else "picture"
            return Captioned(key, (), error=f"the server refuses the {what}: {refusal}")
        self._watch_seeds(sampling, choices)
        return Captioned(key, tuple(choice.caption(sampling) for choice in choices))

    async def _answer(self, request: dict, draw: tuple) -> list[Choice]:
        """The server's answer for a draw (column, key, number, seed), from the journal if it has come before."""
        if self.journal is None:
            return await self._server.complete(request)
        journal, name = self.journal, request_key(request, draw)
        answer = journal.get(name)
        if answer is None:
            answer = await self._server.complete(request)
            if any(choice.text for choice in answer):
                journal.put(name, answer)
        return answer

    async def _check_server(
        self, sampling: SamplingConfig, request: Request, *, since: float, refusal: Refusal
    ) -> None:
        """Raise ConnectionError if the server does not answer a probe of the request's kind either.

        One probe serves all requests that were refused before it was sent. since: when the request was refused.
        """
        probe = WORDS if request.picture is None else BLANK
        async with self._server.check_lock:
            if self._worked_at >= since:
                return
            began = asyncio.get_running_loop().time()
            try:
                fields = self._dialects[sampling].translate(self._fields(sampling, probe, 0))
                choices = await self._server.complete(fields, FEW_RETRIES)
                works = bool(choices[0].text)
            except Refusal:
                works = False
            if not works:
                failure = "a plain question gets no answer" if probe is WORDS else "a blank picture gets no caption"
                raise self._server.give_up(f"{refusal}; {failure} either")
            self._worked_at = began

    def _watch_seeds(self, sampling: SamplingConfig, choices: Sequence[Choice]) -> None:
        """Warn once if the captions of pictures are all the same, because the gate would drop duplicates."""
        if sampling.strategy == "sample" and len(choices) > 1:
            self._alike[len({choice.text for choice in choices}) == 1] += 1
            if not self._told_alike and self._alike[True] >= max(ALIKE_TOLD, self._alike[False]):
                self._told_alike = True
                logger.warning(
                    "%s: the %d captions of a picture are all the same, for %d of %d pictures: the server ignores "
                    "seeds, or does not sample; the gate drops duplicates",
                    self.address.base,
                    len(choices),
                    self._alike[True],
                    self._alike.total(),
                )

    def _fields(self, sampling: SamplingConfig, request: Request, seed: int) -> dict:
        return fields_of(self.address.model, sampling, request, seed=seed, more=self._server.config.more_fields)

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        """Estimate the memory, in bytes, of a picture in flight, its base64 and its request."""
        return 4 << 20

    def cost(self, pictures: int, sampling: SamplingConfig, *, redraws: int, like: Sequence[Request] = ()) -> str:
        """Describe the cost of captioning: the number of requests, and of tokens.

        pictures: number of requests for captions. redraws: maximum redraws of each. like: examples of the requests.
        Input tokens are estimated from those of the probe, a blank picture of the usual size, and from the lengths of
        instructions.
        """
        dialect = self._dialects[sampling]
        several = "n" in dialect.translate({"n": 1}) or sampling.num_captions == 1
        requests = pictures * (1 if several else sampling.num_captions)
        most = requests * (1 + redraws * (sampling.strategy == "sample"))
        tokens_in = self._mean_tokens(sampling, like)
        fields = dialect.translate(self._fields(sampling, BLANK, 0))
        limits = [
            fields[name] for name in ("max_tokens", "max_completion_tokens") if isinstance(fields.get(name), int)
        ]
        out = f"at most {pictures * max(limits) * sampling.num_captions:,} out" if limits else "no limit to those out"
        tokens = (
            f"about {round(requests * tokens_in):,} tokens in" if tokens_in else "the server does not count tokens"
        )
        return (
            f"{self.address.base}: about {requests:,} requests, at most {most:,} with redraws; {tokens}, "
            f"{out}, without redraws"
        )

    def _mean_tokens(self, sampling: SamplingConfig, like: Sequence[Request]) -> float:
        """Estimate the tokens of these requests, on average; 0 if the server does not count tokens."""
        probe = self._probe_tokens[sampling]
        if not probe or not like:
            return probe
        counts = []
        for request in like:
            longer = (len(request.instruction or INSTRUCTION) - len(INSTRUCTION)) / CHARACTERS
            # whether the probe had a picture, but the request has none
            lacks_picture = request.picture is None and self._takes_pictures(sampling)
            counts.append((len(INSTRUCTION) / CHARACTERS if lacks_picture else probe) + longer)
        return sum(counts) / len(counts)


def load_server(name: str, config: ServerConfig = ServerConfig(), *, pictures: bool = True) -> ServerCaptioner:
    """Load the captioner `openai:http://host:port#model` (see `read_address`), with the key in OPENAI_API_KEY, if any.

    pictures: whether it will be sent pictures.

    Raises ValueError if the address is not valid, it names no model, no server answers, or the server refuses the key.
    """
    address = read_address(name)
    connection = Connection(address, config)
    with connection as server:
        listed = server.submit(server.models()).result()
    if not address.model:
        raise ValueError(
            f"model: {name!r} names no model after '#'; the server names {', '.join(listed[:20]) or 'none'}"
        )
    return ServerCaptioner(address, connection, listed, looks_at_pictures=pictures)
