"""From requests to captions as text, for every local captioner, by the search that the sampling names."""

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
    """Search for the captions of requests, in their order, by the strategy of the rules' sampling.

    column, first_index: they determine the random draws (see `captioners.base.Captioner.caption`).
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


def caption_valid_requests(
    requests: Iterable[Request],
    find_problem: Callable[[Request], str],
    caption: Callable[[Iterable[Request]], Iterator[Captioned]],
) -> Iterator[Captioned]:
    """Yield the results of requests, in their order.

    A request for which `find_problem` returns a text is not captioned; its result has this text as its error.
    """
    waiting: deque[Captioned | None] = deque()  # the results of requests with a problem; None for all other requests

    def valid_requests() -> Iterator[Request]:
        for request in requests:
            problem = find_problem(request)
            waiting.append(Captioned(request.key, (), error=problem) if problem else None)
            if not problem:
                yield request

    for result in caption(valid_requests()):
        while (refused := waiting.popleft()) is not None:
            yield refused
        yield result
    yield from (refused for refused in waiting if refused is not None)


def to_captions(
    decoded: Iterable[DecodedPicture],
    model: nn.Module,
    decode: Callable[[list[int]], str],
    *,
    similarities: Callable[[Sequence[DecodedPicture]], list[list[float]]] | None = None,
    pictures_at_once: int = 1,
    stops: Sequence[str] = (),
) -> Iterator[Captioned]:
    """Turn tokens into captions as text, up to the first of the stops.

    The model is in eval mode while it computes, and in its previous mode whenever a result is yielded.
    decode: turns token ids into text.
    similarities: computes the cosines of captions and pictures; it is called with `pictures_at_once` pictures.
    """
    decoded = iter(decoded)
    while True:
        with evaluating(model):
            pictures = list(islice(decoded, pictures_at_once if similarities else 1))
            if not pictures:
                return
            cosines = similarities(pictures) if similarities else [[None] * len(pictures[0].captions)]
        for picture, picture_cosines in zip(pictures, cosines, strict=True):
            captions = []
            for caption, cosine in zip(picture.captions, picture_cosines, strict=True):
                whole_text = decode(caption.tokens)
                text = up_to_stop(whole_text, stops) if stops else whole_text
                truncated = caption.truncated and text == whole_text
                captions.append(Caption(text, caption.logprob, truncated, similarity=cosine))
            yield Captioned(picture.key, tuple(captions), picture.features)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in eval mode; afterwards it is back in its previous mode."""
    if not model.training:  # saves two walks over all modules
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
