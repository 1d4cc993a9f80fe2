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
    options = {
        "pretrained": pretrained,
        "from_scratch": from_scratch or None,
        "context": context,
        "image_size": image_size,
        "base": base,
    }
    used_options = ", ".join(option for option, value in options.items() if value is not None)
    if name == NEGATIVES:
        if used_options:
            raise ValueError(f"{name}: {used_options}: cannot be set, because rules have no weights")
        return NegativeRules()
    if name.startswith("openai:"):
        from captioners.server.captioner import load_server  # late: it imports aiohttp

        if used_options:
            raise ValueError(f"{name}: {used_options}: cannot be set for a server's model")
        return load_server(name, server, pictures=pictures)
    if device.startswith("cuda") and (lacks := triton_lacks()):
        logger.warning("%s: captions are drawn without Triton's kernels, which takes several times as long", lacks)
    if pretrained is None and not from_scratch and is_transformers(name):
        from captioners.lm.load import is_language_model, load_lm  # late: they import transformers and peft
        from captioners.vlm.load import load_vlm

        if context is not None or image_size is not None:
            raise ValueError(f"{name}: {used_options}: context and image_size can be set for a CoCa only")
        if is_language_model(name):
            if base is not None:
                raise ValueError(f"{name}: base {base} is only for adapters of vision-language models")
            return load_lm(name, device=device, dtype=dtype)
        return load_vlm(name, base=base, device=device, dtype=dtype)
    if base is not None:
        raise ValueError(f"{name}: base {base} is only for adapters of vision-language models")
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
