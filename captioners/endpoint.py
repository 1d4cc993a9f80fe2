"""Models behind an OpenAI-compatible server (vLLM, SGLang, transformers serve) as captioners: `openai:http://host:port#model`.

N: bytes of an encoded picture
"""

import asyncio
import base64
import hashlib
import io
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import torch
from PIL import Image
from torch import Tensor

from captioners.base import Captioned, SamplingConfig
from captioners.endpoint_client import KEY, Connection, Refusal
from captioners.names import column_name
from captioners.sampling import name_digest

PREFIX = "openai:"
INSTRUCTION = "Describe this picture in one sentence."
MAX_LENGTH = 257  # tokens, start and end included, where the sampling names none: as of embedded vision-language models
LONGEST_SIDE = 1024  # pixels; about what the models look at, in a few hundred kB
IN_FLIGHT = 64  # pictures
DEFAULTS = SamplingConfig()


class EndpointCaptioner:
    """A model that a server captions with. `batch_size`: pictures in flight; the server makes its own batches of them.

    A server does not tell its weights: `weights_sha256` is of the model's name alone, so that a run may be resumed at another
    address. The same command then asks for the same pictures, with the same prompt and seeds, and what comes of these is up to
    the server: draws are repeated where it has the same weights and heeds seeds whatever else it does at the time.
    What a sampling leaves at its default is not sent, and up to the server as well, temperature and top_p aside.
    """

    def __init__(self, url: str, model: str, listed: Sequence[str]):
        self.url, self.model, self.listed = url, model, listed
        self.name = column_name(model.rstrip("/").rpartition("/")[2])
        self.weights_sha256 = hashlib.sha256(f"{PREFIX}{model}".encode()).hexdigest()
        self.batch_size = IN_FLIGHT
        self.preprocess = encode_picture  # holds nothing of the server's, so workers can have it
        self.description = f"server: {url}\nmodel: {model}\npictures: JPEG, longest side at most {LONGEST_SIDE} px"
        self._extras: dict[SamplingConfig, dict[str, Any]] = {}

    def caption(
        self, images: Iterable[tuple[str, Tensor]], sampling: SamplingConfig, *, column: str = "", first_index: int = 0,
        similarity: bool = False, batch_size: int | None = None
    ) -> Iterator[Captioned]:
        """Captions (key, encoded picture (N,)) pairs, with at most `batch_size` pictures in flight; results in input order.

        batch_size: the captioner's own unless given.
        `sampling.prompt` is what is asked of the model beside the picture. A picture's seed is a function of sampling.seed, the
        column, its key and first_index. `Caption.logprob` is the server's, None where it gives none.
        The first call for a sampling looks, by a blank picture, whether the server gives several captions to a request, and
        log-probabilities; one caption is asked for at a time where it does not, each with a seed of its own.

        A picture that the server refuses alone, or fails at alone (status 500) however often, has no captions, and an error.
        Raises ValueError where the server does not do what the sampling asks, before any picture is looked at. Iterating raises
        ConnectionError where the server cannot be had, or answers what is no picture's fault.
        """
        problems = [] if not similarity else [f"similarity: {self.name} has no embedding that its captions and pictures share"]
        if sampling.strategy == "beam":
            problems.append(f"strategy 'beam', num_beams {sampling.num_beams}: servers draw ('sample') or are 'greedy'")
        if sampling.no_repeat_ngram_size:
            problems.append(f"no_repeat_ngram_size {sampling.no_repeat_ngram_size}: servers have no such rule")
        if problems:
            raise ValueError("sampling: " + "; ".join(problems))
        if sampling not in self._extras:
            self._extras[sampling] = self._extras_taken(sampling)
        return self._caption(iter(images), sampling, column, first_index, batch_size or self.batch_size)

    def _extras_taken(self, sampling: SamplingConfig) -> dict[str, Any]:
        """Those of `n` and `logprobs` that the server heeds with this sampling; ValueError where it takes it with neither."""
        several = [{"n": sampling.num_captions}] if sampling.num_captions > 1 else []
        with Connection(self.url) as server:
            for extras in [{**of, "logprobs": True} for of in several] + several + [{"logprobs": True}, {}]:
                try:
                    choices = server.submit(server.complete(self._request(sampling, _BLANK, 0) | extras)).result()
                except Refusal as refusal:
                    reason = str(refusal)
                except ConnectionError as error:
                    raise ValueError(self._with_models(str(error))) from error
                else:
                    if len(choices) == extras.get("n", 1):
                        return extras
                    reason = f"{len(choices)} captions came for {extras.get('n', 1)}"
        raise ValueError(self._with_models(f"{self.url}: {reason}"))

    def _with_models(self, problem: str) -> str:
        known = f"the server names the models {', '.join(self.listed)}" if self.listed else "the server names no models"
        return f"model {self.model!r}: {problem} ({known})"

    def _caption(self, images: Iterator[tuple[str, Tensor]], sampling: SamplingConfig, column: str, first_index: int,
                 batch_size: int) -> Iterator[Captioned]:
        first = next(images, None)  # this may fork processes that decode, and should while there is no other thread
        if first is None:
            return
        images, waiting, slots = itertools.chain([first], images), deque(), asyncio.Semaphore(batch_size)
        with Connection(self.url) as server:
            while True:
                # those behind a slow picture need not wait for it
                for key, picture in itertools.islice(images, 2 * batch_size - len(waiting)):
                    waiting.append(server.submit(self._ask(server, slots, key, picture, sampling, column, first_index)))
                if not waiting:
                    return
                yield waiting.popleft().result()

    async def _ask(self, server: "Connection", slots: asyncio.Semaphore, key: str, picture: Tensor, sampling: SamplingConfig,
                   column: str, first_index: int) -> Captioned:
        """The captions of a picture (N,), by one request or several, one after the other."""
        extras = self._extras[sampling]
        at_once = extras.get("n", 1)
        async with slots:
            try:
                choices = []
                for index in range(first_index, first_index + sampling.num_captions, at_once):
                    request = self._request(sampling, picture, request_seed(sampling.seed, key, index, column))
                    choices += await server.complete(request | extras)
            except Refusal as refusal:
                try:
                    await server.complete(self._request(sampling, _BLANK, 0))
                except Refusal as of_blank:
                    raise ConnectionError(f"{server.url}: {of_blank}") from of_blank
                return Captioned(key, (), error=f"the server refuses the picture: {refusal}")
        if len(choices) != sampling.num_captions:
            raise ConnectionError(f"{server.url}: {len(choices)} captions of {key!r} came for {sampling.num_captions}")
        return Captioned(key, tuple(choice.caption() for choice in choices))

    def _request(self, sampling: SamplingConfig, picture: Tensor, seed: int) -> dict[str, Any]:
        """A request for one caption; what only some servers know is named only where it is asked for."""
        url = "data:image/jpeg;base64," + base64.b64encode(picture.numpy()).decode("ascii")
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": sampling.prompt or INSTRUCTION}]
        request = {"model": self.model, "messages": [{"role": "user", "content": content}],
                   "max_tokens": (sampling.max_length or MAX_LENGTH) - 2, "temperature": 0.0}
        if sampling.strategy == "sample":
            request |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
            if sampling.top_k is not None:
                request["top_k"] = sampling.top_k
        if sampling.repetition_penalty != DEFAULTS.repetition_penalty:
            request["repetition_penalty"] = sampling.repetition_penalty
        if sampling.min_length > DEFAULTS.min_length:
            request["min_tokens"] = sampling.min_length - 1
        return request

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        """About how much memory a picture in flight takes, in bytes: it, its base64 and the request around that."""
        return 4 << 20


