"""From pictures to captions, for every captioner that chooses its tokens here: one search, and the model in eval mode."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from torch import nn

from captioners.base import Caption, Captioned, Request, up_to_stop
from captioners.decoding.batch import Drawing
from captioners.decoding.beam import BeamSearch
from captioners.decoding.rows import Begin, DecodedPicture, Rules


def search(
    begin: Begin,
    requests: Iterable[Request],
    rules: Rules,
    *,
    batch_size: int,
    column: str = "",
    first_index: int = 0,
) -> Iterable[DecodedPicture]:
    """The captions of requests, in their order, by the strategy of the rules' sampling.

    Caption i of a request draws as number first_index + i of its key's draws in the column.
    """
    if rules.sampling.strategy == "beam":
        return BeamSearch(begin, requests, rules, batch_size=batch_size)
    return Drawing(
        begin,
        requests,
        rules,
        batch_size=batch_size,
        column=column,
        first_index=first_index,
        check_every=8 if rules.prefix.is_cuda else 1,
    )


def answered(
    requests: Iterable[Request],
    problem: Callable[[Request], str],
    answer: Callable[[Iterable[Request]], Iterator[Captioned]],
) -> Iterator[Captioned]:
    """The results of requests, in their order; a request with a problem is not answered, and its result is an error."""
    waiting: deque[Captioned | None] = deque()  # those with a problem, and None for each that is being answered

    def asked() -> Iterator[Request]:
        for request in requests:
            why = problem(request)
            waiting.append(Captioned(request.key, (), error=why) if why else None)
            if not why:
                yield request

    for result in answer(asked()):
        while (refused := waiting.popleft()) is not None:
            yield refused
        yield result
    yield from (refused for refused in waiting if refused is not None)


def spoken(
    decoded: Iterable[DecodedPicture],
    model: nn.Module,
    decode: Callable[[list[int]], str],
    similarities: Callable[[Sequence[DecodedPicture]], list[list[float]]] | None = None,
    *,
    together: int = 1,
    stops: Sequence[str] = (),
) -> Iterator[Captioned]:
    """The requests' captions as text, up to the first of the stops; the model is in eval mode while it works, and only then.

    similarities: the cosines of the captions of pictures, `together` of which are asked for at once.
    """
    decoded = iter(decoded)
    while True:
        with evaluating(model):
            pictures = list(islice(decoded, together if similarities else 1))
            if not pictures:
                return
            cosines = similarities(pictures) if similarities else [[None] * len(pictures[0].captions)]
        for picture, similar in zip(pictures, cosines, strict=True):
            captions = []
            for caption, cosine in zip(picture.captions, similar, strict=True):
                text = decode(caption.tokens)
                said = up_to_stop(text, stops) if stops else text
                captions.append(Caption(said, caption.logprob, caption.truncated and said == text, cosine))
            yield Captioned(picture.key, tuple(captions), picture.features)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and back in training where it was, whatever happens; one that is in eval mode is not walked."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
