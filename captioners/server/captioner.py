"""Models behind an OpenAI-compatible server as captioners: `openai:http://host:port#model`.

N: bytes of an encoded picture
"""

import asyncio
import hashlib
import io
import itertools
import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait

import torch
from PIL import Image
from torch import Tensor

from captioners.base import Captioned, Request, SamplingConfig
from captioners.decoding.sampling import name_digest
from captioners.names import column_name
from captioners.server.address import PREFIX, Address, read_address
from captioners.server.answers import Choice
from captioners.server.client import FEW_RETRIES, Connection, Refusal
from captioners.server.config import ServerConfig
from captioners.server.fields import INSTRUCTION, LOST, Dialect, fields_of
from captioners.server.handover import HandOver
from captioners.server.journal import Journal, request_key
from captioners.server.load import Fault

logger = logging.getLogger(__name__)

LONGEST_SIDE = 1024  # pixels; about what the models look at, in a few hundred kB
IN_FLIGHT = 64  # pictures
LAST_WORDS = 60  # seconds, for requests that are under way when a shard fails
CHARACTERS = 4  # of a token, about
WITHOUT_PICTURES = (400, 404, 415, 422, 500, 501)  # what servers of language models say to a picture
ALIKE_TOLD = 4  # pictures whose captions are all the same, half or more of all
STILL_THINKING = "the model may think before it speaks: raise --max-length, or turn that off, as by --extra-body"


