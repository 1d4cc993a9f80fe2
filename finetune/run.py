"""`capsmith finetune`: from a configuration to a finished captioner."""

import json
import os
import re
import shutil
import tempfile
from datetime import timedelta

import psutil
import torch
import yaml
from accelerate import PartialState

from captioners.base import Captioner
from captioners.coca import load_captioner
from captioners.resolve import is_transformers
from finetune.batching import CaptionedPictures
from finetune.card import CARD, write_card
from finetune.checkpoints import LOG, VALIDATION_LOG, Checkpoints
from finetune.config import FinetuneConfig
from finetune.held_out import BEST, HeldOut, held_out_pictures
from finetune.long_captions import length_warning
from finetune.recipes import read_recipe
from finetune.trainer import CaptionTrainer, accumulation
from finetune.training_page import PAGE, write_training_page
from imagetext.sources import read_samples

REJECTS, CONFIG = "rejects.jsonl", "finetune.json"
DONE = ("open_clip_config.json", "adapter_config.json", "config.json")  # what a finished captioner has, written last
WAIT = timedelta(days=1)  # of the other ranks for the main one, while it validates; those of one that dies are ended
# how a run is carried out, not what comes of it
CARRIED_OUT = {"output", "overwrite", "num_workers", "device", "checkpoint_every", "num_processes", "shard", "device_batch_size",
               "report_to", "grad_checkpointing", "push_to_hub"}


def run(config: FinetuneConfig) -> int:
    """Fine-tune; exit code 0, or that of the ranks it starts; ValueError on what is wrong with configuration, model or data."""
    if config.num_processes not in (None, 1) and "LOCAL_RANK" not in os.environ:
        return launch(config)
    if (asked := processes_asked_of_accelerate()) > 1 and "LOCAL_RANK" not in os.environ:
        raise ValueError(f"accelerate launch started one process, not {asked}, as it does on a CPU: "
                         f"use --num-processes {asked} or torchrun")
    state = PartialState(cpu=config.device == "cpu", timeout=WAIT)
    with state.main_process_first():
        prepare_output(config)
    if any((config.output / name).exists() for name in DONE):
        state.print(f"{config.output} holds the finished captioner of this very run")
        return 0
    torch.manual_seed(config.seed)
    captioner = load(config, state.device)
    captioner.name = config.name or captioner.name
    state.print(captioner.description)
    pictures = read_pictures(config, captioner, quiet=not state.is_main_process)
    if state.is_main_process:
        tell_of(pictures, config)
    held_out = held_out_pictures(config, captioner, pictures)
    trainer = CaptionTrainer(config, captioner, pictures)
    if held_out:
        trainer.validate = HeldOut(trainer, held_out)
    state.print(describe(trainer))
    trainer.fit()
    if state.is_main_process:
        finish(trainer, held_out)
    return 0


def load(config: FinetuneConfig, device: torch.device) -> Captioner:
    """The captioner to start from: in the main memory, or, in 4 bits, on the device."""
    if not config.four_bit:
        return load_captioner(config.model, config.pretrained, from_scratch=config.from_scratch, context=config.context)
    if not is_transformers(config.model):
        raise ValueError(f"--four-bit: is for vision-language models of transformers, and {config.model} is none")
    from captioners.vlm_load import load_vlm  # late: it imports transformers and peft
    return load_vlm(config.model, device=str(device), dtype=config.dtype, four_bit=True)


def finish(trainer: CaptionTrainer, held_out: CaptionedPictures | None) -> None:
    """Writes the page, the model card and the captioner, whose config comes last, and lets the checkpoints go."""
    config, captioner = trainer.config, trainer.captioner
    scores = trainer.validate.last if held_out else {}
    if not held_out:
        write_training_page(config.output, name=captioner.name)
    recipe = read_recipe(config.recipe) if config.recipe else None
    licences = {recipe.dataset: recipe.licence} if recipe else {}
    if recipe and config.model == recipe.settings["model"]:
        licences[config.model] = recipe.weights_licence
    data = {"trained on": f"{len(trainer.pictures):,} pictures of {', '.join(config.input)}"}
    if held_out:
        data["validated on"] = f"{len(held_out):,} pictures of {', '.join(config.eval_input) or 'the same, held out'}"
    write_card(config.output, name=captioner.name, base_model=config.model, data=data, licences=licences,
               recipe=config.model_dump(mode="json"), scores=scores, library=trainer.forward.library)
    with trainer.trained() as written:
        written.save(config.output, captioner.name)
    trainer.checkpoints.clear()
    if config.push_to_hub:
        from huggingface_hub import HfApi
        HfApi().create_repo(config.push_to_hub, exist_ok=True)
        HfApi().upload_folder(repo_id=config.push_to_hub, folder_path=config.output,
                              ignore_patterns=["image_cache/*", f"{BEST}/*", ".*"])
    print(f"captioner {captioner.name} written to {config.output}; how it went: {config.output / PAGE}")