def load_endpoint(name: str) -> EndpointCaptioner:
    """The captioner `openai:http://host:port#model`, /v1 at the path's end or not; the key is OPENAI_API_KEY's, if there is one.

    Raises ValueError where the address is none, no model is named, no server answers there, or it refuses the key.
    """
    url, _, model = name.removeprefix(PREFIX).partition("#")
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not (parts.username or parts.query)
    except ValueError:
        right = False
    if not right:
        shown = name.rpartition("@")[2].partition("?")[0]  # nothing that may be a secret
        raise ValueError(f"model: {shown!r} is not {PREFIX}http://host:port#model; a key comes from {KEY}, not with the address")
    url = url.rstrip("/").removesuffix("/v1") + "/v1"
    with Connection(url) as server:
        listed = server.submit(server.models()).result()
    if not model:
        raise ValueError(f"model: {name!r} names no model after '#'; the server names {', '.join(listed) or 'none'}")
    return EndpointCaptioner(url, model, listed)


def request_seed(seed: int, key: str, index: int, column: str = "") -> int:
    """The seed of a request, of 31 bits, as all servers take it: of its first caption's number among its key's draws in a column."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=4, key=seed.to_bytes(8, "little"),
                             salt=index.to_bytes(16, "little"), person=name_digest(column)).digest()
    return int.from_bytes(digest, "little") >> 1


def encode_picture(image: Image.Image) -> Tensor:
    """A decoded RGB picture as a JPEG (N,) uint8, its longest side at most 1024 pixels."""
    image = image.copy()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=95, subsampling=0)
    return torch.frombuffer(bytearray(encoded.getbuffer()), dtype=torch.uint8)


_BLANK = encode_picture(Image.new("RGB", (224, 224), "grey"))
