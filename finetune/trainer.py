"""Fine-tuning a captioner with CoCa's two losses, on one page.

B: pictures in a batch, L: tokens of its longest caption and one pad
"""

import json
import math
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from captioners.coca import CoCaCaptioner, load_captioner
from captioners.coca_decode import forward_trimmed
from finetune.batching import CaptionedPictures, batches
from finetune.config import FinetuneConfig
from finetune.long_captions import length_warning
from finetune.losses import caption_loss, contrastive_loss
from imagetext.sources import read_samples

CHECKPOINT, LOG, REJECTS, CONFIG = "checkpoint.pt", "train.jsonl", "rejects.jsonl", "finetune.json"
DONE = "open_clip_config.json"  # written last
MAX_LOGIT_SCALE = math.log(100)


class CaptionTrainer:
    """Trains a captioner on captioned pictures; `fit()` is the whole loop.

    Resumes from the last checkpoint in `config.output`; which picture comes when is a function of the seed alone, so a
    resumed run goes on exactly where it stopped.
    """

    def __init__(self, config: FinetuneConfig, captioner: CoCaCaptioner, pictures: CaptionedPictures):
        self.config, self.captioner, self.pictures = config, captioner, pictures
        self.accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(config.dtype, config.dtype),
                                       cpu=config.device == "cpu")
        if self.accelerator.num_processes > 1:
            raise ValueError(f"training in {self.accelerator.num_processes} processes is not supported yet: start one")
        self.steps = math.ceil(config.samples_seen / config.batch_size)
        self.model = captioner.model.to(self.accelerator.device).train()
        self.optimizer = torch.optim.AdamW(self._parameter_groups(), lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-6,
                                           fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate)
        self.optimizer, self.schedule = self.accelerator.prepare(self.optimizer, self.schedule)

    def fit(self) -> None:
        """Train to the budget, then write the captioner to `config.output`; ValueError on a loss that is not finite."""
        config, first = self.config, self._resume()
        loader = batches(self.pictures, config.batch_size, self.steps, config.seed, first, config.num_workers)
        progress = tqdm(loader, initial=first, total=self.steps, desc="fine-tuning", unit="step", mininterval=1)
        with open(config.output / LOG, "a", encoding="utf-8") as log:
            for step, (pixels, tokens, keys) in enumerate(progress, first):
                losses = self._step(pixels.to(self.accelerator.device), tokens.to(self.accelerator.device))
                if not math.isfinite(losses["loss"]):
                    raise ValueError(f"the loss is {losses['loss']} at step {step + 1}, pictures {', '.join(keys)}")
                log.write(json.dumps({"step": step + 1, "samples": (step + 1) * config.batch_size, **losses}) + "\n")
                progress.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)
                if (step + 1) % config.checkpoint_every == 0 and step + 1 < self.steps:
                    log.flush()
                    self._checkpoint(step + 1)
        self.captioner.save(config.output, self.captioner.name)
        (config.output / CHECKPOINT).unlink(missing_ok=True)

    def _step(self, pixels: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
        config = self.config
        with self.accelerator.autocast():
            output = forward_trimmed(self.model, pixels, tokens)
            caption = caption_loss(output["logits"], output["labels"], self.captioner.pad_id)
            contrastive = contrastive_loss(output["image_features"], output["text_features"], self.model.logit_scale.exp())
        loss = config.caption_weight * caption + config.contrastive_weight * contrastive
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        return {"loss": loss.item(), "caption": caption.item(), "contrastive": contrastive.item()}

    def _parameter_groups(self) -> list[dict]:
        named = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        decays = {name: weight.ndim > 1 and "embedding" not in name for name, weight in named}
        return [{"params": [weight for name, weight in named if decays[name]], "weight_decay": self.config.weight_decay},
                {"params": [weight for name, weight in named if not decays[name]], "weight_decay": 0.0}]

    def _learning_rate(self, step: int) -> float:
        """Linear warm-up, then cosine to zero, as a share of the peak."""
        warmup = max(1, round(self.config.warmup * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup))) / 2

    def _checkpoint(self, step: int) -> None:
        state = {"step": step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "schedule": self.schedule.state_dict()}
        temporary = self.config.output / (CHECKPOINT + ".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.config.output / CHECKPOINT)

    def _resume(self) -> int:
        """Load the last checkpoint, if there is one; its step, and the log cut to it."""
        path, log = self.config.output / CHECKPOINT, self.config.output / LOG
        if not path.exists():
            log.unlink(missing_ok=True)
            return 0
        state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:state["step"]]))
        return state["step"]


def run(config: FinetuneConfig) -> int:
    """`capsmith finetune`: exit code 0; ValueError on what is wrong with the configuration, the model or the data."""
    prepare_output(config)
    if (config.output / DONE).exists():
        print(f"{config.output} holds the finished captioner of this very run")
        return 0
    torch.manual_seed(config.seed)
    captioner = load_captioner(config.model, config.pretrained, from_scratch=config.from_scratch)
    captioner.name = config.name or captioner.name
    print(captioner.description)
    pictures = CaptionedPictures(read_samples(config.input, config.images), captioner, config.long_captions)
    if pictures.rejects:
        rejects = [json.dumps({"key": key, "error": error}) + "\n" for key, error in pictures.rejects]
        (config.output / REJECTS).write_text("".join(rejects), encoding="utf-8")
        print(f"{len(pictures.rejects)} samples left out, see {config.output / REJECTS}")
    if warning := length_warning(pictures.caption_lengths(), captioner.context_length):
        print(f"{warning}\n--long-captions {config.long_captions} cuts them")
    trainer = CaptionTrainer(config, captioner, pictures)
    print(f"{len(pictures)} pictures, batch {config.batch_size}, {trainer.steps} steps, "
          f"{trainer.steps * config.batch_size / len(pictures):.1f} passes over the set")
    trainer.fit()
    print(f"captioner {captioner.name} written to {config.output}")
    return 0


def prepare_output(config: FinetuneConfig) -> None:
    """Make the output folder ready: new, or holding the same run; ValueError where it is another run's or not ours."""
    record = config.output / CONFIG
    settings = config.model_dump(mode="json", exclude={"output", "overwrite", "num_workers", "device", "checkpoint_every"})
    if config.output.exists() and any(config.output.iterdir()) and not record.exists():
        raise ValueError(f"--output {config.output}: the folder is not empty and not a run of capsmith finetune")
    if config.overwrite:
        for name in (DONE, CHECKPOINT, LOG, REJECTS):
            (config.output / name).unlink(missing_ok=True)
    elif record.exists() and (other := _differences(json.loads(record.read_text()), settings)):
        raise ValueError(f"--output {config.output} holds a run with other settings (--overwrite starts anew): {other}")
    config.output.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _differences(old: dict, new: dict) -> str:
    return ", ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in new if old.get(key) != new.get(key))
