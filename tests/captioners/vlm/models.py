"""Tiny random vision-language models of every family, built from their configs, and pictures for them."""

import importlib.util
import json

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from captioners.base import Request, SamplingConfig
from captioners.vlm.captioner import VLMCaptioner
from captioners.vlm.families import OwnAspect

PAD, START, END, IMAGE = 0, 1, 2, 4
MARKS = [
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<|video_pad|>",
]
SPECIALS = len(MARKS) + 5
ENDS = [END, 6, *range(20, 50)]  # so many that captions end at many lengths
VOCABULARY = 344  # fourteen more than the tokenizer has
PALIGEMMAS = VOCABULARY + 1024 + 128  # whose processor adds tokens for places
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}:{% for c in m.content %}{% if c.type == 'image' %}IMAGE"
    "{% else %} {{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
SMOLVLM = pytest.param(
    "smolvlm",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("num2words") is None, reason="transformers' processor of SmolVLM needs num2words"
    ),
)
FAMILIES = (
    "blip",
    "blip-2",
    "git",
    "llava",
    "llava_next",
    "llava_onevision",
    "internvl",
    "idefics3",
    SMOLVLM,
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "gemma3",
    "paligemma",
    "florence2",
)
OWN_ASPECT = ("llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TILED = ("idefics3", "smolvlm")

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SIGLIP = VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}
IDS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
BERT = {
    **IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
LLAMA = BERT | {"num_key_value_heads": 2, "max_position_embeddings": 100}
SHAPES = ((32, 32), (24, 64), (90, 30), (50, 40), (28, 64))  # width and height
LONG = LLAMA | {"max_position_embeddings": 128}
GRIDS = [[32, 32], [32, 64], [64, 32], [32, 96]]  # height and width


def make_tokenizer(picture: str, /, **named: str) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE of 330 tokens: <pad> 0, <s> 1, </s> 2, <unk> 3, the image token 4, chat markup up to 10.

    <s> begins every text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<unk>", picture, *MARKS]
    words = [
        "a red circle left of a blue square",
        "two green stars on a dotted background",
        "Describe this picture",
    ] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=330, special_tokens=specials, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", START)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[picture, *MARKS],
        extra_special_tokens=named,
    )


