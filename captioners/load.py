"""Captioners of every kind by name."""

from captioners.base import Captioner
from captioners.resolve import is_transformers
from captioners.rules.negatives import NEGATIVES, NegativeRules
from captioners.server.config import ServerConfig
from captioners.weights import DTYPES


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
    server: ServerConfig = ServerConfig(),
) -> Captioner:
    """Loads a captioner by name: coca_tiny, an open_clip architecture with `pretrained`, a folder or file, org/name.

    A folder or repository with a transformers config, or with peft's adapters for one, gives a VLMCaptioner, or an LMCaptioner
    where the config is a causal language model's, all else a CoCa,
    but for `openai:http://host:port#model`, a ServerCaptioner: a server's model, asked as `server` says; and for `rules:negatives`,
    which writes hard negatives of captions without a model.
    dtype: fp32, bf16 or fp16, of the whole model. from_scratch: random weights, drawn with torch's global seed.
    context: positions in all, the CLS token's included, if others than the config's; weights are extended to them.
    image_size: pixels of a picture's side, if others than the config's; positions of weights are interpolated as open_clip does.
    base: the model under adapters, where it is not the one that their config names.
    Raises ValueError where the name is unknown, the config no causal CoCa's, or weights are missing or do not fit.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    if from_scratch and pretrained is not None:
        raise ValueError(f"pretrained={pretrained!r} contradicts from_scratch")
    asked = {
        "pretrained": pretrained,
        "from_scratch": from_scratch or None,
        "context": context,
        "image_size": image_size,
        "base": base,
    }
    given = ", ".join(option for option, value in asked.items() if value is not None)
    if name == NEGATIVES:
        if given:
            raise ValueError(f"{name}: {given}: rules have no weights")
        return NegativeRules()
    if name.startswith("openai:"):
        from captioners.server.captioner import load_server  # late: it imports aiohttp

        if given:
            raise ValueError(f"{name}: {given}: a server's model is as it is")
        return load_server(name, server)
    if pretrained is None and not from_scratch and is_transformers(name):
        from captioners.lm.load import is_language_model, load_lm  # late: they import transformers and peft
        from captioners.vlm.load import load_vlm

        if context is not None or image_size is not None:
            raise ValueError(f"{name}: {given}: is for CoCa; models of transformers have their own")
        if is_language_model(name):
            if base is not None:
                raise ValueError(f"{name}: base {base} is for adapters of vision-language models")
            return load_lm(name, device=device, dtype=dtype)
        return load_vlm(name, base=base, device=device, dtype=dtype)
    if base is not None:
        raise ValueError(f"{name}: base {base} is for adapters of vision-language models")
    from captioners.coca.load import load_coca  # late: it imports open_clip

    return load_coca(
        name, pretrained, from_scratch=from_scratch, context=context, image_size=image_size, device=device, dtype=dtype
    )
