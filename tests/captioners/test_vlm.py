"""Vision-language models: tiny random ones of every family, built from their configs and loaded from folders as real ones are."""

import functools
import importlib.util
import json
import pickle
import shutil

import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from captioners.base import SamplingConfig
from captioners.draw import Drawing
from captioners.vlm import VLMCaptioner
from captioners.vlm_load import load_vlm

PAD, START, END, IMAGE = 0, 1, 2, 4
MARKS = ["<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|video_pad|>"]
SPECIALS = len(MARKS) + 5
ENDS = [END, 6, *range(20, 50)]  # so many that captions end at many lengths
VOCABULARY = 344  # fourteen more than the tokenizer has
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}:{% for c in m.content %}{% if c.type == 'image' %}IMAGE"
    "{% else %} {{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
SMOLVLM = pytest.param("smolvlm", marks=pytest.mark.skipif(
    importlib.util.find_spec("num2words") is None, reason="transformers' processor of SmolVLM needs num2words"))
FAMILIES = ("blip", "blip-2", "git", "llava", "idefics3", SMOLVLM, "qwen2_vl", "qwen2_5_vl")
TILED = ("idefics3", "smolvlm")

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
          "patch_size": 8}
IDS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
BERT = {**IDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 40}
LLAMA = BERT | {"num_key_value_heads": 2, "max_position_embeddings": 100}


def make_tokenizer(image_token: str) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE of 330 tokens: <pad> 0, <s> 1, </s> 2, <unk> 3, the image token 4, chat markup to 10; <s> begins texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<unk>", image_token, *MARKS]
    words = ["a red circle left of a blue square", "two green stars on a dotted background", "Describe this picture"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=330, special_tokens=specials, initial_alphabet=alphabet))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", START)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                                      unk_token="<unk>", additional_special_tokens=[image_token, *MARKS])


