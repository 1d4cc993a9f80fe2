"""A model with the shape of SmolVLM-256M-Instruct, random weights and a tokenizer of words; nothing is downloaded."""

from collections.abc import Iterable
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

SIDE, VOCABULARY = 512, 49280
UNKNOWN, START, PAD, END, IMAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<image>"
SPECIALS = (UNKNOWN, START, PAD, END, IMAGE, "<fake_token_around_image>", "<global-img>")  # in the order of their ids
PROMPT = "User : Assistant : Describe this picture in one sentence ."
CHAT = (
    START + "{% for m in messages %}{{ m.role | capitalize }} : {% for c in m.content %}{% if c.type == 'image' %}"
    "<image>{% else %}{{ c.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant :{% endif %}"
)
TEXT = {  # SmolLM2-135M
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "bos_token_id": SPECIALS.index(START),
    "eos_token_id": SPECIALS.index(END),
    "pad_token_id": SPECIALS.index(PAD),
}
VISION = {  # SigLIP-B/16 for pictures of 512 pixels
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": SIDE,
    "patch_size": 16,
}


def write_model(folder: Path, captions: Iterable[str] = ()) -> None:
    """Write a model with random weights and its processor, whose tokenizer knows the words of the captions.

    A picture is one tile of 64 tokens.
    """
    torch.manual_seed(0)
    config = hf.Idefics3Config(
        text_config=TEXT,
        vision_config=VISION,
        scale_factor=4,
        image_token_id=SPECIALS.index(IMAGE),
        pad_token_id=TEXT["pad_token_id"],
        tie_word_embeddings=False,
    )
    model = hf.Idefics3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = TEXT["eos_token_id"]
    model.save_pretrained(folder)
    pictures = hf.Idefics3ImageProcessor(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    hf.Idefics3Processor(pictures, make_tokenizer(captions), image_seq_len=64, chat_template=CHAT).save_pretrained(
        folder
    )


def make_tokenizer(captions: Iterable[str]) -> hf.PreTrainedTokenizerFast:
    """A tokenizer with a token for each word of the prompt and of the captions, and as many tokens as SmolVLM's."""
    splitter = pre_tokenizers.Whitespace()
    words = [word for text in (PROMPT, *captions) for word, _ in splitter.pre_tokenize_str(text)]
    known = list(dict.fromkeys([*SPECIALS, *words]))
    tokens = [*known, *(f"word{index}" for index in range(len(known), VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=START,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPECIALS[4:]),
    )
