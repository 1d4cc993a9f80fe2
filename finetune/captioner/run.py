"""`capsmith finetune`: from a configuration to a finished captioner."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from captioners.base import TrainableCaptioner
from captioners.coca.captioner import CoCaCaptioner
from captioners.load import load_captioner
from captioners.resolve import is_transformers
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.forward import training_forward
from finetune.captioner.held_out import HeldOut, eval_pictures, held_out_pictures
from finetune.captioner.pictures import CaptionedPictures
from finetune.captioner.recipes import read_recipe
from finetune.card import write_card
from finetune.folder import read_record, run_folder, with_current_paths, write_finished
from finetune.hub import check_hub, push
from finetune.launch import describe, run_in_ranks, say_once
from finetune.long_captions import length_warning
from finetune.not_finite import check_weights
from finetune.page import PAGE, write_training_page
from finetune.rejects import check_rejects, report_rejects
from finetune.trainer import Trainer
from imagetext.apart import check_apart
from imagetext.sample import Shard
from imagetext.shown import say
from imagetext.sources import read_samples

if TYPE_CHECKING:  # it brings transformers
    from captioners.vlm.captioner import VLMCaptioner


def run(config: FinetuneConfig) -> int:
    """Fine-tune; exit code 0, or that of the ranks it starts.

    Raises: ValueError on what is wrong with configuration, model or data; OSError where the finished captioner is not uploaded,
    which the same command tries again.
    """
    if config.push_to_hub:
        check_hub(config.push_to_hub)
    code = run_in_ranks(config, train)
    if config.push_to_hub and not code and os.environ.get("RANK", "0") == "0":
        if not (files := read_record(config).get("files")):
            raise ValueError(
                f"--push-to-hub: an earlier version finished {config.output}, and did not note which files are the "
                "captioner's; upload them by hand"
            )
        push(config.output, files, config.push_to_hub, public=config.hub_public)
        say(f"uploaded to {config.push_to_hub}")
    return code


def train(config: FinetuneConfig, state: PartialState) -> None:
    """Fine-tune in this process, of those that `state` tells of."""
    shards = input_shards(config)
    eval_shards = (
        read_samples(config.eval_input, config.images, columns=config.table, needs=("pictures", "captions"))
        if config.eval_input
        else []
    )
    check_apart(config.output, [shard.path for some in (*shards.values(), eval_shards) for shard in some])
    captioner = load(with_current_paths(config), state.device)
    check_weights(captioner.model, f"--model {config.model}")
    name = config.name or captioner.name
    say_once(state, *captioner.description.split("\n"))
    asked = eval_pictures(eval_shards, captioner, config) if eval_shards else None
    pictures = read_pictures(shards, captioner, config, quiet=not state.is_main_process)
    check_rejects(pictures.rejects, len(pictures), config)
    held_out = held_out_pictures(config, captioner, pictures, asked, tell=partial(say_once, state))
    with run_folder(config, pictures.read | (asked.read if asked else {}), state):
        if state.is_main_process:
            report_rejects(pictures.rejects, pictures.failed_before, config.output)
            warn_of_long_captions(pictures, config)
        forward = training_forward(captioner, config)
        trainer = Trainer(config, forward, pictures, HeldOut(held_out, name) if held_out else None)
        say_once(state, describe(trainer))
        scores = trainer.fit()
        if state.is_main_process:
            finish(config, trainer, name, forward.library, held_out, scores)


def load(config: FinetuneConfig, device: torch.device | None) -> "CoCaCaptioner | VLMCaptioner":
    """The captioner to start from: in the main memory, or, in 4 bits, on the device; weights under adapters keep their dtype."""
    if config.model.startswith("openai:"):
        raise ValueError(f"--model {config.model}: a server's model cannot be fine-tuned; give its folder or org/name")
    if config.from_scratch or config.pretrained or not is_transformers(config.model):
        if config.four_bit:
            raise ValueError(f"--four-bit: is for vision-language models of transformers, and {config.model} is none")
        captioner = load_captioner(
            config.model,
            config.pretrained,
            from_scratch=config.from_scratch,
            context=config.context,
            image_size=config.image_size,
            base=config.base,
        )
        if not isinstance(captioner, CoCaCaptioner):
            raise ValueError(
                f"--model {config.model}: learns nothing; a CoCa or a vision-language model can be fine-tuned"
            )
        return captioner
    if problems := [
        f"--{name} {value}: is for CoCa, and {config.model} is a vision-language model"
        for name, value in (("context", config.context), ("image-size", config.image_size))
        if value is not None
    ]:
        raise ValueError("; ".join(problems))
    from captioners.vlm.load import load_vlm  # late: it imports transformers and peft

    if config.four_bit:
        return load_vlm(config.model, base=config.base, device=str(device), dtype=config.dtype, four_bit=True)
    captioner = load_vlm(config.model, base=config.base, dtype=None)
    if config.shard or not config.lora_rank and captioner.adapter is None:
        captioner.model.float()  # weights that learn; and shards are of one dtype
    return captioner


def finish(
    config: FinetuneConfig,
    trainer: Trainer,
    name: str,
    library: str,
    held_out: CaptionedPictures | None,
    scores: Mapping[str, Any],
) -> None:
    """Writes the page, the model card and the captioner, whose config comes last."""
    if not held_out:
        write_training_page(config.output, name=name)
    recipe = read_recipe(config.recipe) if config.recipe else None
    licences = {recipe.dataset: recipe.licence} if recipe else {}
    if recipe and config.model == recipe.settings["model"]:
        licences[config.model] = recipe.weights_licence
    data = {"trained on": f"{len(trainer.pictures):,} pictures of {', '.join(config.input)}"}
    if held_out:
        data["validated on"] = f"{len(held_out):,} pictures of {', '.join(config.eval_input) or 'the same, held out'}"
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
    with trainer.trained() as written:
        write_finished(config, written, name)
    say(f"captioner {name} written to {config.output}; how it went: {config.output / PAGE}")


def input_shards(config: FinetuneConfig) -> dict[float, list[Shard]]:
    """The shards of all inputs by their weight: inputs of one weight are one set."""
    if len(config.weights) not in (0, len(config.input)):
        raise ValueError(f"--weights: {len(config.weights)} for {len(config.input)} inputs")
    weights = config.weights or [1.0] * len(config.input)
    shards = {}
    for weight in dict.fromkeys(weights):
        specs = [spec for spec, own_weight in zip(config.input, weights) if own_weight == weight]
        shards[weight] = read_samples(specs, config.images, columns=config.table, needs=("pictures", "captions"))
    return shards


def read_pictures(
    shards: Mapping[float, Sequence[Shard]], captioner: TrainableCaptioner, config: FinetuneConfig, *, quiet: bool
) -> CaptionedPictures:
    """The captioned pictures of all inputs, with their weights."""
    pictures, *more = (
        CaptionedPictures(
            of_weight,
            captioner,
            captions_per_image=config.captions_per_image,
            long_captions=config.long_captions,
            weight=weight,
            quiet=quiet,
        )
        for weight, of_weight in shards.items()
    )
    for other in more:
        pictures.mixed_with(other)
    return pictures


def warn_of_long_captions(pictures: CaptionedPictures, config: FinetuneConfig) -> None:
    """Says so where many captions are over the context."""
    if warning := length_warning(pictures.caption_lengths(), pictures.captioner.context_length):
        say(*warning.split("\n"), f"--long-captions {config.long_captions} cuts them")