class ServerCaptioner:
    """A model that a server captions with. `batch_size`: requests under way at most; the server makes its own batches of them.

    A server does not tell its weights: `weights_sha256` is of the model's name alone, so that a run may be resumed at another
    address. The same command then asks for the same pictures, with the same prompt and seeds, and what comes of these is up to
    the server: draws are repeated where it has the same weights and heeds seeds whatever else it does at the time.
    What a sampling leaves at its default is not sent, and up to the server as well, temperature and top_p aside.
    `journal`: where answers are kept for another try, if anywhere.
    """

    looks_at_pictures = takes_instruction = True
    needs_picture = needs_instruction = False

    def __init__(self, address: Address, server: Connection, listed: Sequence[str]):
        self.address, self.listed = address, listed
        self.name = column_name(address.model.rstrip("/").rpartition("/")[2])
        self.weights_sha256 = hashlib.sha256(f"{PREFIX}{address.model}".encode()).hexdigest()
        self.batch_size = IN_FLIGHT
        self.preprocess = encode_picture  # holds nothing of the server's, so workers can have it
        clear = ", unencrypted" if address.base.startswith("http:") and not address.is_here else ""
        where, model = f"{address.base}{clear}", f"model: {address.model}"
        self.description = f"pictures are sent to {where}, as JPEG, longest side at most {LONGEST_SIDE} px\n{model}"
        self.description_by_words = f"words alone are sent to {where}, no pictures\n{model}"
        self.journal: Journal | None = None
        self._server = server
        self._dialects: dict[SamplingConfig, Dialect] = {}
        self._tokens: dict[SamplingConfig, tuple[int, int]] = {}  # of a probe, and of its answer
        self._blind: dict[SamplingConfig, str] = {}  # what the server says to a picture, where it answers words alone
        self._alike: Counter[bool] = Counter()  # pictures, by whether their captions are all the same
        self._told_alike = False
        self._sound_at = float("-inf")  # when a blank picture was sent that got a caption

    def check(self, sampling: SamplingConfig, *, similarity: bool = False) -> None:
        """Raises ValueError where the server does not do what is asked.

        The first look at a sampling asks the server, by a blank picture, or by words alone where it takes no pictures, which
        fields it takes: one caption is asked for at a time where it does not give several, each with a seed of its own.
        """
        problems = (
            []
            if not similarity
            else [f"similarity: {self.name} has no embedding that its captions and pictures share"]
        )
        if sampling.prefix:
            problems.append(
                f"prefix {sampling.prefix!r}: servers begin by themselves; to ask for something, say --instruction"
            )
        if sampling.strategy == "beam":
            problems.append(
                f"strategy 'beam', num_beams {sampling.num_beams}: servers draw ('sample') or are 'greedy'"
            )
        if sampling.no_repeat_ngram_size:
            problems.append(f"no_repeat_ngram_size {sampling.no_repeat_ngram_size}: servers have no such rule")
        if problems:
            raise ValueError("sampling: " + "; ".join(problems))
        if sampling not in self._dialects:
            self._dialects[sampling] = self._dialect(sampling)

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
        """Asks the server, with at most `batch_size` requests under way; results in input order.

        batch_size: the captioner's own unless given; fewer where the server does not bear so many.
        Where a request has no instruction, a description of its picture is asked for. A request's
        seed is a function of sampling.seed, the column, its key and first_index. `Caption.logprob` is the server's, None where it
        gives none.

        A request that the server does not answer, however often, while it captions a blank picture, or of words alone answers a
        plain question, has no captions, and an error. Raises ValueError as `check` does, before any request is looked at.
        Iterating raises ConnectionError where the server cannot be had, or does not answer those either.
        """
        self.check(sampling, similarity=similarity)
        return self._caption(iter(requests), sampling, column, first_index, batch_size or self.batch_size)

    def _dialect(self, sampling: SamplingConfig) -> Dialect:
        """The fields that the server takes with this sampling; ValueError where it takes too few of them."""
        with self._server as server:
            try:
                try:
                    dialect, choices = self._asked(server, sampling, BLANK)
                except Refusal as refusal:
                    if refusal.status not in WITHOUT_PICTURES:
                        raise
                    try:
                        dialect, choices = self._asked(server, sampling, WORDS)
                    except Refusal:
                        raise refusal from None
                    self._blind[sampling] = str(refusal)
            except Refusal as refusal:
                told = f"{self.address.base}: {refusal}"
                if refusal.status in (401, 403):
                    told = server.about_the_key(refusal)
                raise ValueError(self._with_models(told)) from None
            except ConnectionError as error:
                raise ValueError(self._with_models(str(error))) from None
        if choices[0].is_cut and not any(choice.text for choice in choices):
            why = f"no text came for a blank picture, finish_reason {choices[0].reason!r}; {STILL_THINKING}"
            raise ValueError(self._with_models(why))
        for name in dialect.instead.keys() & LOST:
            logger.warning("%s takes no %s: %s", self.address.base, name, LOST[name])
        self._tokens[sampling] = server.usage
        return dialect

    def _asked(self, server: Connection, sampling: SamplingConfig, probe: Request) -> tuple[Dialect, Sequence[Choice]]:
        """The fields with which the server answers the probe, and its answer; Refusal with all that it refused otherwise."""
        dialect, fields, refusals = Dialect(), self._fields(sampling, probe, 0), {}
        while True:
            try:
                return dialect, server.submit(server.complete(dialect.spoken(fields), FEW_RETRIES)).result()
            except Refusal as refusal:
                refusals[str(refusal)] = None
                if not dialect.give_up(fields, sampling, refusal.status, refusal.words):
                    raise Refusal("; then ".join(refusals), refusal.status, refusal.words) from None

    def _with_models(self, problem: str) -> str:
        known = (
            f"the server names the models {', '.join(self.listed[:20])}"
            if self.listed
            else "the server names no models"
        )
        return f"model {self.address.model!r}: {problem} ({known})"

    def _caption(
        self,
        requests: Iterator[Request],
        sampling: SamplingConfig,
        column: str,
        first_index: int,
        batch_size: int,
    ) -> Iterator[Captioned]:
        first = next(requests, None)  # this may fork processes that decode, and should while there is no other thread
        if first is None:
            return
        requests = itertools.chain([first], requests)
        waiting: deque[Future[Captioned]] = deque()
        with self._server as server, HandOver(server.loop) as asked:
            server.load.most = batch_size
            try:
                while True:
                    # those behind a slow one need not wait for it
                    for request in itertools.islice(requests, 2 * batch_size - len(waiting)):
                        waiting.append(asked.submit(self._ask(request, sampling, column, first_index)))
                    if not waiting:
                        return
                    yield waiting.popleft().result()
            except Fault:
                if self.journal is not None:  # what is under way is paid for
                    wait(waiting, LAST_WORDS)
                raise

    async def _ask(self, request: Request, sampling: SamplingConfig, column: str, first_index: int) -> Captioned:
        """The captions for a request, asked for at once or one after the other."""
        key = request.key
        if request.picture is None and not request.instruction:
            return Captioned(key, (), error="there is neither a picture nor an instruction to ask by")
        if request.picture is not None and sampling in self._blind:
            raise self._server.ended(f"the server takes no pictures: {self._blind[sampling]}")
        spoken = self._dialects[sampling].spoken
        choices: list[Choice] = []
        try:
            while len(choices) < sampling.num_captions:
                index = first_index + len(choices)
                seed = request_seed(sampling.seed, key, index, column)
                fields = spoken(self._fields(sampling, request, seed))
                choices += await self._answer(fields, (column, key, index, sampling.seed))
            if not any(choice.text for choice in choices):
                hint = f"; {STILL_THINKING}" if choices[0].is_cut else ""
                raise Refusal(f"no text came, finish_reason {choices[0].reason!r}{hint}", 200)
        except Refusal as refusal:
            await self._check_server(sampling, request, asyncio.get_running_loop().time(), refusal)
            what = "request" if request.picture is None else "picture"
            return Captioned(key, (), error=f"the server refuses the {what}: {refusal}")
        self._watch_seeds(sampling, choices)
        return Captioned(key, tuple(choice.caption(sampling) for choice in choices))

    async def _answer(self, request: dict, draw: tuple) -> list[Choice]:
        """What the server says, or has said when the shard was tried before, for this draw (column, key, number, seed)."""
        if self.journal is None:
            return await self._server.complete(request)
        journal, name = self.journal, request_key(request, draw)
        if (known := journal.get(name)) is None:
            known = await self._server.complete(request)
            if any(choice.text for choice in known):
                journal.put(name, known)
        return known

    async def _check_server(self, sampling: SamplingConfig, request: Request, since: float, refusal: Refusal) -> None:
        """Raises ConnectionError where the server does not answer the request's like either; asked once for all that wait."""
        probe = WORDS if request.picture is None else BLANK
        async with self._server.one_check:
            if self._sound_at >= since:
                return
            began = asyncio.get_running_loop().time()
            try:
                fields = self._dialects[sampling].spoken(self._fields(sampling, probe, 0))
                choices = await self._server.complete(fields, FEW_RETRIES)
                sound = bool(choices[0].text)
            except Refusal:
                sound = False
            if not sound:
                like = "a plain question gets no answer" if probe is WORDS else "a blank picture gets no caption"
                raise self._server.ended(f"{refusal}; {like} either")
            self._sound_at = began

    def _watch_seeds(self, sampling: SamplingConfig, choices: Sequence[Choice]) -> None:
        """Says once that captions of a picture that should differ do not: the gate would drop them as duplicates."""
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
        return fields_of(self.address.model, sampling, request, seed, self._server.config.more_fields)

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        """About how much memory a picture in flight takes, in bytes: it, its base64 and the request around that."""
        return 4 << 20

    def cost(self, pictures: int, sampling: SamplingConfig, redraws: int, like: Sequence[Request] = ()) -> str:
        """The cost of so many requests like these: how often the server is asked, and tokens.

        Those in are judged by what the probe took, a blank picture of the usual size, and by the lengths of instructions.
        """
        several = "n" in self._dialects[sampling].spoken({"n": 1}) or sampling.num_captions == 1
        requests = pictures * (1 if several else sampling.num_captions)
        most = requests * (1 + redraws * (sampling.strategy == "sample"))
        taken = self._tokens_of(sampling, like)
        fields = self._dialects[sampling].spoken(self._fields(sampling, BLANK, 0))
        limits = [
            fields[name] for name in ("max_tokens", "max_completion_tokens") if isinstance(fields.get(name), int)
        ]
        out = f"at most {pictures * max(limits) * sampling.num_captions:,} out" if limits else "no limit to those out"
        tokens = f"about {round(requests * taken):,} tokens in" if taken else "the server does not count tokens"
        return (
            f"{self.address.base}: about {requests:,} requests, at most {most:,} with redraws; {tokens}, "
            f"{out}, without redraws"
        )

    def _tokens_of(self, sampling: SamplingConfig, like: Sequence[Request]) -> float:
        """About how many tokens one of these requests takes, on average; 0 where the server does not count any."""
        probe, _ = self._tokens[sampling]
        if not probe or not like:
            return probe
        counts = []
        for request in like:
            more = (len(request.instruction or INSTRUCTION) - len(INSTRUCTION)) / CHARACTERS
            # the probe had a picture, and this has none
            alone = request.picture is None and sampling not in self._blind
            counts.append((len(INSTRUCTION) / CHARACTERS if alone else probe) + more)
        return sum(counts) / len(counts)


