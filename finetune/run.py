"""`capsmith finetune`: from a configuration to a finished captioner."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState

from captioners.base import TrainableCaptioner
from captioners.coca import load_captioner
from captioners.resolve import is_transformers
from finetune.batching import CaptionedPictures
from finetune.card import write_card
from finetune.checkpoints import BEST
from finetune.config import FinetuneConfig
from finetune.forward import training_forward
from finetune.held_out import HeldOut, held_out_pictures
from finetune.launch import describe, run_in_ranks, tell_of_rejects
from finetune.long_captions import length_warning
from finetune.recipes import read_recipe
from finetune.trainer import Trainer
from finetune.training_page import PAGE, write_training_page
from imagetext.sources import read_samples


def run(config: FinetuneConfig) -> int:
    """Fine-tune; exit code 0, or that of the ranks it starts; ValueError on what is wrong with configuration, model or data."""
    return run_in_ranks(config, train)


def train(config: FinetuneConfig, state: PartialState) -> None:
    """Fine-tune in this process, of those that `state` tells of."""
    captioner = load(config, state.device)
    name = config.name or captioner.name
    state.print(captioner.description)
    pictures = read_pictures(config, captioner, quiet=not state.is_main_process)
    if state.is_main_process:
        tell_of_rejects(pictures.rejects, config.output)
        tell_of_lengths(pictures, config)
    held_out = held_out_pictures(config, captioner, pictures)
    forward = training_forward(captioner, config)
    trainer = Trainer(config, forward, pictures, HeldOut(held_out, name) if held_out else None)
    state.print(describe(trainer))
    scores = trainer.fit()
    if state.is_main_process:
        finish(trainer, name, forward.library, held_out, scores)


def load(config: FinetuneConfig, device: torch.device) -> TrainableCaptioner:
    """The captioner to start from: in the main memory, or, in 4 bits, on the device."""
    if config.model.startswith("openai:"):
        raise ValueError(f"--model {config.model}: a server's model cannot be fine-tuned; give its folder or org/name")
    if not config.four_bit:
        return load_captioner(config.model, config.pretrained, from_scratch=config.from_scratch, context=config.context)
    if not is_transformers(config.model):
        raise ValueError(f"--four-bit: is for vision-language models of transformers, and {config.model} is none")
    from captioners.vlm_load import load_vlm  # late: it imports transformers and peft
    return load_vlm(config.model, device=str(device), dtype=config.dtype, four_bit=True)


def finish(trainer: Trainer, name: str, library: str, held_out: CaptionedPictures | None, scores: Mapping[str, Any]) -> None:
    """Writes the page, the model card and the captioner, whose config comes last, and lets the checkpoints go."""
    config = trainer.config
    if not held_out:
        write_training_page(config.output, name=name)
    recipe = read_recipe(config.recipe) if config.recipe else None
    licences = {recipe.dataset: recipe.licence} if recipe else {}
    if recipe and config.model == recipe.settings["model"]:
        licences[config.model] = recipe.weights_licence
    data = {"trained on": f"{len(trainer.pictures):,} pictures of {', '.join(config.input)}"}
    if held_out:
        data["validated on"] = f"{len(held_out):,} pictures of {', '.join(config.eval_input) or 'the same, held out'}"
    write_card(config.output, name=name, base_model=config.model, data=data, licences=licences,
               recipe=config.model_dump(mode="json"), scores=scores, library=library)
    with trainer.trained() as written:
        written.save(config.output, name)
    trainer.checkpoints.clear()
    if config.push_to_hub:
        from huggingface_hub import HfApi
        HfApi().create_repo(config.push_to_hub, exist_ok=True)
        HfApi().upload_folder(repo_id=config.push_to_hub, folder_path=config.output,
                              ignore_patterns=["image_cache/*", f"{BEST}/*", ".*"])
    print(f"captioner {name} written to {config.output}; how it went: {config.output / PAGE}")


def read_pictures(config: FinetuneConfig, captioner: TrainableCaptioner, *, quiet: bool) -> CaptionedPictures:
    """The captioned pictures of all inputs, with their weights."""
    if len(config.weights) not in (0, len(config.input)):
        raise ValueError(f"--weights: {len(config.weights)} for {len(config.input)} inputs")
    pictures = None
    weights = config.weights or [1.0] * len(config.input)
    for weight in dict.fromkeys(weights):  # inputs of one weight are one set
        specs = [spec for spec, its in zip(config.input, weights) if its == weight]
        shards = read_samples(specs, config.images, columns=config.table, needs=("pictures", "captions"))
        read = CaptionedPictures(shards, captioner, captions_per_image=config.captions_per_image,
                                 long_captions=config.long_captions, weight=weight, quiet=quiet)
        if pictures is None:
            pictures = read
        else:
            pictures.mixed_with(read)
    return pictures


def tell_of_lengths(pictures: CaptionedPictures, config: FinetuneConfig) -> None:
    """Says so where many captions are over the context."""
    if warning := length_warning(pictures.caption_lengths(), pictures.captioner.context_length):
        print(f"{warning}\n--long-captions {config.long_captions} cuts them")
