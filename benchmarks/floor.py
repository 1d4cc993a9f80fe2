"""The least time that a machine needs to decode captions, computed from arithmetic and memory."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from captioners.coca.captioner import CoCaCaptioner


def floor_seconds(captioner: CoCaCaptioner, lengths: torch.Tensor, rate: float, bytes_per_s: float) -> float:
    """The least seconds in which captions of these lengths (pictures, captions) can be decoded.

    For each step it takes the longer of two times: arithmetic at `rate` FLOP/s, or memory at `bytes_per_s`.
    """
    model, number = captioner.model, captioner.model.logit_scale
    decoder, size, count = model.text_decoder, number.element_size(), len(lengths)
    picture = torch.zeros(1, 3, *captioner.preprocess_cfg["size"], dtype=number.dtype, device=number.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tokens, width = model._encode_image(picture)[1].shape[1:]
    cross_layers, self_layers = len(decoder.cross_attn), len(decoder.resblocks) + len(model.text.transformer.resblocks)
    keys_values = 2 * tokens * width  # how many numbers a picture's keys and values have in a cross-attention layer
    seconds = count * (counter.get_total_flops() + cross_layers * 2 * width * keys_values) / rate
    blocks = nn.ModuleList([model.text.transformer, decoder.resblocks, decoder.cross_attn])
    weights = (
        sum(weight.numel() for weight in blocks.parameters())
        + decoder.text_projection.numel()
        - cross_layers * 2 * width**2
    )
    for fed in range(1, int(lengths.max()) - 1):  # tokens fed to a row after this step; the last token is never fed
        alive = lengths > fed + 1
        rows = count if fed == 1 else int(alive.sum())  # the start token needs only one row per picture
        pictures = int(alive.any(1).sum())
        attention = 4 * width * (self_layers * fed + cross_layers * tokens)
        arithmetic = rows * (2 * weights + attention) / rate
        memory = (
            size
            * (weights + pictures * cross_layers * keys_values + rows * self_layers * 2 * fed * width)
            / bytes_per_s
        )
        seconds += max(arithmetic, memory)
    return seconds
