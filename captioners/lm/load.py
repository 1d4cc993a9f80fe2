"""Load causal language models from folders and hub repositories. Code that comes with a model is never run."""

import inspect
import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from captioners.decoding.cache import CACHE
from captioners.lm.captioner import LMCaptioner
from captioners.lm.decode import begin_rows, read_head
from captioners.names import column_name
from captioners.pretrained import base_model_name, folder_of, load_model, move, read_if_there
from captioners.resolve import SMALL_FILES
from captioners.safe_reading import attempt
from captioners.vlm.families import FAMILIES
from captioners.weights import DTYPES, check_finite, state_sha256

# Logits that are computed in another order must differ by less than this share of their spread, in float32 and in half
# precision.
CLOSE, CLOSE_IN_HALF = 1e-3, 0.2


def is_language_model(name: str | os.PathLike) -> bool:
    """Whether a folder or hub repository holds a causal language model of transformers.

    False for adapters, and for models that take pictures.
    """
    folder = folder_of(base_model_name(name), *SMALL_FILES)
    kind = (read_if_there(folder / "config.json") or {}).get("model_type")
    adapters = (folder / "adapter_config.json").is_file()
    return not adapters and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in FAMILIES


def load_lm(name: str | os.PathLike, *, device: str = "cpu", dtype: str = "fp32") -> LMCaptioner:
    """Load a captioner from a folder or hub repository with a causal language model of transformers.

    dtype: fp32, bf16 or fp16, for the whole model.
    Raises ValueError if files are missing, broken, or do not fit, or our decoding does not support the model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    name = base_model_name(name)
    folder_of(name, *SMALL_FILES, "*.jinja")

    def check(config: PreTrainedConfig) -> None:
        if config.is_encoder_decoder:
            raise ValueError(
                f"{name}: model_type {config.model_type!r} has an encoder, so it is not a causal language model"
            )

    model = load_model(name, AutoModelForCausalLM, check).eval()
    tokenizer = attempt(
        f"{name}: cannot load its tokenizer", AutoTokenizer.from_pretrained, name, trust_remote_code=False
    )
    sha256 = state_sha256(model.state_dict())
    move(model, device, DTYPES[dtype])
    check_finite(model, name)
    captioner = LMCaptioner(model, tokenizer, name=column_name(Path(name).name), weights_sha256=sha256, source=name)
    attempt(f"{name}: its captions cannot be decoded side by side in a batch", check_rows, model)
    return captioner


@torch.no_grad()
def check_rows(model: PreTrainedModel) -> None:
    """Raise ValueError if the logits after prompts of unequal length in a batch differ from those of single prompts.

    They do for models that store more than keys and values, or that determine the positions of tokens themselves.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ValueError("it accepts no positions of tokens (position_ids)")
    vocabulary = model.config.get_text_config().vocab_size
    long = [number * 7919 % vocabulary for number in range(1, 14)]
    short = long[:5]
    continuation = [number * 104729 % vocabulary for number in range(1, 4)]
    cache = DynamicCache()
    model(input_ids=torch.tensor([short], device=model.device), use_cache=True, **{CACHE: cache})
    if not all(type(layer) is DynamicLayer and layer.keys is not None for layer in cache.layers):
        raise ValueError("its layers store something else than keys and values")
    rows = begin_rows(model, [long, short], read_head(model, short), limit=len(continuation), ends=[0], greedy=True)
    batched = []
    for token in (0, *continuation):
        logits = rows.extend(torch.tensor([[token], [token]], device=model.device))
        batched.append(logits.clone())  # the next call may overwrite them
    for prompt, logits in zip((long, short), torch.cat(batched, dim=1), strict=True):
        ids = torch.tensor([[*prompt, *continuation]], device=model.device)
        alone = model(input_ids=ids, use_cache=False).logits[0]
        alone = alone[-len(logits) :].float()
        close = CLOSE if model.dtype == torch.float32 else CLOSE_IN_HALF
        if not (logits - alone).norm() < close * (alone - alone.mean(-1, keepdim=True)).norm():
            raise ValueError("the logits after a prompt change if a prompt of another length is in its batch")
