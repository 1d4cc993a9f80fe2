"""CoCa captioners from names: an open_clip architecture, a folder or a file, a hub repository, or one that is shipped."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from open_clip.coca_model import CoCa
from open_clip.model import resize_pos_embed
from torch import Tensor

from captioners.coca.blocks import Tower
from captioners.coca.captioner import CoCaCaptioner
from captioners.coca.context import POSITIONS, extend_context
from captioners.coca.forward import initialise_decoder
from captioners.resolve import Source, resolve
from captioners.safe_reading import attempt, check_numbers
from captioners.weights import DTYPES, differences, fit_shapes, read_weights, state_sha256

PLACES = "visual.positional_embedding"  # of a picture's patches, after the CLS token's


def load_coca(
    name: str,
    pretrained: str | None = None,
    *,
    from_scratch: bool = False,
    context: int | None = None,
    image_size: int | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
) -> CoCaCaptioner:
    """Loads a CoCa by name; the arguments are those of `captioners.load.load_captioner`, and so are the errors."""
    source = resolve(name, pretrained)
    if from_scratch:
        source = dataclasses.replace(source, weights=None)
    elif source.weights is None:
        raise ValueError(f"{name}: it has no weights, and random ones would give the same caption for every picture")
    state = {} if source.weights is None else read_weights(source.weights)
    if context is not None:
        model_cfg, state = extend_context(source.model_cfg, state, context)
        source = dataclasses.replace(
            source, model_cfg=model_cfg, config_from=f"{source.config_from} with context {context}"
        )
    if image_size is not None:
        source = _with_image_size(source, image_size)
    if source.weights is not None:
        with torch.device("meta"):  # which takes no memory, whatever a config asks for
            state = _fitting(state, build_model(source), source.weights, interpolated=image_size is not None)
    model = build_model(source)
    if source.weights is not None:
        model.load_state_dict(state)
    sha256 = state_sha256(model.state_dict())
    model = model.to(device=device, dtype=DTYPES[dtype]).eval()
    return CoCaCaptioner(model, source, weights_sha256=sha256)


def build_model(source: Source) -> CoCa:
    """open_clip's CoCa from a config, with random weights, the decoder's included."""
    model_cfg = {key: value for key, value in source.model_cfg.items() if key != "custom_text"}
    check_numbers(model_cfg, source.config_from)
    model = attempt(f"{source.config_from}: open_clip cannot build a CoCa of this config", CoCa, **model_cfg)
    initialise_decoder(model)
    return model


def _with_image_size(source: Source, size: int) -> Source:
    """The source with pictures of another size; ValueError where its patches do not fill one."""
    patch = source.model_cfg["vision_cfg"].get("patch_size", 16)
    if size < patch or size % patch:
        raise ValueError(
            f"image size {size}: is no multiple of {patch} pixels, the side of a patch of {source.config_from}"
        )
    model_cfg = {**source.model_cfg, "vision_cfg": {**source.model_cfg["vision_cfg"], "image_size": size}}
    return dataclasses.replace(source, model_cfg=model_cfg, config_from=f"{source.config_from} with image size {size}")


def _fitting(state: Mapping[str, Tensor], model: CoCa, path: Path, *, interpolated: bool) -> dict[str, Tensor]:
    """The tensors of a file as the model takes them, all of its own and no others; ValueError that sums up what differs."""
    expected = model.state_dict()
    state = fit_shapes(state, expected)
    if interpolated and PLACES in state:
        state[PLACES] = state[PLACES].float()
        resize_pos_embed(state, model)
    problems = differences(state, expected)
    theirs, ours = (len(tensors[POSITIONS]) if POSITIONS in tensors else 0 for tensors in (state, expected))
    if theirs and theirs != ours:
        problems.append(
            f"a context of {theirs}, not {ours} as in the config: to train them, say --context {max(theirs, ours)}"
        )
    theirs, ours = (len(tensors[PLACES]) if PLACES in tensors else 0 for tensors in (state, expected))
    if theirs and theirs != ours:
        tower: Tower = model.visual
        size = tower.image_size[0]
        problems.append(
            f"{theirs - 1} patches of a picture, not {ours - 1} as in the config: to fine-tune them, "
            f"say --image-size {size}, and their positions are interpolated"
        )
    if problems:
        raise ValueError(f"{path}: these weights are not this model's:\n  " + "\n  ".join(problems))
    return state
