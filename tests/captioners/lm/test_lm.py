"""Captions from texts equal those of transformers' own generation, whatever else is in the batch."""

import itertools

import pytest
import torch

from captioners.base import Request, SamplingConfig

from .models import FAMILIES

PROMPTS = (
    "a red circle left of a blue square =>",
    "a red circle =>",
    "two green stars on a dotted background, and a red circle left of a blue square =>",
    "Describe",
    "a red circle left of a green star =>",
)
REQUESTS = [Request(f"text/{i}", None, prompt) for i, prompt in enumerate(PROMPTS)]
GREEDY = SamplingConfig(strategy="greedy", max_length=14, min_length=0)


def tokens_of(captioner, requests, sampling, **options):
    """The tokens, from start to end, of all captions, recorded by a spy on the decoding of tokens."""
    sequences = []
    decode = captioner._decode
    captioner._decode = lambda ids: sequences.append(list(ids)) or decode(ids)
    try:
        list(captioner.caption(requests, sampling, **options))
    finally:
        del captioner._decode
    return sequences


def generated(captioner, instruction: str, max_new_tokens: int) -> list[int]:
    """Transformers' greedy tokens for one prompt alone, up to an end token or `max_new_tokens`."""
    ids = torch.tensor([captioner.prompt_ids(instruction)])
    banned = sorted({*captioner.special_ids, *range(len(captioner.tokenizer), captioner.vocabulary)})
    banned = [[id] for id in banned if id not in captioner.end_ids]
    with torch.no_grad():
        output = captioner.model.generate(ids, do_sample=False, max_new_tokens=max_new_tokens, bad_words_ids=banned)
    return output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_greedy_caption_is_what_generate_gives_in_a_batch_and_alone(family, captioner_of):
    captioner = captioner_of(family)
    together = tokens_of(captioner, REQUESTS, GREEDY, batch_size=4)
    alone = [tokens_of(captioner, [request], GREEDY)[0] for request in REQUESTS]
    assert together == alone
    for request, ours in zip(REQUESTS, together, strict=True):
        theirs = generated(captioner, request.instruction, GREEDY.max_length - 2)
        ends = [token for token in theirs if token in captioner.end_ids]
        until_end = list(itertools.takewhile(lambda token: token not in captioner.end_ids, theirs))
        assert ours == [captioner.start_id, *until_end, captioner.end_id]
        assert len(ends) <= 1
    assert len({tuple(ours) for ours in together}) > 2


def logprob_alone(captioner, instruction: str, tokens: list[int]) -> float:
    """The log-probability of a caption's tokens, by one pass without a cache; one end token represents all."""
    prompt = captioner.prompt_ids(instruction)
    with torch.no_grad():
        logits = captioner.model(torch.tensor([[*prompt, *tokens[1:-1]]])).logits[0, len(prompt) - 1 :].double()
    chosen = logits.log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:]]
    chosen[-1] = logits.log_softmax(-1)[-1, captioner.end_ids].logsumexp(-1)
    return float(chosen.sum())


@pytest.mark.parametrize("family", ["gemma3_text", "gemma2"])
def test_draws_are_the_same_in_any_batch_and_have_the_probability_that_they_have_alone(family, captioner_of):
    """Captions of many lengths leave the batch while others join: sharing, keeping and joining must be right."""
    captioner = captioner_of(family)
    sampling = SamplingConfig(num_captions=3, max_length=20, min_length=0, top_p=1.0)
    requests = [request._replace(key=f"{request.key}/{i}") for i in range(2) for request in REQUESTS]
    all_at_once = tokens_of(captioner, requests, sampling, batch_size=16)
    assert all_at_once == tokens_of(captioner, requests, sampling, batch_size=3)
    backwards = tokens_of(captioner, requests[::-1], sampling, batch_size=4)  # another prompt is the first
    assert sorted(backwards) == sorted(all_at_once) and backwards != all_at_once
    assert len({len(tokens) for tokens in all_at_once}) > 4
    captions = [caption for result in captioner.caption(requests, sampling) for caption in result.captions]
    owners = [request for request in requests for _ in range(3)]
    checked = [which for which in zip(owners, all_at_once, captions, strict=True) if not which[2].truncated]
    assert len(checked) > 8
    for request, tokens, caption in checked:
        assert caption.logprob == pytest.approx(logprob_alone(captioner, request.instruction, tokens), abs=1e-3)


def test_another_column_and_a_later_index_are_other_draws(captioner_of):
    captioner = captioner_of("llama")
    sampling = SamplingConfig(num_captions=2, max_length=12, min_length=8)
    first = tokens_of(captioner, REQUESTS[:1], sampling, column="syn_text_a")
    assert tokens_of(captioner, REQUESTS[:1], sampling, column="syn_text_b") != first
    later = tokens_of(captioner, REQUESTS[:1], sampling, column="syn_text_a", first_index=1)
    assert later[0] == first[1] and later[1] != first[0]


def test_what_prompts_begin_with_is_computed_once(captioner_of, monkeypatch):
    """If many prompts begin alike, the model reads their common beginning once, and then the rest of each."""
    captioner, fed = captioner_of("llama"), []
    forward = captioner.model.model.forward
    monkeypatch.setattr(
        captioner.model.model,
        "forward",
        lambda *args, **options: fed.append(tuple(options["input_ids"].shape)) or forward(*args, **options),
    )
    long = "a red circle left of a blue square, " * 4
    requests = [Request(str(i), None, long + ending) for i, ending in enumerate(("one", "two dogs", "three cats"))]
    list(captioner.caption(requests, GREEDY.model_copy(update={"max_length": 3})))
    (first_count, head_length), (count, remainder_length), *steps = fed
    assert (first_count, count) == (1, 3) and remainder_length < 12 < 40 < head_length
    assert set(steps) == {(3, 1)}


def test_beams_are_those_of_generate(captioner_of):
    captioner = captioner_of("qwen2")
    sampling = SamplingConfig(strategy="beam", num_beams=3, num_captions=3, max_length=10, min_length=0)
    captioner_ends, captioner.end_ids = captioner.end_ids, captioner.end_ids[:1]
    ends, captioner.model.generation_config.eos_token_id = (
        captioner.model.generation_config.eos_token_id,
        captioner.end_id,
    )
    banned = sorted(
        {*captioner.special_ids, *range(len(captioner.tokenizer), captioner.vocabulary)} - {captioner.end_id}
    )
    try:
        ours = tokens_of(captioner, REQUESTS[:3], sampling)
        for i, request in enumerate(REQUESTS[:3]):
            ids = torch.tensor([captioner.prompt_ids(request.instruction)])
            output = captioner.model.generate(
                ids,
                num_beams=3,
                num_return_sequences=3,
                do_sample=False,
                max_new_tokens=8,
                bad_words_ids=[[id] for id in banned],
            )[:, ids.shape[1] :]
            theirs = [[token for token in row if token not in (captioner.end_id, 0)] for row in output.tolist()]
            assert [
                [token for token in row[1:] if token != captioner.end_id] for row in ours[3 * i : 3 * i + 3]
            ] == theirs
    finally:
        captioner.end_ids, captioner.model.generation_config.eos_token_id = captioner_ends, ends
