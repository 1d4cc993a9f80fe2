"""`capsmith finetune`: turns a configuration into a finished captioner."""

import itertools
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from captioners.base import TrainableCaptioner
from captioners.coca.captioner import CoCaCaptioner
from captioners.coca.products import Products
from captioners.load import load_captioner
from captioners.resolve import is_transformers
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.forward import training_forward
from finetune.captioner.held_out import HeldOut, eval_pictures, held_out_pictures
from finetune.captioner.pictures import CaptionedPictures
from finetune.captioner.recipes import read_recipe
from finetune.card import write_card
from finetune.folder import read_record, run_folder, with_current_paths, with_settled, write_finished
from finetune.hub import push
from finetune.launch import describe, run_in_ranks, say_once
from finetune.long_captions import length_warning
from finetune.page import PAGE, write_training_page
from finetune.rejects import check_rejects, report_rejects
from finetune.trainer import Trainer
from imagetext.apart import check_apart
from imagetext.sample import Shard
from imagetext.shown import say
from imagetext.sources import check_table_flags, read_samples
from imagetext.upload_access import check_hub

if TYPE_CHECKING:  # this module imports transformers
    from captioners.vlm.captioner import VLMCaptioner


def run(config: FinetuneConfig) -> int:
    """Fine-tune a captioner, and return the exit code: 0, or that of the processes that it starts.

    Raises ValueError if the configuration, the model or the data have a problem, and OSError if the upload of the
    finished captioner fails; the same command then tries the upload again.
    """
    if config.push_to_hub:
        check_hub(config.push_to_hub)
    code = run_in_ranks(config, train)
    if config.push_to_hub and not code and os.environ.get("RANK", "0") == "0":
        files = read_record(config).get("files")
        if not files:
            raise ValueError(
                f"--push-to-hub {config.push_to_hub}: an earlier version of capsmith finished {config.output} and did "
                "not record which files belong to the captioner; upload them by hand"
            )
        push(config.output, files, config.push_to_hub, public=config.hub_public)
        say(f"uploaded to {config.push_to_hub}")
    return code


def train(config: FinetuneConfig, state: PartialState) -> None:
    """Fine-tune in this process, which is one of those that `state` describes."""
    shards_by_weight = input_shards(config)
    eval_shards = (
        read_samples(config.eval_input, config.images, columns=config.table, needs=("pictures", "captions"))
        if config.eval_input
        else []
    )
    all_shards = [*itertools.chain.from_iterable(shards_by_weight.values()), *eval_shards]
    check_table_flags(all_shards, config.table)
    check_apart(config.output, [shard.path for shard in all_shards])
    captioner = load(with_current_paths(with_settled(config)), state.device)
    name = config.name or captioner.name
    say_once(state, *captioner.description.split("\n"))
    if isinstance(captioner, CoCaCaptioner):
        chosen: list[Products] = [captioner.products]
        (captioner.products,) = broadcast_object_list(chosen)  # the main process has chosen for all
        config = config.model_copy(update={"products": captioner.products})
    evaluation = eval_pictures(eval_shards, captioner, config) if eval_shards else None
    pictures = read_pictures(shards_by_weight, captioner, config, quiet=not state.is_main_process)
    check_rejects(pictures.rejects, len(pictures), config)
    held_out = held_out_pictures(config, captioner, pictures, evaluation=evaluation, tell=partial(say_once, state))
    check_drawn(pictures)
    input_hashes = pictures.input_hashes | (evaluation.input_hashes if evaluation else {})
    with run_folder(config, input_hashes, state, base_hash=base_hash(config, captioner)):
        if state.is_main_process:
            sets = [pictures, *([evaluation] if evaluation else [])]
            rejects, failed_before = (
                [entry for each in sets for entry in getattr(each, name)] for name in ("rejects", "failed_before")
            )
            report_rejects(rejects, failed_before, config.output)
            warn_of_long_captions(pictures, config)
        forward = training_forward(captioner, config)
        trainer = Trainer(config, forward, pictures, validate=HeldOut(held_out, name) if held_out else None)
        say_once(state, describe(trainer))
        scores = trainer.fit()
        if state.is_main_process:
            finish(config, trainer, name, library=forward.library, held_out=held_out, scores=scores)