def make_model_and_processor(family: str):
    named = {
        "internvl": {
            "start_image_token": MARKS[2],
            "end_image_token": MARKS[3],
            "context_image_token": "<image>",
            "video_token": MARKS[5],
        },
        "gemma3": {"boi_token": MARKS[2], "eoi_token": MARKS[3], "image_token": "<image>"},
        "paligemma": {"image_token": "<image>"},
        "florence2": {"image_token": "<image>"},
    }.get(family, {})
    tokenizer = make_tokenizer("<|image_pad|>" if "qwen" in family else "<image>", **named)
    chat = CHAT.replace("IMAGE", tokenizer.convert_ids_to_tokens(IMAGE))
    square = {"height": 32, "width": 32}
    if family == "blip":
        config = hf.BlipConfig(
            text_config=BERT | {"encoder_hidden_size": 32, "sep_token_id": END}, vision_config=VISION
        )
        return hf.BlipForConditionalGeneration(config), hf.BlipProcessor(hf.BlipImageProcessor(size=square), tokenizer)
    if family == "blip-2":
        config = hf.Blip2Config(
            vision_config=VISION,
            num_query_tokens=4,
            image_token_index=IMAGE,
            qformer_config=BERT | {"encoder_hidden_size": 32},
            text_config=BERT | {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32},
        )
        processor = hf.Blip2Processor(hf.BlipImageProcessor(size=square), tokenizer, num_query_tokens=4)
        return hf.Blip2ForConditionalGeneration(config), processor
    clip = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square)
    if family == "git":
        return hf.GitForCausalLM(hf.GitConfig(vision_config=VISION, **BERT)), hf.GitProcessor(clip, tokenizer)
    if family == "llava":
        config = hf.LlavaConfig(
            vision_config=VISION | {"model_type": "clip_vision_model"},
            image_token_id=IMAGE,
            text_config=LLAMA | {"model_type": "llama"},
        )
        processor = hf.LlavaProcessor(
            clip,
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=chat,
        )
        return hf.LlavaForConditionalGeneration(config), processor
    if family == "llava_next":
        config = hf.LlavaNextConfig(
            vision_config=VISION | {"model_type": "clip_vision_model"},
            image_token_index=IMAGE,
            text_config=LONG | {"model_type": "llama"},
            image_grid_pinpoints=GRIDS,
        )
        images = hf.LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=square, image_grid_pinpoints=GRIDS)
        processor = hf.LlavaNextProcessor(
            images,
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=chat,
        )
        return hf.LlavaNextForConditionalGeneration(config), processor
    if family == "llava_onevision":
        grids = {"image_grid_pinpoints": GRIDS}
        config = hf.LlavaOnevisionConfig(
            vision_config=SIGLIP,
            text_config=LONG | {"model_type": "qwen2"},
            image_token_index=IMAGE,
            video_token_index=10,
            vision_aspect_ratio="anyres_max_2",
            **grids,
        )
        processor = hf.LlavaOnevisionProcessor(
            hf.LlavaOnevisionImageProcessor(size=square, **grids),
            tokenizer,
            hf.LlavaOnevisionVideoProcessor(),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            chat_template=chat,
            vision_aspect_ratio="anyres_max_2",
        )
        return hf.LlavaOnevisionForConditionalGeneration(config), processor
    if family == "internvl":
        config = hf.InternVLConfig(
            vision_config=VISION, text_config=LONG | {"model_type": "qwen2"}, image_token_id=IMAGE, image_seq_length=4
        )
        images = hf.GotOcr2ImageProcessor(size=square, min_patches=1, max_patches=3)
        processor = hf.InternVLProcessor(
            images, tokenizer, hf.InternVLVideoProcessor(), image_seq_length=4, chat_template=chat
        )
        return hf.InternVLForConditionalGeneration(config), processor
    if family == "gemma3":
        text = LLAMA | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 90, "sliding_window_pattern": 2}
        config = hf.Gemma3Config(
            vision_config=SIGLIP,
            text_config=text,
            mm_tokens_per_image=4,
            image_token_id=IMAGE,
            image_token_index=IMAGE,
            boi_token_index=7,
            eoi_token_index=8,
            tie_word_embeddings=False,
        )
        processor = hf.Gemma3Processor(
            hf.Gemma3ImageProcessor(size=square),
            tokenizer,
            image_seq_length=4,
            chat_template="<s>" + CHAT.replace("IMAGE", MARKS[2]),
        )
        model = hf.Gemma3ForConditionalGeneration(config)
        torch.nn.init.normal_(
            model.model.multi_modal_projector.mm_input_projection_weight, std=5
        )  # so that pictures count
        return model, processor
    if family == "paligemma":
        text = LLAMA | {"model_type": "gemma", "head_dim": 8, "vocab_size": PALIGEMMAS, "num_key_value_heads": 1}
        config = hf.PaliGemmaConfig(
            vision_config=SIGLIP, text_config=text, image_token_index=IMAGE, projection_dim=32, hidden_size=32
        )
        processor = hf.PaliGemmaProcessor(hf.SiglipImageProcessor(size=square, image_seq_length=16), tokenizer)
        return hf.PaliGemmaForConditionalGeneration(config), processor
    if family == "florence2":
        stages = {
            "embed_dim": (16, 32),
            "num_heads": (1, 2),
            "num_groups": (1, 2),
            "depths": (1, 1),
            "patch_size": (7, 3),
            "patch_stride": (4, 2),
            "patch_padding": (3, 1),
            "patch_prenorm": (False, True),
            "window_size": 4,
            "projection_dim": 32,
        }
        text = {
            **IDS,
            "model_type": "bart",
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 60,
            "decoder_start_token_id": END,
        }
        model = hf.Florence2ForConditionalGeneration(
            hf.Florence2Config(vision_config=stages, text_config=text, image_token_id=IMAGE, tie_word_embeddings=False)
        )
        model.generation_config.update(forced_bos_token_id=START, forced_eos_token_id=None)
        clip.image_seq_length = 17
        return model, hf.Florence2Processor(clip, tokenizer)
    if family in TILED:
        parts = {"vision_config": VISION, "text_config": LLAMA | {"model_type": "llama"}, "image_token_id": IMAGE}
        sizes, template = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}, "<s>" + chat
        if family == "idefics3":
            processor = hf.Idefics3Processor(
                hf.Idefics3ImageProcessor(**sizes), tokenizer, image_seq_len=4, chat_template=template
            )
            return hf.Idefics3ForConditionalGeneration(hf.Idefics3Config(**parts)), processor
        processor = hf.SmolVLMProcessor(
            hf.SmolVLMImageProcessor(**sizes),
            tokenizer,
            hf.SmolVLMVideoProcessor(),
            image_seq_len=4,
            chat_template=template,
        )
        return hf.SmolVLMForConditionalGeneration(hf.SmolVLMConfig(**parts)), processor
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    ids = {"image_token_id": IMAGE, "video_token_id": 10}
    images = hf.Qwen2VLImageProcessor(size={"shortest_edge": 64, "longest_edge": 1024}, patch_size=4, merge_size=2)
    processor = hf.Qwen2VLProcessor(images, tokenizer, hf.Qwen2VLVideoProcessor(patch_size=4), chat_template=chat)
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "mlp_ratio": 2}
        config = hf.Qwen2VLConfig(vision_config=vision, text_config=LLAMA | {"rope_parameters": rope}, **ids)
        return hf.Qwen2VLForConditionalGeneration(config), processor
    if family == "qwen3_vl":
        vision |= {
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        }
        config = hf.Qwen3VLConfig(
            vision_config=vision, text_config=LLAMA | {"rope_parameters": rope, "head_dim": 8}, **ids
        )
        processor = hf.Qwen3VLProcessor(images, tokenizer, hf.Qwen3VLVideoProcessor(patch_size=4), chat_template=chat)
        return hf.Qwen3VLForConditionalGeneration(config), processor
    vision |= {"intermediate_size": 48, "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]}
    config = hf.Qwen2_5_VLConfig(vision_config=vision, text_config=LLAMA | {"rope_parameters": rope}, **ids)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def scramble(model: torch.nn.Module, size: float = 0.3) -> None:
    """Random values in every parameter, so that logits have a realistic spread, and a missing bias shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator) / max(1, parameter.ndim - 1)


def edit(path, change):
    """Changes a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def photos(captioner: VLMCaptioner, count: int = 4) -> list[Image.Image]:
    """Pictures of noise, of the tiny models' size, so that resizing cannot make a difference; or of many shapes."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    images = [Image.fromarray(each) for each in pixels.numpy()]
    if not isinstance(captioner.family, OwnAspect):
        return images
    return [image.resize(size) for image, size in zip(images, SHAPES * count, strict=False)]


def pictures_for(captioner: VLMCaptioner, count: int = 4) -> list[Request]:
    return [Request(f"picture/{i}", captioner.preprocess(photo)) for i, photo in enumerate(photos(captioner, count))]


def all_captions(captioner: VLMCaptioner) -> list[tuple[str, float]]:
    sampling = SamplingConfig(num_captions=2, max_length=8, min_length=0)
    return [
        (c.text, round(c.logprob, 4))
        for result in captioner.caption(pictures_for(captioner, 2), sampling)
        for c in result.captions
    ]
