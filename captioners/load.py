"""Load a captioner of any kind by its name."""

import logging
from typing import Literal

import torch

from captioners.base import Captioner
from captioners.machine import triton_lacks
from captioners.resolve import is_transformers
from captioners.rules.negatives import NEGATIVES, NegativeRules
from captioners.server.config import ServerConfig
from captioners.weights import DTYPES

logger = logging.getLogger(__name__)

RULES, SERVER = "rules, which have no weights", "a server's model"
LANGUAGE, VISION_LANGUAGE, COCA = "a language model", "a vision-language model", "a CoCa"
OPTIONS = {  # what can be set for each kind of captioner
    RULES: (),
    SERVER: (),
    LANGUAGE: (),
    VISION_LANGUAGE: ("base",),
    COCA: ("pretrained", "from_scratch", "context", "image_size"),
}


def load_captioner(
    name: str,
    pretrained: str | None = None,
    *,
    from_scratch: bool = False,
    context: int | None = None,
    image_size: int | None = None,
    base: str | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    products: Literal["torch", "onednn"] | None = None,
    server: ServerConfig = ServerConfig(),
    pictures: bool = True,
) -> Captioner:
    """Load the captioner that a name stands for.

    name: one of
        - `rules:negatives`: NegativeRules, which write hard negatives of captions without a model;
        - `openai:http://host:port#model`: a ServerCaptioner for a server's model, configured by `server`;
        - a folder or org/name with a transformers config, or with peft adapters for such a model: an LMCaptioner if
          the config is a causal language model's, otherwise a VLMCaptioner;
        - coca_tiny, an open_clip architecture with `pretrained`, any other folder, file or org/name: a CoCaCaptioner.
    from_scratch: use random weights, drawn with torch's global seed.
    context: number of positions, the CLS token's included, if it differs from the config's; the position embeddings
        are extended to it.
    image_size: side of a picture in pixels, if it differs from the config's; the position embeddings are interpolated
        as in open_clip.
    base: the base model of adapters, if it is not the one that their config names.
    device: where the model computes. A GPU must be the current one, on which Triton and CUDA graphs run.
    dtype: fp32, bf16 or fp16, for the whole model.
    products: the library of a CoCa's float32 products on a CPU, torch's own or oneDNN; by default the faster one, as
        measured once on this machine.
    pictures: whether a server's model will be sent pictures; otherwise none is sent to find out what it supports.
    Raises ValueError if the name is unknown, the config is not a causal CoCa's, or weights are missing or do not fit.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    if device.startswith("cuda:") and torch.device(device).index != torch.cuda.current_device():
        raise ValueError(f"device {device!r} is not the current GPU: call torch.cuda.set_device({device!r}) before")
    if from_scratch and pretrained is not None:
        raise ValueError(f"pretrained={pretrained!r} contradicts from_scratch")
    kind = _kind_of(name, is_coca=pretrained is not None or from_scratch)
    options = {
        "pretrained": pretrained,
        "from_scratch": from_scratch or None,
        "context": context,
        "image_size": image_size,
        "base": base,
    }
    if wrong := [option for option, value in options.items() if value is not None and option not in OPTIONS[kind]]:
        raise ValueError(f"{name}: {', '.join(wrong)}: cannot be set for {kind}")
    if kind == RULES:
        return NegativeRules()
    if kind == SERVER:
        from captioners.server.captioner import load_server  # late: it imports aiohttp

        return load_server(name, server, pictures=pictures)
    if device.startswith("cuda") and (lacks := triton_lacks()):
        logger.warning("%s: captions are drawn without Triton's kernels, which takes several times as long", lacks)
    if kind == LANGUAGE:
        from captioners.lm.load import load_lm  # late: it imports transformers and peft

        return load_lm(name, device=device, dtype=dtype)
    if kind == VISION_LANGUAGE:
        from captioners.vlm.load import load_vlm  # late: it imports transformers and peft

        return load_vlm(name, base=base, device=device, dtype=dtype)
    from captioners.coca.load import load_coca  # late: it imports open_clip

    return load_coca(
        name,
        pretrained,
        from_scratch=from_scratch,
        context=context,
        image_size=image_size,
        device=device,
        dtype=dtype,
        products=products,
    )


def _kind_of(name: str, *, is_coca: bool) -> str:
    """The kind of captioner that a name stands for. is_coca: it is a CoCa if it is a model's name at all."""
    if name == NEGATIVES:
        return RULES
    if name.startswith("openai:"):
        return SERVER
    if is_coca or not is_transformers(name):
        return COCA
    from captioners.lm.load import is_language_model  # late: it imports transformers and peft

    return LANGUAGE if is_language_model(name) else VISION_LANGUAGE