def make_model_and_processor(family: str):
    tokenizer = make_tokenizer("<|image_pad|>" if "qwen" in family else "<image>")
    chat = CHAT.replace("IMAGE", tokenizer.convert_ids_to_tokens(IMAGE))
    square = {"height": 32, "width": 32}
    if family == "blip":
        config = hf.BlipConfig(text_config=BERT | {"encoder_hidden_size": 32, "sep_token_id": END}, vision_config=VISION)
        return hf.BlipForConditionalGeneration(config), hf.BlipProcessor(hf.BlipImageProcessor(size=square), tokenizer)
    if family == "blip-2":
        config = hf.Blip2Config(
            vision_config=VISION, num_query_tokens=4, image_token_index=IMAGE,
            qformer_config=BERT | {"encoder_hidden_size": 32},
            text_config=BERT | {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32})
        processor = hf.Blip2Processor(hf.BlipImageProcessor(size=square), tokenizer, num_query_tokens=4)
        return hf.Blip2ForConditionalGeneration(config), processor
    clip = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square)
    if family == "git":
        return hf.GitForCausalLM(hf.GitConfig(vision_config=VISION, **BERT)), hf.GitProcessor(clip, tokenizer)
    if family == "llava":
        config = hf.LlavaConfig(vision_config=VISION | {"model_type": "clip_vision_model"}, image_token_id=IMAGE,
                                text_config=LLAMA | {"model_type": "llama"})
        processor = hf.LlavaProcessor(clip, tokenizer, patch_size=8, vision_feature_select_strategy="default",
                                      num_additional_image_tokens=1, chat_template=chat)
        return hf.LlavaForConditionalGeneration(config), processor
    if family in TILED:
        of = {"vision_config": VISION, "text_config": LLAMA | {"model_type": "llama"}, "image_token_id": IMAGE}
        sizes, template = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}, "<s>" + chat
        if family == "idefics3":
            processor = hf.Idefics3Processor(hf.Idefics3ImageProcessor(**sizes), tokenizer, image_seq_len=4,
                                             chat_template=template)
            return hf.Idefics3ForConditionalGeneration(hf.Idefics3Config(**of)), processor
        processor = hf.SmolVLMProcessor(hf.SmolVLMImageProcessor(**sizes), tokenizer, hf.SmolVLMVideoProcessor(),
                                        image_seq_len=4, chat_template=template)
        return hf.SmolVLMForConditionalGeneration(hf.SmolVLMConfig(**of)), processor
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    ids = {"image_token_id": IMAGE, "video_token_id": 10}
    images = hf.Qwen2VLImageProcessor(size={"shortest_edge": 64, "longest_edge": 1024}, patch_size=4, merge_size=2)
    processor = hf.Qwen2VLProcessor(images, tokenizer, hf.Qwen2VLVideoProcessor(patch_size=4), chat_template=chat)
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "mlp_ratio": 2}
        config = hf.Qwen2VLConfig(vision_config=vision, text_config=LLAMA | {"rope_parameters": rope}, **ids)
        return hf.Qwen2VLForConditionalGeneration(config), processor
    vision |= {"intermediate_size": 48, "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]}
    config = hf.Qwen2_5_VLConfig(vision_config=vision, text_config=LLAMA | {"rope_parameters": rope}, **ids)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def scramble(model: torch.nn.Module, size: float = 0.3) -> None:
    """Random values in every parameter, so that logits are of real spread, and a missing bias, scale or mask shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator) / max(1, parameter.ndim - 1)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """folder_of(family): a folder with a scrambled model whose captions differ between pictures, and end at many lengths."""

    @functools.cache
    def make(family: str):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, processor = make_model_and_processor(family)
        scramble(model)
        if family == "blip":  # one token ends its captions, whatever its generation config
            with torch.no_grad():
                model.text_decoder.cls.predictions.bias[END] += 4
        else:
            (model.language_model if family == "blip-2" else model).generation_config.eos_token_id = ENDS
        folder = tmp_path_factory.mktemp("vlm") / f"Tiny {family}"
        model.save_pretrained(folder)
        if family == "blip-2":  # its language model's own, at loading, comes from here
            edit(folder / "config.json", lambda config: config["text_config"].update(eos_token_id=ENDS))
        processor.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def captioner_of(folder_of):
    """captioner_of(family): that model as it is loaded; tests leave it as it is."""
    return functools.cache(lambda family: load_vlm(folder_of(family)))


@pytest.fixture
def copy_of(folder_of, tmp_path):
    """copy_of(family): a folder of its own with that model."""
    return lambda family: shutil.copytree(folder_of(family), tmp_path / "copy")


def edit(path, change):
    """Changes a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def photos(count: int = 4) -> list[Image.Image]:
    """Pictures of noise, as large as the tiny models take them: no two ways of resizing can differ."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return [Image.fromarray(each) for each in pixels.numpy()]


def pictures_for(captioner: VLMCaptioner, count: int = 4) -> list[tuple[str, torch.Tensor]]:
    return [(f"picture/{i}", captioner.preprocess(photo)) for i, photo in enumerate(photos(count))]


def transformers_inputs(captioner: VLMCaptioner, photo: Image.Image, instruction: str) -> dict:
    """What the model takes, as transformers' users make it."""
    processor = captioner.processor
    if "text_decoder" in dict(captioner.model.named_children()) or captioner.model.config.model_type == "git":
        return dict(processor(images=photo, return_tensors="pt"))  # BLIP and GIT begin by themselves
    if processor.chat_template is None:
        tokenizer, queries = processor.tokenizer, [IMAGE] * 4
        ids = torch.tensor([[*queries, START, *tokenizer(instruction, add_special_tokens=False).input_ids]])
        return dict(processor(images=photo, return_tensors="pt")) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    content = [{"type": "image", "image": photo}, {"type": "text", "text": instruction}]
    one_tile = {"images_kwargs": {"do_image_splitting": False, "do_resize": False}}
    return dict(processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
        processor_kwargs=one_tile if captioner.model.config.model_type in TILED else {}))


def tokens_of(captioner: VLMCaptioner, pictures, sampling: SamplingConfig, monkeypatch) -> list[list[list[int]]]:
    """Token ids, start and end included, of the captions of each picture."""
    with monkeypatch.context() as patch:
        patch.setattr(captioner, "decode", lambda ids: list(ids))
        return [[caption.text for caption in one.captions] for one in captioner.caption(pictures, sampling)]


# Captioning


