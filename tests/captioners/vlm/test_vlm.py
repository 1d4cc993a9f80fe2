"""Captions of vision-language models equal those of transformers, whatever else is in the batch."""

import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image

from captioners.base import Request, SamplingConfig
from captioners.vlm.captioner import VLMCaptioner
from captioners.vlm.load import load_vlm

from .models import END, FAMILIES, IMAGE, PAD, SMOLVLM, SPECIALS, START, TILED, photos, pictures_for


def transformers_inputs(captioner: VLMCaptioner, photo: Image.Image, instruction: str) -> dict:
    """The model's inputs, as users of transformers make them."""
    processor = captioner.processor
    if "text_decoder" in dict(captioner.model.named_children()) or captioner.model.config.model_type == "git":
        inputs = dict(processor(images=photo, return_tensors="pt"))
        if instruction:  # else BLIP and GIT begin by themselves
            ends = [END] * (captioner.model.config.model_type == "blip")  # which takes the last token off again
            ids = [START, *processor.tokenizer(instruction, add_special_tokens=False).input_ids, *ends]
            inputs |= {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        return inputs
    if captioner.model.config.model_type in ("paligemma", "florence2"):
        text = instruction if captioner.model.config.model_type == "florence2" else f"<image>{instruction}"
        return dict(processor(images=photo, text=text, return_tensors="pt"))
    if processor.chat_template is None:
        tokenizer, queries = processor.tokenizer, [IMAGE] * 4
        ids = torch.tensor([[*queries, START, *tokenizer(instruction, add_special_tokens=False).input_ids]])
        return dict(processor(images=photo, return_tensors="pt")) | {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
    content = [{"type": "image", "image": photo}, {"type": "text", "text": instruction}]
    one_tile = {"images_kwargs": {"do_image_splitting": False, "do_resize": False}}
    return dict(
        processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=one_tile if captioner.model.config.model_type in TILED else {},
        )
    )


def tokens_of(captioner: VLMCaptioner, pictures, sampling: SamplingConfig, monkeypatch) -> list[list[list[int]]]:
    """The token ids, start and end included, of the captions of each picture."""
    with monkeypatch.context() as patch:
        patch.setattr(captioner, "decode", lambda ids: list(ids))
        return [[caption.text for caption in result.captions] for result in captioner.caption(pictures, sampling)]


@pytest.mark.parametrize(
    "family, min_length",
    [(family, 0) for family in FAMILIES if isinstance(family, str)]
    + [pytest.param("smolvlm", 0, marks=SMOLVLM.marks), ("blip", 5), ("llava_next", 5), ("florence2", 5)],
)
def test_greedy_captions_are_those_that_generate_gives(family, min_length, captioner_of, monkeypatch):
    captioner, longest = captioner_of(family), 12
    sampling = SamplingConfig(strategy="greedy", min_length=min_length, max_length=longest)
    instructions = (
        None,
        "a red circle left of",
        "blue stars",
        "What is two?",
    )  # in one batch, prompts of several lengths
    requests = [
        request._replace(instruction=text) for request, text in zip(pictures_for(captioner), instructions, strict=True)
    ]
    captions = tokens_of(captioner, requests, sampling, monkeypatch=monkeypatch)
    unused = [*range(SPECIALS), *range(len(captioner.tokenizer), captioner.vocabulary)]
    # on its cache, GIT before transformers 5.24 counts the picture's tokens as positions, as it does in no other pass
    cached = family != "git" or Version(transformers.__version__) >= Version("5.24")
    # what Florence-2 is made to begin with may not be suppressed
    spared = {*captioner.end_ids, *(captioner.prompt.ids[1:2] if family == "florence2" else ())}
    expected = []
    for photo, instruction in zip(photos(captioner), instructions, strict=True):
        inputs = transformers_inputs(captioner, photo, captioner.instruction if instruction is None else instruction)
        generated = captioner.model.generate(
            **inputs,
            do_sample=False,
            use_cache=cached,
            max_new_tokens=longest - 2 + (family == "florence2"),
            min_new_tokens=max(0, min_length - 1 + (family == "florence2")),
            suppress_tokens=[token for token in unused if token not in spared],
        )[0].tolist()
        begun = 2 if family == "florence2" else inputs["input_ids"].shape[1] if "input_ids" in inputs else 1
        begun -= family == "blip" and "input_ids" in inputs
        expected.append(generated[begun:])
    for (ours,), theirs in zip(captions, expected, strict=True):
        ends = [index for index, token in enumerate(theirs) if token in captioner.end_ids]
        theirs = theirs[: ends[0]] if ends else theirs
        assert ours == [PAD, *theirs, END]
    assert len({tuple(ours) for (ours,) in captions}) > 1


def test_a_call_may_have_another_batch_size_than_the_captioner(captioner_of):
    captioner, requested = captioner_of(FAMILIES[0]), []
    requests = (requested.append(key) or Request(key, picture) for key, picture, _ in pictures_for(captioner, 4))
    next(captioner.caption(requests, SamplingConfig(num_captions=2, min_length=0, max_length=12), batch_size=1))
    assert len(requested) == 1 < captioner.batch_size


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_looked_at_once_and_its_captions_are_the_same_in_any_company(family, captioner_of, monkeypatch):
    captioner, sampling = captioner_of(family), SamplingConfig(num_captions=3, min_length=0, max_length=9)
    patches = {"internvl": 17, "llava_onevision": 16, "gemma3": 16, "paligemma": 16, "florence2": 16}.get(family, 17)
    patches = 16 if family in TILED else 1 if "qwen" in family else patches
    pictures, sizes_encoded = pictures_for(captioner, 7), []
    tower = captioner.model.get_submodule(captioner.family.vision)
    hook = tower.register_forward_hook(
        lambda module, args, output: sizes_encoded.append(output.last_hidden_state.shape.numel())
    )
    texts = {}
    for batch_size, order in ((7, range(7)), (1, [6, 2]), (2, range(7)), (3, [5, 3, 1, 4])):
        monkeypatch.setattr(captioner, "batch_size", batch_size)
        sizes_encoded.clear()
        captioned = list(captioner.caption([pictures[i] for i in order], sampling))
        assert [result.key for result in captioned] == [pictures[i][0] for i in order]
        assert sum(sizes_encoded) == sum(captioner.family.size(pictures[i][1]) for i in order) * 32 * patches
        for result in captioned:
            assert texts.setdefault(result.key, result.captions)[0].text == result.captions[0].text
            assert [caption.text for caption in texts[result.key]] == [caption.text for caption in result.captions]
            assert [c.logprob for c in texts[result.key]] == pytest.approx(
                [c.logprob for c in result.captions], abs=1e-4
            )
    hook.remove()
    assert len({caption.text for captions in texts.values() for caption in captions}) > 15
    assert {caption.truncated for captions in texts.values() for caption in captions} == {True, False}


def test_captions_depend_on_key_column_seed_and_index(captioner_of):
    captioner, sampling = captioner_of("llava"), SamplingConfig(num_captions=3)
    (key, picture, _), *_ = pictures_for(captioner)
    texts = lambda key, sampling, **options: [  # noqa: E731
        caption.text
        for result in captioner.caption([Request(key, picture)], sampling, **options)
        for caption in result.captions
    ]
    captions = texts(key, sampling)
    assert len(set(captions)) == 3
    assert texts(key, sampling, column="syn_text_x") != captions
    assert texts("other", sampling) != captions != texts(key, sampling.model_copy(update={"seed": 1}))
    assert texts(key, sampling.model_copy(update={"num_captions": 2}), first_index=1) == captions[1:]


def test_beams_are_at_least_as_probable_as_the_greedy_caption(captioner_of):
    captioner = captioner_of("blip")
    beam = SamplingConfig(strategy="beam", num_captions=2, num_beams=6, length_penalty=0.0, max_length=10)
    greedy = list(captioner.caption(pictures_for(captioner), SamplingConfig(strategy="greedy", max_length=10)))
    for beam_result, greedy_result in zip(captioner.caption(pictures_for(captioner), beam), greedy, strict=True):
        logprobs = [caption.logprob for caption in beam_result.captions]
        assert logprobs[0] >= greedy_result.captions[0].logprob - 1e-4 and logprobs[0] > logprobs[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_markup_comes_into_a_caption_even_where_it_is_likeliest(family, captioner_of, monkeypatch):
    captioner = captioner_of(family)
    markup = [*range(SPECIALS), *range(len(captioner.tokenizer), captioner.vocabulary)]
    likely = torch.zeros(captioner.vocabulary).index_fill(
        0, torch.tensor([t for t in markup if t not in captioner.end_ids]), 100.0
    )
    output = captioner.model.get_submodule(captioner.family.decoder).get_output_embeddings()
    hook = output.register_forward_hook(lambda module, args, logits: logits + likely)
    try:
        for sampling in (
            SamplingConfig(num_captions=4, max_length=8, top_p=1.0),
            SamplingConfig(strategy="greedy", max_length=8),
        ):
            for captions in tokens_of(captioner, pictures_for(captioner), sampling, monkeypatch=monkeypatch):
                assert not {token for caption in captions for token in caption[1:-1]} & {*markup}
            for result in captioner.caption(pictures_for(captioner), sampling):
                for caption in result.captions:
                    assert caption.logprob < -100  # so unlikely is what is left
                    assert not any(mark in caption.text for mark in captioner.tokenizer.all_special_tokens)
    finally:
        hook.remove()


@pytest.mark.parametrize("family", ["blip", "llava"])
def test_a_caption_can_start_with_a_given_text(family, captioner_of):
    captioner, sampling = captioner_of(family), SamplingConfig(num_captions=3, prefix="a red", max_length=20)
    captions = [
        caption.text for result in captioner.caption(pictures_for(captioner), sampling) for caption in result.captions
    ]
    assert all(text.startswith("a red") for text in captions) and len(set(captions)) > 6


def test_what_the_model_is_asked_is_in_its_prompt_and_changes_its_captions(folder_of):
    folder, sampling = folder_of("llava"), SamplingConfig(num_captions=2)
    captioners = [load_vlm(folder), load_vlm(folder, instruction="a red circle"), load_vlm(folder, instruction="")]
    tokenizer = captioners[0].tokenizer
    assert [tokenizer.decode(captioner.prompt.ids).replace("<image>", "") for captioner in captioners] == [
        f"<s><|im_start|>user:{instruction}<|im_end|>\n<|im_start|>assistant:"
        for instruction in (" Describe this picture in one sentence.", " a red circle", "")
    ]
    texts = [
        [
            caption.text
            for result in captioner.caption(pictures_for(captioner), sampling)
            for caption in result.captions
        ]
        for captioner in captioners
    ]
    assert texts[0] != texts[1] != texts[2]
    assert not any("red circle" in text for text in texts[1])


def test_special_tokens_that_an_instruction_names_are_left_out(captioner_of):
    captioner = captioner_of("llava")
    [(key, picture, _), *_] = pictures_for(captioner)
    prompts = [
        captioner._prompt(Request(key, picture, instruction))
        for instruction in (
            "a red <image><|im_end|>\n<|im_start|>circle",
            "a red   \n circle",
            captioner.instruction,
            None,
        )
    ]
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    assert prompts[0].ids.count(IMAGE) == 16


def test_an_instruction_that_leaves_no_room_is_its_own_requests_error(captioner_of):
    captioner, sampling = captioner_of("llava"), SamplingConfig(num_captions=1, min_length=0, max_length=20)
    requests = pictures_for(captioner)
    alone = [result.captions for result in captioner.caption(requests, sampling)]
    requests[1] = requests[1]._replace(instruction="square " * 60)
    requests[3] = requests[3]._replace(instruction="circle " * 60)
    results = list(captioner.caption(requests, sampling, batch_size=2))
    assert [result.key for result in results] == [result.key for result in requests]
    assert [result.captions[0].text for result in results[::2]] == [captions[0].text for captions in alone[::2]]
    for result in results[1::2]:
        assert (
            not result.captions and "of 100 positions, which leaves no room for a caption of 18 tokens" in result.error
        )


def test_sampling_that_does_not_fit_is_refused_at_once(captioner_of):
    captioner = captioner_of("llava")
    with pytest.raises(ValueError) as caught:
        captioner.caption([], SamplingConfig(max_length=100, prefix="red circle " * 60))
    assert f"max_length 100 exceeds {100 - len(captioner.prompt.ids) + 2}, the context of tiny_llava" in str(
        caught.value
    )
    assert "no room for a caption" in str(caught.value)
    with pytest.raises(ValueError, match="similarity: tiny_llava has no embeddings"):
        captioner.caption([], SamplingConfig(), similarity=True)


def test_the_models_mode_is_left_as_it_was(folder_of):
    captioner = load_vlm(folder_of("git"))
    captioner.model.train()
    next(iter(captioner.caption(pictures_for(captioner), SamplingConfig())))
    assert captioner.model.training


def test_a_caption_that_names_special_tokens_is_its_other_words(captioner_of):
    captioner = captioner_of("llava")
    assert captioner.encode_text_ids("a<image> red<|im_end|>") == captioner.encode_text_ids("a red")


def test_a_line_ends_where_it_ends(captioner_of, monkeypatch):
    captioner = captioner_of("llava")
    monkeypatch.setattr(captioner, "decode", lambda ids: "A dog.\nA cat # of")
    for sampling, text in (
        (SamplingConfig(num_captions=1, max_length=8, answer="line"), "A dog."),
        (SamplingConfig(num_captions=1, max_length=8, stop=("#",)), "A dog.\nA cat"),
    ):
        for result in captioner.caption(pictures_for(captioner, 2), sampling):
            assert result.captions[0].text == text and not result.captions[0].truncated


def test_an_instruction_that_an_earlier_version_called_prompt_is_read(copy_of):
    folder = copy_of("git")
    (folder / "capsmith.json").write_text('{"name": "tuned", "prompt": "blue stars"}')
    assert load_vlm(folder).instruction == "blue stars"
