"""Rows on a model's cache have the logits of a pass without a cache, whatever rows are kept and joined."""

import pytest
import torch

from captioners.base import Request, SamplingConfig
from captioners.decoding.batch import Drawing
from captioners.vlm.captioner import VLMCaptioner

from ..tape import tapes  # noqa: F401
from .models import END, ENDS, FAMILIES, PAD, VOCABULARY, pictures_for


def obvious_logits(captioner: VLMCaptioner, request: Request, tokens: list[int]) -> torch.Tensor:
    """The logits (tokens, V) after each token, by one pass without a cache; one end token represents all."""
    family, picture = captioner.family, request.picture
    instruction = captioner.instruction if request.instruction is None else request.instruction
    prompt = family.fit(family.prompt(instruction), picture)
    ids = torch.tensor([[*prompt.ids, *tokens[1:]]])
    with torch.no_grad():
        inputs = family.inputs(picture[None], [prompt], ids, mask=torch.ones_like(ids))
        logits = family.forward(inputs, use_cache=False)[0, -len(tokens) :]
    others = captioner.end_ids[1:]
    logits[:, END] = logits[:, captioner.end_ids].logsumexp(-1)
    logits[:, others] = float("-inf")
    return logits


def check_all(
    captioner: VLMCaptioner, requests: list[Request], outputs: list[tuple[int, list[int], torch.Tensor]]
) -> None:
    """Compares the logits after these tokens with one pass over the longest sequence that begins with them."""
    passes: list[tuple[int, list[int], torch.Tensor]] = []
    for owner, tokens, ours in sorted(outputs, key=lambda output: -len(output[1])):
        earlier = (
            pass_logits
            for pass_owner, longer, pass_logits in passes
            if pass_owner == owner and longer[: len(tokens)] == tokens
        )
        expected = next(earlier, None)
        if expected is None:
            expected = obvious_logits(captioner, requests[owner], tokens)
            passes.append((owner, tokens, expected))
        torch.testing.assert_close(ours, expected[len(tokens) - len(ours) : len(tokens)], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["idefics3", "gemma3", "llava_onevision"])
