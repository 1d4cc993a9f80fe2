"""Tiny random vision-language models of every family, built from their configs, and pictures for them."""

import importlib.util
import json

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from captioners.base import SamplingConfig
from captioners.vlm import VLMCaptioner

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


def all_captions(captioner: VLMCaptioner) -> list[tuple[str, float]]:
    sampling = SamplingConfig(num_captions=3, max_length=20, min_length=0)
    return [(c.text, round(c.logprob, 4)) for one in captioner.caption(pictures_for(captioner), sampling) for c in one.captions]
