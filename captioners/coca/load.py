"""Load a CoCa captioner: an open_clip architecture, a folder or file, a hub repository, or a built-in captioner."""

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
from captioners.coca.products import Products, choose_products
from captioners.lean_open_clip import without_compiler
from captioners.resolve import CaptionerSource, resolve
from captioners.safe_reading import attempt, check_numbers
from captioners.weights import (
    DTYPES,
    WithoutDrawing,
    check_finite,
    differences,
    fit_shapes,
    read_weights,
    state_sha256,
)

PATCH_POSITIONS = "visual.positional_embedding"  # (1 + patches, W), the CLS token's is the first


def load_coca(
    name: str,
    pretrained: str | None = None,
    *,
    from_scratch: bool = False,
    context: int | None = None,
    image_size: int | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    products: Products | None = None,
) -> CoCaCaptioner:
    """Load a CoCa by name; arguments and errors are those of `captioners.load.load_captioner`."""
    source = resolve(name, pretrained)
    if from_scratch:
        source = dataclasses.replace(source, weights=None)
    elif source.weights is None:
        raise ValueError(
            f"{name}: it has no weights, and random ones would give the same caption for every picture; an "
            "architecture of open_clip gets its weights by --pretrained TAG_OR_FILE"
        )
    state = {} if source.weights is None else read_weights(source.weights)
    if context is not None:
        model_cfg, state = extend_context(source.model_cfg, state, context)
        source = dataclasses.replace(
            source, model_cfg=model_cfg, config_from=f"{source.config_from} with context {context}"
        )
    if image_size is not None:
        source = _with_image_size(source, image_size)
    if source.weights is None:
        model = build_model(source)
    else:
        with WithoutDrawing():
            with without_compiler(), torch.device("meta"):  # takes no memory, whatever sizes the config has
                meta_model = build_model(source)
                state = _fit_to_model(state, meta_model, source.weights, interpolate=image_size is not None)
            model = build_model(source)
        model.load_state_dict(state)
    sha256 = state_sha256(model.state_dict())
    model = model.to(device=device, dtype=DTYPES[dtype]).eval()
    check_finite(model, source.weights or name)
    if device != "cpu" or dtype != "fp32":  # there are no float32 products on a CPU
        return CoCaCaptioner(model, source, weights_sha256=sha256, products=products or "onednn")
    library, reason = (products, "") if products else choose_products(model)
    captioner = CoCaCaptioner(model, source, weights_sha256=sha256, products=library)
    words = "oneDNN" if library == "onednn" else "torch's own library"
    captioner.description += f"\nfloat32 products: by {words}{reason and f' ({reason})'}"
    return captioner


def build_model(source: CaptionerSource) -> CoCa:
    """Build open_clip's CoCa from a config, with random weights, also in the decoder."""
    model_cfg = {key: value for key, value in source.model_cfg.items() if key != "custom_text"}
    check_numbers(model_cfg, source.config_from)
    model = attempt(f"{source.config_from}: open_clip cannot build a CoCa of this config", CoCa, **model_cfg)
    initialise_decoder(model)
    return model


def _with_image_size(source: CaptionerSource, size: int) -> CaptionerSource:
    """The source with another picture size; ValueError if the size is not a multiple of the patch size."""
    patch = source.model_cfg["vision_cfg"].get("patch_size", 16)
    if size < patch or size % patch:
        raise ValueError(
            f"image size {size}: is not a multiple of {patch} pixels, the side of a patch of {source.config_from}"
        )
    model_cfg = {**source.model_cfg, "vision_cfg": {**source.model_cfg["vision_cfg"], "image_size": size}}
    return dataclasses.replace(source, model_cfg=model_cfg, config_from=f"{source.config_from} with image size {size}")


def _fit_to_model(state: Mapping[str, Tensor], model: CoCa, path: Path, *, interpolate: bool) -> dict[str, Tensor]:
    """The tensors of a file, in the shapes of the model's; ValueError that sums up all differences.

    interpolate: whether the position embeddings of patches are interpolated to the model's number of patches.
    """
    expected = model.state_dict()
    state = fit_shapes(state, expected)
    if interpolate and PATCH_POSITIONS in state:
        state[PATCH_POSITIONS] = state[PATCH_POSITIONS].float()
        resize_pos_embed(state, model)
    problems = differences(state, expected)
    in_file, in_config = (_rows_of(POSITIONS, tensors) for tensors in (state, expected))
    if in_file and in_file != in_config:
        problems.append(
            f"they have a context of {in_file}, but the config has {in_config}: to train them, use"
            f" --context {max(in_file, in_config)}"
        )
    in_file, in_config = (_rows_of(PATCH_POSITIONS, tensors) for tensors in (state, expected))
    if in_file and in_file != in_config:
        tower: Tower = model.visual
        problems.append(
            f"they have {in_file - 1} patches of a picture, but the config has {in_config - 1}: to fine-tune them, use"
            f" --image-size {tower.image_size[0]}, which interpolates their position embeddings"
        )
    if problems:
        raise ValueError(f"{path}: these weights do not fit the model:\n  " + "\n  ".join(problems))
    return state


def _rows_of(name: str, tensors: Mapping[str, Tensor]) -> int:
    """The number of rows of a tensor, 0 if there is no such tensor."""
    return len(tensors[name]) if name in tensors else 0