def processes_asked_of_accelerate() -> int:
    """What `accelerate launch --num_processes N` above this process asked for; 1 where there is none."""
    parent = psutil.Process().parent()
    words = " ".join(parent.cmdline()) if parent else ""
    found = re.search(r"\blaunch\b.*--num_processes[ =](\d+)", words)
    return int(found[1]) if found else 1


def launch(config: FinetuneConfig) -> int:
    """Starts the ranks, each of them this very run; exit code 0, 2 where one of them found a mistake in the command, else 1."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    accumulation(config, config.num_processes)  # what needs no rank to be found is told once, and at once
    prepare_output(config)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // config.num_processes)))  # torchrun's own is 1
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config.model_dump(mode="json"), file)
        file.flush()
        try:
            torchrun(parse_args(["--standalone", "--nproc-per-node", str(config.num_processes), "-m", "capsmith", "finetune",
                                 "--config", file.name]))
        except ChildFailedError as error:
            return 2 if any(failure.exitcode == 2 for failure in error.failures.values()) else 1
        except SignalException:
            raise KeyboardInterrupt from None
    return 0


def read_pictures(config: FinetuneConfig, captioner: Captioner, *, quiet: bool) -> CaptionedPictures:
    """The captioned pictures of all inputs, with their weights."""
    if len(config.weights) not in (0, len(config.input)):
        raise ValueError(f"--weights: {len(config.weights)} for {len(config.input)} inputs")
    pictures = None
    weights = config.weights or [1.0] * len(config.input)
    for weight in dict.fromkeys(weights):  # inputs of one weight are one set
        specs = [spec for spec, its in zip(config.input, weights) if its == weight]
        read = CaptionedPictures(read_samples(specs, config.images), captioner, captions_per_image=config.captions_per_image,
                                 long_captions=config.long_captions, weight=weight, quiet=quiet)
        if pictures is None:
            pictures = read
        else:
            pictures.mixed_with(read)
    return pictures


def tell_of(pictures: CaptionedPictures, config: FinetuneConfig) -> None:
    """Names what was left out, and says so where many captions are over the context."""
    if pictures.rejects:
        rejects = [json.dumps({"key": key, "error": error}) + "\n" for key, error in pictures.rejects]
        (config.output / REJECTS).write_text("".join(rejects), encoding="utf-8")
        print(f"{len(pictures.rejects)} samples left out, see {config.output / REJECTS}")
    if warning := length_warning(pictures.caption_lengths(), pictures.captioner.context_length):
        print(f"{warning}\n--long-captions {config.long_captions} cuts them")


def describe(trainer: CaptionTrainer) -> str:
    """A run's first line: the batch and its parts, steps, passes over the set."""
    config, processes = trainer.config, trainer.accelerator.num_processes
    size = config.batch_size // processes // trainer.accumulation
    contrastive = f"contrastive batch {config.batch_size}; " if trainer.forward.contrasts else ""
    return (f"batch {config.batch_size} pictures = {processes} x {size} a device x {trainer.accumulation} accumulated, "
            f"captions of each: {config.captions_per_image}; {contrastive}{trainer.steps:,} steps, "
            f"{trainer.steps * config.batch_size / trainer.pictures.weights.sum():.1f} passes over "
            f"{len(trainer.pictures):,} pictures")


def prepare_output(config: FinetuneConfig) -> None:
    """Make the output folder ready: new, or holding the same run; ValueError where it is another run's or not ours."""
    record = config.output / CONFIG
    settings = config.model_dump(mode="json", exclude=CARRIED_OUT)
    if config.output.exists() and any(config.output.iterdir()) and not record.exists():
        raise ValueError(f"--output {config.output}: the folder is not empty and not a run of capsmith finetune")
    if config.overwrite:
        for name in (*DONE, LOG, VALIDATION_LOG, REJECTS, PAGE, CARD):
            (config.output / name).unlink(missing_ok=True)
        shutil.rmtree(config.output / BEST, ignore_errors=True)
        Checkpoints(config.output).clear()
    elif record.exists() and (other := _differences(json.loads(record.read_text()), settings)):
        raise ValueError(f"--output {config.output} holds a run with other settings (--overwrite starts anew): {other}")
    config.output.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _differences(old: dict, new: dict) -> str:
    return ", ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in new if old.get(key) != new.get(key))
