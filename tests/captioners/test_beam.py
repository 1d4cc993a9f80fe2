"""Beam search, compared with transformers' and with a plain loop over the paper's definition of diverse groups."""

import math
from collections import Counter

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from captioners.base import Request, SamplingConfig
from captioners.decoding.beam import BeamSearch
from captioners.decoding.rows import Rules

PAD, START, END = 0, 1, 2
PICTURES = [3, 4, 5]  # a picture is a token before the start token, which no caption may hold
NEVER = [PAD, START, *PICTURES]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=30,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # raises the end token's logit by 5, so that captions end at many lengths
        bias = model.transformer.ln_f.bias.normal_()
        model.lm_head.weight[END] += 5 * bias / (bias @ bias)
    return model


class Plain:
    """Rows that keep their tokens and compute everything again at each step."""

    def __init__(self, model, pictures):
        self.model, self.tokens = model, torch.stack(list(pictures))[:, None]

    def extend(self, tokens):
        self.tokens = torch.cat([self.tokens, tokens], dim=1)
        return self.model(self.tokens).logits[:, -tokens.shape[1] :]

    def keep(self, rows):
        self.tokens = self.tokens[rows]

    def join(self, other):
        self.tokens = torch.cat([self.tokens, other.tokens])


def search(model, sampling, max_length, prefix=(START,), batch_size=2):
    rules = Rules(sampling, torch.tensor(prefix), torch.tensor(NEVER), END, max_length)
    requests = [Request(str(token), torch.tensor(token)) for token in PICTURES]

    def begin(requests):
        return torch.zeros(len(requests), 1), Plain(model, [request.picture for request in requests])

    results = list(BeamSearch(begin, requests, rules, batch_size=batch_size))
    assert [picture.key for picture in results] == [request.key for request in requests]
    return [picture.captions for picture in results]


def transformers_search(model, sampling, max_length, prefix=(START,)):
    """The token lists of transformers' beam search, best first, for each picture."""
    prompts = torch.tensor([[token, *prefix] for token in PICTURES])
    results = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        num_beams=sampling.num_beams,
        num_return_sequences=sampling.num_captions,
        length_penalty=sampling.length_penalty,
        max_length=max_length + 1,
        min_length=sampling.min_length + 1,
        suppress_tokens=NEVER,
        forced_eos_token_id=END,
        repetition_penalty=sampling.repetition_penalty,
        no_repeat_ngram_size=sampling.no_repeat_ngram_size,
    )
    ends = [[*row, END].index(END) for row in results.tolist()]
    rows = [row[1:end] + [END] for row, end in zip(results.tolist(), ends, strict=True)]
    return [rows[first : first + sampling.num_captions] for first in range(0, len(rows), sampling.num_captions)]


def logprob_of(model, picture, decoded, prefix=1):
    """The log-probability of the chosen tokens under the model alone."""
    tokens = decoded.tokens[:-1] if decoded.truncated else decoded.tokens
    with torch.no_grad():
        logprobs = model(torch.tensor([[picture, *tokens]])).logits[0].log_softmax(-1)
    return sum(logprobs[i, token].item() for i, token in enumerate(tokens) if i >= prefix)


def tokens_of(pictures):
    return [[decoded.tokens for decoded in captions] for captions in pictures]