@pytest.mark.parametrize("min_length", [0, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_captions_are_those_that_generate_gives(family, min_length, captioner_of, monkeypatch):
    captioner, longest = captioner_of(family), 12
    sampling = SamplingConfig(strategy="greedy", min_length=min_length, max_length=longest)
    captions = tokens_of(captioner, pictures_for(captioner), sampling, monkeypatch)
    never = [*range(SPECIALS), *range(330, VOCABULARY)]
    expected = []
    for photo in photos():
        inputs = transformers_inputs(captioner, photo, captioner.prompt)
        found = captioner.model.generate(
            **inputs, do_sample=False, max_new_tokens=longest - 2, min_new_tokens=max(0, min_length - 1),
            suppress_tokens=[token for token in never if token not in captioner.end_ids])[0].tolist()
        expected.append(found[inputs["input_ids"].shape[1] if "input_ids" in inputs else 1:])
    for (ours,), theirs in zip(captions, expected, strict=True):
        ends = [at for at, token in enumerate(theirs) if token in captioner.end_ids]
        theirs = theirs[:ends[0]] if ends else theirs
        assert ours == [PAD, *theirs, END]
    assert len({tuple(ours) for ours, in captions}) > 1


def obvious_logits(captioner: VLMCaptioner, picture: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """Logits (tokens, V) of what follows each token, from one pass that caches nothing; one end token stands for all."""
    family, ids = captioner.family, torch.tensor([[*captioner.prompt_ids, *tokens[1:]]])
    with torch.no_grad():
        logits = family.forward(family.inputs(picture[None], ids, torch.ones_like(ids)), use_cache=False)[0, -len(tokens):]
    others = captioner.end_ids[1:]
    logits[:, END] = logits[:, captioner.end_ids].logsumexp(-1)
    logits[:, others] = float("-inf")
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_kept_and_joined_have_the_logits_of_a_pass_that_caches_nothing(family, captioner_of):
    """Rows of one and of several captions, of unequal length, of which the longest leave before the end."""
    captioner, generator = captioner_of(family), torch.Generator().manual_seed(5)
    pictures = [picture for _, picture in pictures_for(captioner)]
    start = torch.tensor([[PAD]])

    def check(rows, owners, tokens, new: int) -> None:
        """Feeds random tokens, or the start token with none before, and checks every row."""
        fed = torch.randint(100, 300, (len(owners), new), generator=generator) if tokens[0] else start.expand(len(owners), 1)
        logits = rows.extend(fed)
        for owner, held, more, ours in zip(owners, tokens, fed.tolist(), logits, strict=True):
            held.extend(more)
            expected = obvious_logits(captioner, pictures[owner], held)[-ours.shape[0]:]
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)

    with torch.no_grad():
        begin = captioner._begin(SamplingConfig(max_length=20))
        features, rows = begin(pictures[:2])
        owners, tokens = [0, 1], [[], []]
        check(rows, owners, tokens, 1)
        rows.keep(torch.tensor([0, 0, 1, 1]))
        owners, tokens = [0, 0, 1, 1], [list(tokens[i]) for i in (0, 0, 1, 1)]
        check(rows, owners, tokens, 1)
        check(rows, owners, tokens, 2)
        _, others = begin(pictures[2:])
        new_tokens = [[], []]
        check(others, [2, 3], new_tokens, 1)
        rows.join(others)
        owners, tokens = [*owners, 2, 3], [*tokens, *new_tokens]
        check(rows, owners, tokens, 1)
        wide = rows.hidden.shape[1]
        rows.keep(torch.tensor([4, 5, 5]))
        owners, tokens = [2, 3, 3], [list(tokens[i]) for i in (4, 5, 5)]
        assert rows.hidden.shape[1] == wide - 3 == rows.cache.get_seq_length()
        check(rows, owners, tokens, 1)
        _, others = begin(pictures[:1])
        new_tokens = [[]]
        check(others, [0], new_tokens, 1)
        check(others, [0], new_tokens, 3)
        rows.join(others)  # the longer one joins the shorter
        check(rows, [*owners, 0], [*tokens, *new_tokens], 1)
    assert features.norm(dim=-1).tolist() == pytest.approx([1, 1])
    assert (features[0] - features[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_looked_at_once_and_its_captions_are_the_same_in_any_company(family, captioner_of, monkeypatch):
    captioner, sampling = captioner_of(family), SamplingConfig(num_captions=3, min_length=0, max_length=12)
    patches = 16 if family in TILED else 64 if "qwen" in family else 17
    pictures, seen = pictures_for(captioner, 7), []
    tower = captioner.model.get_submodule(captioner.family.vision)
    hook = tower.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state.shape.numel()))
    texts = {}
    for batch_size, order in ((7, range(7)), (1, [6, 2]), (2, range(7)), (3, [5, 3, 1, 4])):
        monkeypatch.setattr(captioner, "batch_size", batch_size)
        seen.clear()
        captioned = list(captioner.caption([pictures[i] for i in order], sampling))
        assert [one.key for one in captioned] == [pictures[i][0] for i in order]
        assert sum(seen) == len(order) * 32 * patches
        for one in captioned:
            assert texts.setdefault(one.key, one.captions)[0].text == one.captions[0].text
            assert [caption.text for caption in texts[one.key]] == [caption.text for caption in one.captions]
            assert [c.logprob for c in texts[one.key]] == pytest.approx([c.logprob for c in one.captions], abs=1e-4)
    hook.remove()
    assert len({caption.text for captions in texts.values() for caption in captions}) > 15
    assert {caption.truncated for captions in texts.values() for caption in captions} == {True, False}


def test_captions_depend_on_key_seed_and_index(captioner_of):
    captioner, sampling = captioner_of("llava"), SamplingConfig(num_captions=3)
    (key, picture), *_ = pictures_for(captioner)
    texts = lambda key, sampling, **options: [  # noqa: E731
        caption.text for one in captioner.caption([(key, picture)], sampling, **options) for caption in one.captions]
    captions = texts(key, sampling)
    assert len(set(captions)) == 3
    assert texts("other", sampling) != captions != texts(key, sampling.model_copy(update={"seed": 1}))
    assert texts(key, sampling.model_copy(update={"num_captions": 2}), first_index=1) == captions[1:]


def test_of_several_end_tokens_one_stands_for_all(captioner_of):
    """With the probability of all for draws, of the likeliest for the greedy choice."""
    captioner = captioner_of("llava")
    pictures = [picture for _, picture in pictures_for(captioner)]
    ids = torch.tensor([captioner.prompt_ids] * 4)
    with torch.no_grad():
        logits = captioner.family.forward(captioner.family.inputs(torch.stack(pictures), ids, torch.ones_like(ids)))[:, -1]
        for sampling in (SamplingConfig(), SamplingConfig(strategy="greedy")):
            _, rows = captioner._begin(sampling)(pictures)
            ours = rows.extend(torch.full((4, 1), PAD))[:, -1]
            if sampling.strategy == "greedy":
                torch.testing.assert_close(ours[:, END], logits[:, ENDS].amax(-1))
            else:
                torch.testing.assert_close(ours.softmax(-1)[:, END], logits.softmax(-1)[:, ENDS].sum(-1))
            assert (ours[:, ENDS[1:]] == float("-inf")).all()
            others = [token for token in range(VOCABULARY) if token not in ENDS]
            torch.testing.assert_close(ours[:, others], logits[:, others])


def test_beams_are_at_least_as_probable_as_the_greedy_caption(captioner_of):
    captioner = captioner_of("blip")
    beam = SamplingConfig(strategy="beam", num_captions=2, num_beams=6, length_penalty=0.0, max_length=10)
    greedy = list(captioner.caption(pictures_for(captioner), SamplingConfig(strategy="greedy", max_length=10)))
    for found, one in zip(captioner.caption(pictures_for(captioner), beam), greedy, strict=True):
        logprobs = [caption.logprob for caption in found.captions]
        assert logprobs[0] >= one.captions[0].logprob - 1e-4 and logprobs[0] > logprobs[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_markup_comes_into_a_caption_even_where_it_is_likeliest(family, folder_of, monkeypatch):
    captioner = load_vlm(folder_of(family))
    markup = [*range(SPECIALS), *range(330, VOCABULARY)]
    likely = torch.zeros(VOCABULARY).index_fill(0, torch.tensor([t for t in markup if t not in captioner.end_ids]), 100.0)
    output = captioner.model.get_submodule(captioner.family.decoder).get_output_embeddings()
    output.register_forward_hook(lambda module, args, logits: logits + likely)
    for sampling in (SamplingConfig(num_captions=4, max_length=12, top_p=1.0), SamplingConfig(strategy="greedy", max_length=12)):
        for captions in tokens_of(captioner, pictures_for(captioner), sampling, monkeypatch):
            assert not {token for caption in captions for token in caption[1:-1]} & {*markup}
        for one in captioner.caption(pictures_for(captioner), sampling):
            for caption in one.captions:
                assert caption.logprob < -100  # so unlikely is what is left
                assert not any(mark in caption.text for mark in captioner.tokenizer.all_special_tokens)


@pytest.mark.parametrize("family", ["blip", "llava"])
def test_a_caption_can_start_with_a_given_text(family, captioner_of):
    captioner, sampling = captioner_of(family), SamplingConfig(num_captions=3, prompt="a red", max_length=20)
    captions = [caption.text for one in captioner.caption(pictures_for(captioner), sampling) for caption in one.captions]
    assert all(text.startswith("a red") for text in captions) and len(set(captions)) > 6


def test_what_the_model_is_asked_is_in_its_prompt_and_changes_its_captions(folder_of):
    folder, sampling = folder_of("llava"), SamplingConfig(num_captions=2)
    captioners = [load_vlm(folder), load_vlm(folder, prompt="a red circle"), load_vlm(folder, prompt="")]
    tokenizer = captioners[0].tokenizer
    assert [tokenizer.decode(captioner.prompt_ids).replace("<image>", "") for captioner in captioners] == [
        f"<s><|im_start|>user:{asked}<|im_end|>\n<|im_start|>assistant:"
        for asked in (" Describe this picture in one sentence.", " a red circle", "")]
    texts = [[caption.text for one in captioner.caption(pictures_for(captioner), sampling) for caption in one.captions]
             for captioner in captioners]
    assert texts[0] != texts[1] != texts[2]
    assert not any("red circle" in text for text in texts[1])


def test_sampling_that_does_not_fit_is_refused_at_once(captioner_of):
    captioner = captioner_of("llava")
    with pytest.raises(ValueError) as caught:
        captioner.caption([], SamplingConfig(max_length=100, prompt="red circle " * 60))
    assert f"max_length 100 exceeds {100 - len(captioner.prompt_ids) + 2}, the context of tiny_llava" in str(caught.value)
    assert "no room for a caption" in str(caught.value)
    with pytest.raises(ValueError, match="similarity: tiny_llava has no embedding"):
        captioner.caption([], SamplingConfig(), similarity=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_captions_fit_the_positions_of_the_model(family, captioner_of):
    captioner = captioner_of(family)
    sampling = SamplingConfig(num_captions=2, min_length=captioner.context_length + 1)
    for one in captioner.caption(pictures_for(captioner, 2), sampling):
        assert all(caption.truncated for caption in one.captions)


@pytest.mark.parametrize("family", ["blip", "blip-2", "git"])
def test_a_caption_at_the_last_position_may_wait_for_the_others(family, captioner_of):
    """Ends are looked for every eight steps, as on a GPU: till then finished captions are fed on, past the table of positions."""
    captioner = captioner_of(family)
    sampling = SamplingConfig(num_captions=2, min_length=captioner.context_length + 1)
    tokens = []
    for check_every in (1, 8):
        search = Drawing(captioner._begin(sampling), pictures_for(captioner, 2), captioner._rules(sampling), batch_size=2,
                         check_every=check_every)
        tokens.append([[caption.tokens for caption in picture.captions] for picture in search])
    assert tokens[0] == tokens[1]
    assert {len(caption) for picture in tokens[0] for caption in picture} == {captioner.context_length + 1}


def test_the_memory_of_a_picture_is_that_of_its_keys_and_values(captioner_of):
    sampling = SamplingConfig(num_captions=3, max_length=20)
    blip = 2 * 2 * 32 * 4  # bytes: two layers, keys and values, 32 numbers
    assert captioner_of("blip").bytes_per_picture(sampling) == 2 * 3 * blip * (1 + 20 + 17) + 8 * 4 * 3 * VOCABULARY
    llava = captioner_of("llava")
    assert llava.bytes_per_picture(sampling) == pytest.approx(
        2 * 3 * blip / 2 * (len(llava.prompt_ids) + 20) + 8 * 4 * 3 * VOCABULARY, abs=2)


def test_the_models_mode_is_left_as_it_was(folder_of):
    captioner = load_vlm(folder_of("git"))
    captioner.model.train()
    next(iter(captioner.caption(pictures_for(captioner), SamplingConfig())))
    assert captioner.model.training


# Pictures


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_any_shape_become_tensors_of_one_without_the_model(family, captioner_of):
    preprocess = captioner_of(family).preprocess
    assert len(pickle.dumps(preprocess)) < 20_000  # so that it can go to workers; the model alone is more
    same = pickle.loads(pickle.dumps(preprocess))
    for size in ((32, 32), (100, 40), (7, 90)):
        image = Image.effect_noise(size, 60).convert("RGB")
        assert preprocess(image).shape == (3, 32, 32) and preprocess(image).dtype == torch.float32
        assert torch.equal(preprocess(image), same(image))


@pytest.mark.parametrize("family", ["blip", "blip-2", "git", "llava"])
def test_pictures_are_prepared_as_transformers_prepares_them(family, captioner_of):
    captioner, image = captioner_of(family), Image.effect_noise((100, 40), 60).convert("RGB")
    expected = captioner.processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(captioner.preprocess(image), expected)


def test_qwens_square_is_what_its_processor_makes_of_a_square(captioner_of):
    captioner, (photo, *_) = captioner_of("qwen2_vl"), photos()
    ids = torch.tensor([captioner.prompt_ids])
    ours = captioner.family.inputs(captioner.preprocess(photo)[None], ids, torch.ones_like(ids))
    expected = captioner.processor.image_processor(images=photo, return_tensors="pt")
    torch.testing.assert_close(ours["pixel_values"], expected["pixel_values"])
    assert torch.equal(ours["image_grid_thw"], expected["image_grid_thw"])


# Training


CAPTIONS = ["a red circle left of a blue square", "two green stars", "a blue square", "stars on a dotted background"]


def batch_of(captioner: VLMCaptioner, captions=CAPTIONS) -> tuple[torch.Tensor, torch.Tensor]:
    pictures = torch.stack([picture for _, picture in pictures_for(captioner, len(captions))])
    ids = [captioner.encode_text_ids(caption) for caption in captions]
    tokens = torch.full((len(ids), max(map(len, ids)) + 1), captioner.pad_id)
    for row, of in zip(tokens, ids, strict=True):
        row[:len(of)] = torch.tensor(of)
    return pictures, tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_transformers_own_on_the_captions_tokens_alone(family, captioner_of):
    captioner = captioner_of(family)
    pictures, tokens = batch_of(captioner)
    with torch.no_grad():
        logits, labels = captioner.caption_logits(pictures, tokens)
        loss = captioner.caption_loss(pictures, tokens)
    ids = [captioner.encode_text_ids(caption)[1:] for caption in CAPTIONS]
    assert labels.tolist() == [token for caption in ids for token in caption] and labels.tolist().count(END) == 4
    assert logits.shape == (len(labels), VOCABULARY)
    expected = 0.0
    for picture, caption in zip(pictures, ids, strict=True):
        whole = torch.tensor([[*captioner.prompt_ids, *caption]])
        inputs = captioner.family.inputs(picture[None], whole, torch.ones_like(whole))
        marked = whole.clone()
        marked[:, :len(captioner.prompt_ids)] = -100
        with torch.no_grad():
            expected += captioner.model(**inputs, labels=marked).loss.item() * len(caption) / len(labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_captions_of_one_picture_train_together(captioner_of):
    captioner = captioner_of("llava")
    pictures, tokens = batch_of(captioner)
    with torch.no_grad():
        _, labels = captioner.caption_logits(pictures[:2], tokens.view(2, 2, -1))
        loss = captioner.caption_loss(pictures[:2], tokens.view(2, 2, -1))
        assert loss == captioner.caption_loss(pictures[[0, 0, 1, 1]], tokens) != captioner.caption_loss(pictures, tokens)
    assert len(labels) == sum(len(captioner.encode_text_ids(caption)) - 1 for caption in CAPTIONS)


def test_a_caption_that_was_cut_trains_no_end(captioner_of):
    captioner = captioner_of("llava")
    pictures, tokens = batch_of(captioner)
    tokens[tokens == END] = captioner.pad_id
    with torch.no_grad():
        _, labels = captioner.caption_logits(pictures, tokens)
    assert END not in labels.tolist() and len(labels) == sum(len(captioner.encode_text_ids(caption)) - 2 for caption in CAPTIONS)


def test_a_caption_that_names_special_tokens_is_its_other_words(captioner_of):
    captioner = captioner_of("llava")
    assert captioner.encode_text_ids("a<image> red<|im_end|>") == captioner.encode_text_ids("a red")


def test_after_the_template_a_caption_is_what_the_template_would_make_it(copy_of):
    """This template has a blank before a message's text, and none before the generation that it asks for."""
    captioner = load_vlm(copy_of("llava"))
    assert captioner.lead == " "
    ids = [*captioner.prompt_ids, *captioner.encode_text_ids("a red circle")[1:]]
    answer = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": captioner.prompt}]},
              {"role": "assistant", "content": [{"type": "text", "text": "a red circle"}]}]
    whole = captioner.tokenizer.decode(ids).replace("<image>" * 16, "<image>")
    expected = captioner.processor.apply_chat_template(answer).removesuffix("<|im_end|>\n")
    assert whole.removeprefix("<s>").removesuffix("</s>") == expected


def train(captioner: VLMCaptioner, steps: int = 20) -> tuple[float, float]:
    """The loss before and after so many steps on four captions, without dropout."""
    pictures, tokens = batch_of(captioner)
    trained = [parameter for parameter in captioner.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = captioner.caption_loss(pictures, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        return losses[0], captioner.caption_loss(pictures, tokens).item()


def all_captions(captioner: VLMCaptioner) -> list[tuple[str, float]]:
    sampling = SamplingConfig(num_captions=3, max_length=20, min_length=0)
    return [(c.text, round(c.logprob, 4)) for one in captioner.caption(pictures_for(captioner), sampling) for c in one.captions]


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_steps_with_lora_lower_the_loss_and_load_again(family, folder_of, tmp_path):
    captioner = load_vlm(folder_of(family))
    before, captions = {name: value.clone() for name, value in captioner.model.state_dict().items()}, all_captions(captioner)
    captioner.add_lora(r=4, alpha=8, dropout=0.0)
    assert all_captions(captioner) == captions  # fresh adapters change nothing
    first, last = train(captioner)
    assert last < 0.8 * first
    after = captioner.model.state_dict()
    assert all(torch.equal(after[name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
                                 if name not in after else name], value) for name, value in before.items())
    adapted = {name for name in after if "lora_A" in name}
    assert adapted and all(name.startswith(captioner.family.language) for name in adapted)
    assert not any(last in name for name in adapted for last in ("lm_head", "predictions.decoder"))
    captioner.save(tmp_path, "tuned")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "capsmith.json", "tokenizer.json"} <= names
    assert not names & {"model.safetensors", "config.json"} and not any(name.startswith(".saving") for name in names)
    loaded = load_vlm(tmp_path)
    assert loaded.name == "tuned" and "LoRA adapters" in loaded.description
    assert all_captions(loaded) == all_captions(captioner) != captions
    assert {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad} == {
        name for name, parameter in captioner.model.named_parameters() if parameter.requires_grad}
    assert loaded.weights_sha256 != captioner.weights_sha256 == load_vlm(folder_of(family)).weights_sha256


@pytest.mark.parametrize("family", ["blip", "llava"])
def test_full_training_lowers_the_loss_and_loads_again(family, folder_of, tmp_path):
    captioner = load_vlm(folder_of(family), prompt="a dotted background")
    first, last = train(captioner)
    assert last < 0.8 * first
    captioner.save(tmp_path, "tuned")
    loaded = load_vlm(tmp_path)
    assert (loaded.name, loaded.prompt) == ("tuned", "a dotted background")
    assert all_captions(loaded) == all_captions(captioner)
    assert load_vlm(tmp_path, prompt="stars").prompt == "stars"


def test_adapters_go_where_they_are_told_and_only_once(folder_of):
    captioner = load_vlm(folder_of("llava"))
    captioner.add_lora(target_modules=["q_proj"])
    names = {name for name in captioner.model.state_dict() if "lora_A" in name}
    assert names and all("q_proj" in name for name in names)
    with pytest.raises(ValueError, match="tiny_llava: has adapters already"):
        captioner.add_lora()


@pytest.mark.parametrize("name", ["Bad", "a-b", "embed", "x_captions", ""])
def test_names_that_can_name_no_column_are_refused(captioner_of, tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        captioner_of("llava").save(tmp_path / "new", name)
    assert not (tmp_path / "new").exists()


# Loading


def test_half_precision_keeps_rotary_embeddings_and_the_weights_hash(folder_of):
    half, full = load_vlm(folder_of("llava"), dtype="bf16"), load_vlm(folder_of("llava"))
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    rotary = [buffer for name, buffer in half.model.named_buffers() if "inv_freq" in name]
    assert rotary and all(buffer.dtype == torch.float32 for buffer in rotary)
    assert half.weights_sha256 == full.weights_sha256 != load_vlm(folder_of("git")).weights_sha256
    assert len(list(half.caption(pictures_for(half), SamplingConfig(num_captions=2)))) == 4


def test_the_description_says_what_was_loaded(folder_of):
    captioner = load_vlm(folder_of("llava"))
    lines = captioner.description.splitlines()
    assert [line.split(":")[0] for line in lines] == ["architecture", "context", "pictures", "weights"]
    assert "tiny_llava, LlavaForConditionalGeneration" in lines[0] and captioner.name == "tiny_llava"
    assert "'Describe this picture in one sentence.'" in lines[1] and "32 x 32 px" in lines[2]
    assert str(folder_of("llava")) in lines[3]


def test_all_problems_of_the_arguments_are_told_at_once(folder_of):
    with pytest.raises(ValueError, match="dtype 'int8' is none of fp32.*; four_bit needs bitsandbytes"):
        load_vlm(folder_of("llava"), dtype="int8", four_bit=True)


def test_a_model_of_another_family_is_refused(copy_of):
    folder = copy_of("llava")
    edit(folder / "config.json", lambda config: config.update(model_type="bert"))
    with pytest.raises(ValueError, match=f"{folder}: model_type 'bert' is none of blip, blip-2, git, llava"):
        load_vlm(folder)


def test_a_blip_2_with_an_encoder_decoder_is_refused(tmp_path):
    hf.Blip2Config(text_config={"model_type": "t5"}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: text_config.model_type 't5' is not of a decoder"):
        load_vlm(tmp_path)


def test_a_weight_that_is_missing_is_named(copy_of):
    folder = copy_of("llava")
    weights = load_file(folder / "model.safetensors")
    gone = [next(name for name in weights if part in name) for part in ("mlp.up_proj", "v_proj")]
    for name in gone:
        del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        load_vlm(folder)
    assert str(folder) in str(caught.value) and all(name.removeprefix("language_model.") in str(caught.value) for name in gone)


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


@pytest.mark.parametrize("where", ["model", "adapter_model", "fitting model"])
def test_weights_that_could_run_code_are_refused_and_run_nothing(copy_of, tmp_path, monkeypatch, where):
    """Pickles are not even opened: what fits the model is refused as what harms."""
    monkeypatch.chdir(tmp_path)
    folder = copy_of("llava")
    if "model" in where.split():
        weights = load_file(folder / "model.safetensors") if where.startswith("fitting") else Harmful()
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        base = shutil.copytree(folder, tmp_path / "base")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base)}))
        torch.save(Harmful(), folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=str(folder)):
        load_vlm(folder)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("config, problem", [
    ({"peft_type": "IA3", "base_model_name_or_path": 3}, "peft_type is 'IA3', not 'LORA'; base_model_name_or_path is 3"),
    ({"peft_type": "LORA", "base_model_name_or_path": "/nowhere/base"}, "/nowhere/base: no config that can be read"),
])  # fmt: skip
def test_an_adapters_config_that_will_not_do_is_named(tmp_path, config, problem):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=problem):
        load_vlm(tmp_path)


def test_an_adapter_that_lacks_weights_is_refused(folder_of, tmp_path):
    captioner = load_vlm(folder_of("git"))
    captioner.add_lora(r=2)
    captioner.save(tmp_path, "tuned")
    weights = load_file(tmp_path / "adapter_model.safetensors")
    weights["extra.lora_A.weight"] = weights.pop(gone := sorted(weights)[0])
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError) as caught:
        load_vlm(tmp_path)
    assert f"missing {gone}" in str(caught.value) and "unexpected extra.lora_A.weight" in str(caught.value)


@pytest.mark.parametrize("content, problem", [
    ("{", "capsmith.json: not JSON"),
    ("[]", "capsmith.json: not a JSON object"),
    ("{}", "capsmith.json: name is None, no text; prompt is None, no text"),
    ('{"name": "Bad", "prompt": ""}', "capsmith.json: name 'Bad'"),
])  # fmt: skip
def test_a_broken_file_of_ours_is_named(copy_of, content, problem):
    folder = copy_of("llava")
    (folder / "capsmith.json").write_text(content)
    with pytest.raises(ValueError, match=problem):
        load_vlm(folder)


def test_a_model_that_names_no_end_and_a_prompt_that_is_too_long_are_refused(copy_of):
    folder = copy_of("llava")
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(ValueError) as caught:
        load_vlm(folder, prompt="red circle " * 60)
    assert f"{folder}: no eos_token_id" in str(caught.value) and "max_position_embeddings" in str(caught.value)


def test_a_processor_without_a_chat_template_is_named(copy_of):
    folder = copy_of("llava")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=f"{folder}: its processor makes no prompt of 'Describe this picture"):
        load_vlm(folder)


def test_a_hub_repository_is_read_from_the_cache(copy_of, tmp_path, monkeypatch, fill_hub_cache):
    import huggingface_hub.constants
    import transformers.utils.hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.utils.hub, "_is_offline_mode", True, raising=False)
    fill_hub_cache(tmp_path / "hub", "some/Tiny-VLM", copy_of("git"))
    captioner = load_vlm("some/Tiny-VLM")
    assert captioner.name == "tiny_vlm"
    captioner.add_lora(r=2)
    captioner.save(tmp_path / "tuned", "tuned")
    assert json.loads((tmp_path / "tuned" / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/Tiny-VLM"


def test_a_processor_that_keeps_the_shapes_of_pictures_is_refused(copy_of):
    folder = copy_of("llava")
    edit(folder / "processor_config.json", lambda config: config["image_processor"].update(do_center_crop=False))
    with pytest.raises(ValueError, match=r"keeps the shapes of pictures, and makes \(32, 64\) and \(64, 32\)"):
        load_vlm(folder)
