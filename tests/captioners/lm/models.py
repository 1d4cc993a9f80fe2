"""Tiny random causal language models of several families, and folders of them with their tokenizers."""

import torch
import transformers as hf

from ..vlm.models import END, LLAMA, PAD, START, VOCABULARY, make_tokenizer, scramble

HEADS = LLAMA | {"max_position_embeddings": 96}
FAMILIES = {
    "llama": hf.LlamaConfig,
    "gemma3_text": hf.Gemma3TextConfig,
    "qwen2": hf.Qwen2Config,
    "qwen3": hf.Qwen3Config,
    "opt": hf.OPTConfig,
    "gpt2": hf.GPT2Config,
    "gemma2": hf.Gemma2Config,
    "falcon": hf.FalconConfig,
}  # gemma2's layers attend by themselves, as none of `sdpa` can, and falcon's do not ask how to
MORE = {
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 90, "sliding_window_pattern": 2},
    "qwen3": {"head_dim": 8},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 90},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
}
CHAT = (
    "<s>{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


def make_model(family: str, **changed) -> hf.PreTrainedModel:
    """A scrambled model whose logits have a realistic spread, and whose captions have many lengths."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {**HEADS, **MORE.get(family, {}), **changed}
        model = hf.AutoModelForCausalLM.from_config(FAMILIES[family](**options)).eval()
    scramble(model)
    model.generation_config.update(eos_token_id=[END, *range(20, 40)], pad_token_id=PAD, bos_token_id=START)
    return model


def save(folder, family: str, *, chat: str | None = None, ends: list[int] | None = None, **changed):
    model, tokenizer = make_model(family, **changed), make_tokenizer("<image>")
    assert len(tokenizer) <= VOCABULARY
    tokenizer.chat_template = chat
    model.generation_config.eos_token_id = ends or model.generation_config.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
