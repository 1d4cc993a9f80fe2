"""Vision-language models with the shapes of published ones, random weights and small tokenizers; nothing is
downloaded.
"""

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.gpu.bench import Bench
from captioners.vlm.captioner import VLMCaptioner
from captioners.weights import DTYPES

PAD, START, END, IMAGE, VIDEO, VISION_START = range(6)
MARKS = (
    "<|vision_start|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}:{% for c in m.content %}{% if c.type == 'image' %}IMAGE"
    "{% else %} {{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
SHAPES = {  # shapes of Qwen2.5-VL-3B and SmolVLM-500M, and smaller ones for a rehearsal
    "qwen2_5_vl": {
        "text": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "sections": [16, 24, 24],
        },
        "vision": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "side": 448,
    },
    "smolvlm": {
        "text": {
            "vocab_size": 49280,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
        },
        "vision": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        "shrunk": 4,
        "side": 512,
    },
}
TINY_TEXT = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TINY = {
    "qwen2_5_vl": {
        "text": TINY_TEXT | {"sections": [1, 1, 2]},
        "side": 32,
        "vision": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    },
    "smolvlm": {
        "text": TINY_TEXT,
        "shrunk": 2,
        "side": 32,
        "vision": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
    },
}


def captioner(bench: Bench, family: str, dtype: str) -> VLMCaptioner:
    """Build a captioner with the family's shape on the device."""
    shape = (TINY if bench.rehearse else SHAPES)[family]
    torch.manual_seed(0)
    with torch.device(bench.device):
        model = MODELS[family](shape)
    for parameter in model.parameters():  # not model.to, because rotary embeddings need float32 buffers
        parameter.data = parameter.data.to(DTYPES[dtype])
    model.to(bench.device).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    return VLMCaptioner(
        model, PROCESSORS[family](shape), name=family, weights_sha256="0" * 64, source="random weights"
    )


def text_config(shape: dict) -> dict:
    ids = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END, "max_position_embeddings": 4096}
    return {name: value for name, value in shape["text"].items() if name != "sections"} | ids


def qwen(shape: dict) -> hf.PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": shape["text"]["sections"]}
    vision = {
        **shape["vision"],
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": shape["text"]["hidden_size"],
    }
    return hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(
            vision_config=vision,
            text_config={**text_config(shape), "rope_parameters": rope},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=VISION_START,  # transformers 5.17 counts pictures by it
            tie_word_embeddings=True,
        )
    )


def smolvlm(shape: dict) -> hf.PreTrainedModel:
    return hf.SmolVLMForConditionalGeneration(
        hf.SmolVLMConfig(
            vision_config=shape["vision"],
            text_config={**text_config(shape), "model_type": "llama"},
            image_token_id=IMAGE,
            scale_factor=shape["shrunk"],
        )
    )


def qwen_processor(shape: dict) -> hf.ProcessorMixin:
    patch, side = shape["vision"]["patch_size"], shape["side"]
    pictures = hf.Qwen2VLImageProcessor(
        size={"shortest_edge": (2 * patch) ** 2, "longest_edge": side**2}, patch_size=patch, merge_size=2
    )
    tokenizer = make_tokenizer("<|image_pad|>", "<|video_pad|>")
    return hf.Qwen2VLProcessor(
        pictures,
        tokenizer,
        hf.Qwen2VLVideoProcessor(patch_size=patch),
        chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|>"),
    )


def smolvlm_processor(shape: dict) -> hf.ProcessorMixin:
    side, patch = shape["side"], shape["vision"]["patch_size"]
    pictures = hf.SmolVLMImageProcessor(size={"longest_edge": 2 * side}, max_image_size={"longest_edge": side})
    return hf.SmolVLMProcessor(
        pictures,
        make_tokenizer("<image>", "<video>"),
        hf.SmolVLMVideoProcessor(),
        image_seq_len=(side // patch // shape["shrunk"]) ** 2,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )


def make_tokenizer(image: str, video: str) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with 300 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", image, video, *MARKS]
    tokenizer.train_from_iterator(
        ["a red circle left of a blue square", "Describe this picture in one sentence."] * 3,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[image, video, *MARKS],
    )


MODELS = {"qwen2_5_vl": qwen, "smolvlm": smolvlm}
PROCESSORS = {"qwen2_5_vl": qwen_processor, "smolvlm": smolvlm_processor}