def load(config: FinetuneConfig, device: torch.device | None) -> "CoCaCaptioner | VLMCaptioner":
    """Load the captioner to start from, into main memory, or, with weights in 4 bits, onto the device.

    Weights that are trained become float32. Weights under adapters keep their dtype, unless the model is sharded.
    Raises ValueError if the model cannot be loaded or fine-tuned, or does not have a setting that is given.
    """
    if config.model.startswith("openai:"):
        raise ValueError(
            f"--model {config.model}: a model on a server cannot be fine-tuned; give the model's folder or org/name"
        )
    if config.from_scratch or config.pretrained or not is_transformers(config.model):
        if config.four_bit:
            raise ValueError(
                f"--four-bit: is for vision-language models of transformers, and {config.model} is not one of them"
            )
        captioner = load_captioner(
            config.model,
            config.pretrained,
            from_scratch=config.from_scratch,
            context=config.context,
            image_size=config.image_size,
            base=config.base,
            products=config.products or (None if device is None or device.type == "cpu" else "onednn"),
        )
        if not isinstance(captioner, CoCaCaptioner):
            raise ValueError(
                f"--model {config.model}: has nothing to train; only a CoCa or a vision-language model can be "
                "fine-tuned"
            )
        return captioner
    problems = [
        f"--{name} {value}: is for CoCa, and {config.model} is a vision-language model"
        for name, value in (("context", config.context), ("image-size", config.image_size))
        if value is not None
    ]
    if problems:
        raise ValueError("; ".join(problems))
    from captioners.vlm.load import load_vlm  # here and not above, because this imports transformers and peft

    if config.four_bit:
        return load_vlm(config.model, base=config.base, device=str(device), dtype=config.dtype, four_bit=True)
    captioner = load_vlm(config.model, base=config.base, dtype=None)
    if config.shard or not config.lora_rank and captioner.adapter is None:
        captioner.model.float()  # weights that are trained need float32, and all shards need one dtype
    return captioner


def base_hash(config: FinetuneConfig, captioner: "CoCaCaptioner | VLMCaptioner") -> str:
    """Return a hash of the captioner to start from if not all of its weights will be trained, otherwise ""."""
    adapted = config.lora_rank or getattr(captioner, "adapter", None) is not None
    return captioner.weights_sha256 if adapted or config.freeze_image else ""


def finish(
    config: FinetuneConfig,
    trainer: Trainer,
    name: str,
    *,
    library: str,
    held_out: CaptionedPictures | None,
    scores: Mapping[str, Any],
) -> None:
    """Write the page, the model card and the captioner, with the captioner's config last."""
    if not held_out:
        write_training_page(config.output, name=name)
    recipe = read_recipe(config.recipe) if config.recipe else None
    licences = {recipe.dataset: recipe.licence} if recipe else {}
    if recipe and config.model == recipe.settings["model"]:
        licences[config.model] = recipe.weights_licence
    data = {"trained on": f"{len(trainer.pictures):,} pictures of {', '.join(config.input)}"}
    if held_out:
        source = ", ".join(config.eval_input) or "the same, held out"
        data["validated on"] = f"{len(held_out):,} pictures of {source}"
    write_card(
        config.output,
        name=name,
        base_model=config.model,
        data=data,
        licences=licences,
        recipe=config.model_dump(mode="json"),
        scores=scores,
        library=library,
    )
    with trainer.trained() as trained_captioner:
        write_finished(config, trained_captioner, name)
    say(f"captioner {name} written to {config.output}; losses and scores: {config.output / PAGE}")


def input_shards(config: FinetuneConfig) -> dict[float, list[Shard]]:
    """Return the shards of all inputs by their weight; inputs of the same weight are one set.

    Raises ValueError if there are weights, but not one for each input.
    """
    if len(config.weights) not in (0, len(config.input)):
        raise ValueError(f"--weights: {len(config.weights)} for {len(config.input)} inputs; give one for each input")
    weights = config.weights or [1.0] * len(config.input)
    specs_by_weight: dict[float, list[str]] = {}
    for spec, weight in zip(config.input, weights, strict=True):
        specs_by_weight.setdefault(weight, []).append(spec)
    return {
        weight: read_samples(specs, config.images, columns=config.table, needs=("pictures", "captions"))
        for weight, specs in specs_by_weight.items()
    }


def check_drawn(pictures: CaptionedPictures) -> None:
    """Raise ValueError if the weight of an input is so small that no pass has a picture of it."""
    for weight, count in zip(*np.unique(pictures.weights, return_counts=True), strict=True):
        if round(weight * count) == 0:
            raise ValueError(
                f"--weights {weight:g}: is so small that none of the {count:,} pictures of this input would be "
                f"trained on; {1 / count:.2g} would take one of them in each pass"
            )


def read_pictures(
    shards_by_weight: Mapping[float, Sequence[Shard]],
    captioner: TrainableCaptioner,
    config: FinetuneConfig,
    *,
    quiet: bool,
) -> CaptionedPictures:
    """Read the captioned pictures of all inputs, each with the weight of its input."""
    pictures, *more = (
        CaptionedPictures(
            shards,
            captioner,
            captions_per_image=config.captions_per_image,
            long_captions=config.long_captions,
            weight=weight,
            quiet=quiet,
        )
        for weight, shards in shards_by_weight.items()
    )
    for other in more:
        pictures.add(other)
    return pictures


def warn_of_long_captions(pictures: CaptionedPictures, config: FinetuneConfig) -> None:
    """Print a warning if many captions are longer than the context."""
    if warning := length_warning(pictures.caption_lengths(), pictures.captioner.context_length):
        say(*warning.split("\n"), f"--long-captions {config.long_captions} decides how they are shortened")