def test_states_of_a_vision_tower_are_stored_token_by_token(family, captioner_of):
    """Otherwise each norm would copy them."""
    captioner, strides = captioner_of(family), []
    tower = captioner.model.get_submodule(captioner.family.vision)
    hooks = [
        module.register_forward_pre_hook(lambda module, args: strides.append(args[0].is_contiguous()))
        for module in tower.modules()
        if isinstance(module, torch.nn.LayerNorm)
    ]
    captioner._begin(captioner._rules(SamplingConfig()))(pictures_for(captioner, 2))
    for hook in hooks:
        hook.remove()
    assert len(strides) == len(hooks) >= 4 and all(strides)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_kept_and_joined_have_the_logits_of_a_pass_that_caches_nothing(family, captioner_of):
    """Rows of one and of several captions, after prompts of unequal length, of which the longest leave early."""
    captioner, generator = captioner_of(family), torch.Generator().manual_seed(5)
    instructions = None, "a red circle left of a", "", "blue stars"
    requests = [
        request._replace(instruction=instruction)
        for request, instruction in zip(pictures_for(captioner), instructions, strict=True)
    ]
    start, outputs = torch.tensor([[PAD]]), []

    def check(rows, owners, tokens, count: int) -> None:
        """Feeds random tokens, or the start token alone, and records the logits of all rows for the comparison."""
        fed = (
            torch.randint(100, 300, (len(owners), count), generator=generator)
            if tokens[0]
            else start.expand(len(owners), 1)
        )
        logits = rows.extend(fed)
        for owner, sequence, new_tokens_of_row, ours in zip(owners, tokens, fed.tolist(), logits, strict=True):
            sequence.extend(new_tokens_of_row)
            outputs.append((owner, list(sequence), ours.clone()))

    with torch.no_grad():
        begin = captioner._begin(captioner._rules(SamplingConfig(max_length=20)))
        features, rows = begin(requests[:2])
        owners, tokens = [0, 1], [[], []]
        check(rows, owners, tokens, count=1)
        rows.keep(torch.tensor([0, 0, 1, 1]))
        owners, tokens = [0, 0, 1, 1], [list(tokens[i]) for i in (0, 0, 1, 1)]
        check(rows, owners, tokens, count=1)
        check(rows, owners, tokens, count=2)
        _, others = begin(requests[2:])
        new_tokens = [[], []]
        check(others, [2, 3], new_tokens, count=1)
        rows.join(others)
        owners, tokens = [*owners, 2, 3], [*tokens, *new_tokens]
        check(rows, owners, tokens, count=1)
        longest = rows.longest
        rows.keep(torch.tensor([4, 5, 5]))
        owners, tokens = [2, 3, 3], [list(tokens[i]) for i in (4, 5, 5)]
        assert rows.longest == longest - 3 and len(rows.shared_cache.layers[0].keys) == 2
        check(rows, owners, tokens, count=1)
        _, others = begin(requests[:1])
        new_tokens = [[]]
        check(others, [0], new_tokens, count=1)
        check(others, [0], new_tokens, count=3)
        rows.join(others)  # the longer one joins the shorter
        check(rows, [*owners, 0], [*tokens, *new_tokens], count=1)
    check_all(captioner, requests, outputs)
    assert features.norm(dim=-1).tolist() == pytest.approx([1, 1])
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_of_several_end_tokens_one_stands_for_all(captioner_of):
    """With the sum of all probabilities for sampling, and the greatest of them for greedy search."""
    captioner = captioner_of("llava")
    requests = pictures_for(captioner)
    pictures = [request.picture for request in requests]
    ids = torch.tensor([captioner.prompt.ids] * 4)
    with torch.no_grad():
        inputs = captioner.family.inputs(pictures, [captioner.prompt] * 4, ids, mask=torch.ones_like(ids))
        logits = captioner.family.forward(inputs)[:, -1]
        for sampling in (SamplingConfig(), SamplingConfig(strategy="greedy")):
            _, rows = captioner._begin(captioner._rules(sampling))(requests)
            ours = rows.extend(torch.full((4, 1), PAD))[:, -1]
            if sampling.strategy == "greedy":
                torch.testing.assert_close(ours[:, END], logits[:, ENDS].amax(-1))
            else:
                torch.testing.assert_close(ours.softmax(-1)[:, END], logits.softmax(-1)[:, ENDS].sum(-1))
            assert (ours[:, ENDS[1:]] == float("-inf")).all()
            others = [token for token in range(VOCABULARY) if token not in ENDS]
            torch.testing.assert_close(ours[:, others], logits[:, others])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_captions_fit_the_positions_of_the_model(family, captioner_of):
    captioner = captioner_of(family)
    sampling = SamplingConfig(num_captions=2, min_length=captioner.context_length + 1)
    for result in captioner.caption(pictures_for(captioner, 2), sampling):
        assert all(caption.truncated for caption in result.captions)


@pytest.mark.parametrize("family", ["blip", "blip-2", "git"])
def test_a_caption_at_the_last_position_may_wait_for_the_others(family, captioner_of):
    """Ends are checked every eight steps, as on a GPU.

    Until then finished captions are fed further, past the last position embedding.
    """
    captioner = captioner_of(family)
    sampling = SamplingConfig(num_captions=2, min_length=captioner.context_length + 1)
    tokens = []
    for check_every in (1, 8):
        search = Drawing(
            captioner._begin(captioner._rules(sampling)),
            pictures_for(captioner, 2),
            captioner._rules(sampling),
            batch_size=2,
            check_every=check_every,
        )
        tokens.append([[caption.tokens for caption in picture.captions] for picture in search])
    assert tokens[0] == tokens[1]
    assert {len(caption) for picture in tokens[0] for caption in picture} == {captioner.context_length + 1}