@pytest.mark.parametrize("max_length", [4, 12, 20])
@pytest.mark.parametrize(
    "values",
    [
        {"num_beams": 4, "num_captions": 4},
        {"num_beams": 5, "num_captions": 2, "length_penalty": 0.0},
        {"num_beams": 3, "num_captions": 3, "length_penalty": 2.0, "min_length": 0},
        {"num_beams": 6, "num_captions": 1, "length_penalty": -1.0},
        {"num_beams": 4, "num_captions": 4, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_it_is_transformers_beam_search(model, values, max_length):
    sampling = SamplingConfig(strategy="beam", **{"min_length": 3, **values})
    ours, theirs = search(model, sampling, max_length), transformers_search(model, sampling, max_length)
    assert tokens_of(ours) == theirs
    for picture, captions in zip(PICTURES, ours, strict=True):
        for decoded in captions:
            assert decoded.logprob == pytest.approx(logprob_of(model, picture, decoded), abs=1e-4)
            assert decoded.truncated == (len(decoded.tokens) == max_length)


def test_a_prefix_is_continued_as_transformers_does(model):
    sampling, prefix = SamplingConfig(strategy="beam", num_beams=4, num_captions=3), (START, 9, 11)
    ours = search(model, sampling, 12, prefix=prefix)
    assert tokens_of(ours) == transformers_search(model, sampling, 12, prefix=prefix)
    assert ours[0][0].logprob == pytest.approx(logprob_of(model, PICTURES[0], ours[0][0], prefix=3), abs=1e-4)


def test_captions_end_at_many_lengths(model):
    """The comparison above is meaningful only if captions have several lengths."""
    results = tokens_of(search(model, SamplingConfig(strategy="beam", num_beams=4, num_captions=4), 20))
    assert len({len(tokens) for picture in results for tokens in picture}) > 2


# Diverse groups


def slow_diverse(model, picture, sampling, max_length):
    """The token lists of the best captions, by the paper's definition, with lists and loops."""
    groups, size = sampling.num_beam_groups, sampling.num_beams // sampling.num_beam_groups
    running = [[(0.0, [START])] for _ in range(groups)]
    finished = [[] for _ in range(groups)]
    going = [True] * groups
    for length in range(1, max_length - 1):
        chosen = Counter()
        for group in range(groups):
            candidates = []
            for score, tokens in running[group]:
                with torch.no_grad():
                    logprobs = model(torch.tensor([[picture, *tokens]])).logits[0, -1].log_softmax(-1).tolist()
                for token, logprob in enumerate(logprobs):
                    if token not in NEVER and not (token == END and length < sampling.min_length):
                        candidates.append(
                            (score + logprob - sampling.diversity_penalty * chosen[token], [*tokens, token])
                        )
            candidates.sort(key=lambda candidate: -candidate[0])
            for score, tokens in candidates[:size]:
                if tokens[-1] == END and going[group]:
                    finished[group].append((score / length**sampling.length_penalty, tokens))
            finished[group] = sorted(finished[group], key=lambda caption: -caption[0])[:size]
            running[group] = [candidate for candidate in candidates[: 2 * size] if candidate[1][-1] != END][:size]
            chosen.update(tokens[-1] for _, tokens in running[group] if going[group])
            worst = finished[group][-1][0] if len(finished[group]) == size else -math.inf
            hope = candidates[0][0] if groups > 1 else running[group][0][0]
            going[group] = going[group] and hope / length**sampling.length_penalty > worst
    for group in range(groups):
        if going[group]:
            rank = (max_length - 1) ** sampling.length_penalty
            finished[group] += [(score / rank, [*tokens, END]) for score, tokens in running[group]]
        finished[group] = sorted(finished[group], key=lambda caption: -caption[0])[:size]
    best = sorted((caption for group in finished for caption in group), key=lambda caption: -caption[0])
    return [tokens for _, tokens in best[: sampling.num_captions]]


@pytest.mark.parametrize(
    "values",
    [
        {"num_beams": 6, "num_beam_groups": 3, "num_captions": 6, "diversity_penalty": 0.7},
        {"num_beams": 4, "num_beam_groups": 4, "num_captions": 4, "diversity_penalty": 5.0, "length_penalty": 0.5},
        {"num_beams": 6, "num_beam_groups": 2, "num_captions": 3, "diversity_penalty": 0.2, "min_length": 0},
        {"num_beams": 4, "num_beam_groups": 1, "num_captions": 4},
    ],
    ids=str,
)
def test_groups_are_those_of_a_plain_loop(model, values):
    sampling = SamplingConfig(strategy="beam", **values)
    for picture, captions in zip(PICTURES, search(model, sampling, 9), strict=True):
        assert [decoded.tokens for decoded in captions] == slow_diverse(model, picture, sampling, max_length=9)


def test_a_penalty_parts_the_groups_and_none_leaves_them_equal(model):
    def captions(**values):
        sampling = SamplingConfig(strategy="beam", num_beams=4, num_beam_groups=4, num_captions=4, **values)
        return [[tuple(decoded.tokens) for decoded in picture] for picture in search(model, sampling, 10)]

    assert all(len(set(picture)) == 1 for picture in captions())
    assert all(len({tokens[1] for tokens in picture}) == 4 for picture in captions(diversity_penalty=100.0))


def test_pictures_do_not_touch_each_other(model):
    sampling = SamplingConfig(strategy="beam", num_beams=4, num_beam_groups=2, num_captions=4, diversity_penalty=1.0)
    assert tokens_of(search(model, sampling, 12, batch_size=1)) == tokens_of(search(model, sampling, 12, batch_size=3))
