"""A LLaVA with the language model of SmolVLM-256M, random weights and a tokenizer of words; nothing is downloaded."""

from collections.abc import Iterable
from pathlib import Path

import torch
import transformers as hf

from benchmarks.smolvlm import END, SPECIALS, TEXT, make_tokenizer

SIDE = 224  # of the vision tower's pictures, which take 49 tokens
VISION = {  # CLIP ViT-B/32
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": SIDE,
    "patch_size": 32,
}
SYSTEM = (  # LLaVA 1.5 begins every chat with it
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}" + SYSTEM + " USER: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %} ASSISTANT:"
    "{% else %}{% for c in m.content %} {{ c.text }}{% endfor %}" + END + "{% endif %}{% endfor %}"
)


def write_model(folder: Path, captions: Iterable[str] = ()) -> None:
    """Write a model with random weights and its processor, whose tokenizer knows the words of the captions."""
    torch.manual_seed(0)
    config = hf.LlavaConfig(
        text_config=TEXT,
        vision_config={"model_type": "clip_vision_model", **VISION},
        image_token_index=SPECIALS.index("<image>"),
        tie_word_embeddings=False,
    )
    model = hf.LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = TEXT["eos_token_id"]
    model.save_pretrained(folder)
    hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        make_tokenizer([SYSTEM, "USER ASSISTANT", *captions]),
        patch_size=VISION["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)