def test_the_memory_of_a_picture_is_that_of_its_keys_and_values(captioner_of):
    sampling = SamplingConfig(num_captions=3, max_length=20)
    blip = 2 * 2 * 32 * 4  # bytes: two layers, keys and values, 32 numbers
    # the prompt's once; each caption's own, but for start and end; and of BLIP's 17 image tokens once for each caption
    assert captioner_of("blip").bytes_per_picture(sampling) == 2 * blip * (1 + 3 * (18 + 17)) + 8 * 4 * 3 * VOCABULARY
    llava = captioner_of("llava")
    assert llava.bytes_per_picture(sampling) == pytest.approx(
        2 * blip / 2 * (len(llava.prompt.ids) + 3 * 18) + 8 * 4 * 3 * VOCABULARY, abs=2
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_graph_steps_are_those_of_a_pass_that_caches_nothing(family, captioner_of, tapes, monkeypatch):  # noqa: F811
    """Graphs are captured without waiting, replayed, and captured again for other rows and longer captions."""
    monkeypatch.setattr("captioners.decoding.continuing.GRAPH_POSITIONS", 6)
    captioner, generator = captioner_of(family), torch.Generator().manual_seed(5)
    requests = pictures_for(captioner)
    with torch.no_grad():
        _, rows = captioner._begin(captioner._rules(SamplingConfig(max_length=20)))(requests)
        rows.extend(torch.full((4, 1), PAD))
        rows.graphs, owners = True, [0, 0, 0, 1, 2, 2, 3, 3]
        rows.keep(torch.tensor(owners))
        fed, outputs = torch.randint(100, 300, (8, 10), generator=generator), []
        for step in range(10):
            if step == 4:  # within the room of six positions
                remaining = torch.tensor([1, 2, 4, 5, 7])
                rows.keep(remaining)
                fed, owners = fed[remaining], [owners[i] for i in remaining]
            ours = rows.extend(fed[:, step : step + 1])[:, 0]
            outputs += [
                (owner, [PAD, *tokens], logits[None].clone())
                for owner, tokens, logits in zip(owners, fed[:, : step + 1].tolist(), ours, strict=True)
            ]
    check_all(captioner, requests, outputs)
    assert [tape.replays for tape, _ in tapes] == [3, 1, 3]  # a warm-up each: steps 1 to 3, 5, 7 to 9
    assert [device for _, device in tapes] == [fed.device] * 3


@pytest.mark.parametrize("rope, alike", [("default", True), ("dynamic", False)])
def test_rotary_embeddings_that_stretch_with_the_length_make_no_graphs(rope, alike, captioner_of, monkeypatch):
    family = captioner_of("llava").family
    monkeypatch.setitem(family.text_config.rope_parameters, "rope_type", rope)
    assert family.steps_are_alike() == alike


def test_keys_and_values_of_a_prompt_are_one_for_all_captions_of_its_picture(captioner_of):
    """Whatever rows are kept and joined, a model's config is not changed in the end."""
    captioner = captioner_of("llava")
    requests = pictures_for(captioner)
    before = captioner.model.config.get_text_config()._attn_implementation
    with torch.no_grad():
        begin = captioner._begin(captioner._rules(SamplingConfig(max_length=20)))
        _, rows = begin(requests[:2])
        prompts = rows.shared_cache.layers[0].keys
        rows.extend(torch.full((2, 1), PAD))
        rows.keep(torch.tensor([0] * 5 + [1] * 5))
        rows.extend(torch.full((10, 1), 100))
        assert rows.shared_cache.layers[0].keys is prompts and len(prompts) == 2
        assert rows.shared_cache.caption_layers[0].keys.shape == (10, 2, 18, 8)
    assert captioner.model.config.get_text_config()._attn_implementation == before == "sdpa"