def load_server(name: str, config: ServerConfig = ServerConfig()) -> ServerCaptioner:
    """The captioner `openai:http://host:port#model`, as `read_address` reads it; the key is OPENAI_API_KEY's, if there is one.

    Raises ValueError where the address is none, no model is named, no server answers there, or it refuses the key.
    """
    address = read_address(name)
    connection = Connection(address, config)
    with connection as server:
        listed = server.submit(server.models()).result()
    if not address.model:
        raise ValueError(
            f"model: {name!r} names no model after '#'; the server names {', '.join(listed[:20]) or 'none'}"
        )
    return ServerCaptioner(address, connection, listed)


def request_seed(seed: int, key: str, index: int, column: str = "") -> int:
    """The seed of a request, of 31 bits, as all servers take it: of its first caption's number among its key's draws in a column."""
    digest = hashlib.blake2b(
        key.encode("utf-8", "surrogatepass"),
        digest_size=4,
        key=seed.to_bytes(8, "little"),
        salt=index.to_bytes(16, "little"),
        person=name_digest(column),
    ).digest()
    return int.from_bytes(digest, "little") >> 1


def encode_picture(image: Image.Image) -> Tensor:
    """A decoded RGB picture as a JPEG (N,) uint8, its longest side at most 1024 pixels."""
    image = image.copy()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=95, subsampling=0)
    return torch.frombuffer(bytearray(encoded.getbuffer()), dtype=torch.uint8)


# What is asked to see what a server does: a picture as large as photographs are sent, and words alone.
WORDS = Request("", None, "Say in one sentence what a dog is.")
BLANK = Request("", encode_picture(Image.new("RGB", (LONGEST_SIDE, LONGEST_SIDE * 3 // 4), "grey")))
