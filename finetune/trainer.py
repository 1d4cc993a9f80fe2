"""Fine-tuning a captioner with CoCa's two losses, on one page.

B: pictures of a part of the batch on this device, K: captions of each, L: tokens of the longest caption and one pad,
E: embedding
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from captioners.coca import CoCaCaptioner
from captioners.coca_forward import forward_trimmed
from captioners.linear import fast_products
from finetune.batching import Batch, BatchOrder, CaptionedPictures, batches
from finetune.checkpoints import LOG, Checkpoints
from finetune.config import FinetuneConfig
from finetune.image_cache import cache_images
from finetune.losses import caption_loss, contrastive_loss
from finetune.optimizer import learning_rate, parameter_groups

MAX_LOGIT_SCALE = math.log(100)


class _Forward(nn.Module):
    """The training forward as a module's own, for what Accelerate wraps round it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        return forward_trimmed(self.model, images, tokens) | {"logit_scale": self.model.logit_scale.exp()}


class CaptionTrainer:
    """Trains a captioner on captioned pictures; `fit()` is the whole loop.

    Losses and gradients are those of the whole batch, however it is parted over devices and accumulation. Resumes from the last
    checkpoint in `config.output`; which picture comes when is a function of the seed alone, so a resumed run goes on exactly
    where it stopped. validate: called with the step and the captions seen, every `config.validate_every` captions.
    """

    def __init__(self, config: FinetuneConfig, captioner: CoCaCaptioner, pictures: CaptionedPictures,
                 validate: Callable[[int, int], None] | None = None):
        self.config, self.captioner, self.pictures, self.validate = config, captioner, pictures, validate
        self.accelerator = make_accelerator(config)
        self.accumulation = accumulation(config, self.accelerator.num_processes)
        self.samples_per_step = config.batch_size * config.captions_per_image
        self.steps = math.ceil(config.samples_seen / self.samples_per_step)
        model = captioner.model.to(self.accelerator.device).train()
        model.visual.requires_grad_(not config.freeze_image)
        model.set_grad_checkpointing(config.grad_checkpointing)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
        optimizer = torch.optim.AdamW(parameter_groups(model, config), betas=(0.9, 0.98), eps=1e-6, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, self.steps, config.warmup))
        self.model, self.optimizer = self.accelerator.prepare(_Forward(model), optimizer)
        self.products = fast_products if config.dtype == "fp32" and model.text_decoder.width >= 256 else contextlib.nullcontext
        self.checkpoints = Checkpoints(config.output)
        self.state = {"model": model, "optimizer": self.optimizer, "schedule": self.schedule} | (
            {"average": self.average} if self.average else {}) | ({"scaler": self.accelerator.scaler} if config.dtype == "fp16" else {})

    def fit(self) -> None:
        """Train to the budget; ValueError on a loss that is not finite."""
        config, rank, main = self.config, self.accelerator.process_index, self.accelerator.is_main_process
        first = self.checkpoints.load(self.state, self.accelerator.device)
        if main:
            self.checkpoints.cut_logs(first)
        if config.freeze_image:
            self.pictures.image = cache_images(self.pictures, config.output / "image_cache", self.accelerator,
                                               batch_size=config.device_batch_size or 16, num_workers=config.num_workers)
        order = BatchOrder(self.pictures, config.batch_size, self.steps, config.seed, first,
                           rank=rank, world=self.accelerator.num_processes)
        progress = tqdm(batches(order, config.num_workers), initial=first, total=self.steps, desc="fine-tuning", unit="step",
                        mininterval=1, disable=not main)
        with open(config.output / LOG if main else os.devnull, "a", encoding="utf-8") as log:
            for step, batch in enumerate(progress, first + 1):
                with self.products():
                    losses = self._step(batch)
                if not math.isfinite(losses["loss"]):
                    raise ValueError(f"the loss is {losses['loss']} at step {step}, pictures {', '.join(batch.keys)}")
                samples = step * self.samples_per_step
                log.write(json.dumps({"step": step, "samples": samples, **losses}) + "\n")
                self.accelerator.log(losses, step)
                progress.set_postfix({name: f"{losses[name]:.3f}" for name in ("caption", "contrastive")}, refresh=False)
                if self.validate and main and (step == self.steps or samples % config.validate_every < self.samples_per_step):
                    self.validate(step, samples)
                if main and step % config.checkpoint_every == 0 and step < self.steps:
                    log.flush()
                    self.checkpoints.save(step, self.state)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    @contextlib.contextmanager
    def trained(self):
        """Within it the captioner has the weights that the run would write now: their average, where one is kept."""
        model = self.captioner.model
        own = {name: weight.clone() for name, weight in model.state_dict().items()} if self.average else None
        if self.average:
            model.load_state_dict(self.average.module.state_dict())
        yield self.captioner
        if own:
            model.load_state_dict(own)

    def _step(self, batch: Batch) -> dict[str, float]:
        """One step of the optimizer; the losses of the whole batch, and the gradients' norm before clipping."""
        config, pad_id, world = self.config, self.captioner.pad_id, self.accelerator.num_processes
        parts = batch.parts(self.accumulation, self.accelerator.device)
        tokens = self.accelerator.reduce(sum((part.tokens[..., 1:] != pad_id).sum() for part in parts))
        gradients, caption = None, 0.0
        if len(parts) > 1:
            with torch.no_grad():
                contrastive, *gradients = self._contrastive([self.model(part.images, part.tokens) for part in parts], parts)
        for number, part in enumerate(parts):
            with self.accelerator.no_sync(self.model) if number < len(parts) - 1 else contextlib.nullcontext():
                output = self.model(part.images, part.tokens)
                if gradients is None:
                    contrastive, *gradients = self._contrastive([output], parts)
                image, text, scale = (gradient[number] for gradient in gradients)
                own = caption_loss(output["logits"], output["labels"]) / tokens
                through = ((output["image_features"] * image).sum() + (output["text_features"] * text).sum()) * world
                # ranks' gradients are averaged: what is a rank's share of a sum counts as often as there are ranks
                loss = config.caption_weight * own * world + config.contrastive_weight * (through + output["logit_scale"] * scale)
                self.accelerator.backward(loss)
                caption += own.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_grad_norm)
        self.optimizer.step()
        rate = self.schedule.get_last_lr()[-1]
        self.schedule.step()
        self.optimizer.zero_grad()
        model = self.captioner.model
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        if self.average is not None:
            self.average.update_parameters(model)
        caption = self.accelerator.reduce(caption).item()
        loss = config.caption_weight * caption + config.contrastive_weight * contrastive.item()
        return {"loss": loss, "caption": caption, "contrastive": contrastive.item(), "gradient_norm": float(norm), "learning_rate": rate}

    def _contrastive(self, outputs: Sequence[dict[str, Tensor]], parts: Sequence[Batch]) -> tuple[Tensor, list, list, list]:
        """The contrastive loss of the whole batch, and its gradients by the parts' features here and by the logit scale.

        The features of every part and rank are held as they are, so that each part's graph can be built by itself
        (Gao et al. 2021, arXiv 2101.06983).
        """
        held = [torch.cat([output[name].detach().float() for output in outputs]) for name in ("image_features", "text_features")]
        count, first = len(held[0]), self.accelerator.process_index * len(held[0])
        image, text = (self.accelerator.gather(features).requires_grad_() for features in held)  # of all ranks
        scale = outputs[0]["logit_scale"].detach().float().requires_grad_()
        numbers = self.accelerator.gather(torch.cat([part.pictures for part in parts]))
        with torch.enable_grad():
            loss = contrastive_loss(image, text, scale, numbers)
        by_image, by_text, by_scale = torch.autograd.grad(loss, (image, text, scale))
        own = [gradient[first:first + count].chunk(len(parts)) for gradient in (by_image, by_text)]
        return loss.detach(), *own, [by_scale / len(parts)] * len(parts)


def make_accelerator(config: FinetuneConfig) -> Accelerator:
    """Accelerate's face of the devices; raises ValueError where they are not those that were asked for."""
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(config.dtype, config.dtype), cpu=config.device == "cpu", log_with=config.report_to or None,
        project_dir=config.output, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(f"training with {accelerator.distributed_type.value} is not supported: a CoCa fits one device, use DDP")
    if config.num_processes not in (None, accelerator.num_processes):
        raise ValueError(f"--num-processes {config.num_processes}: the launcher started {accelerator.num_processes}")
    if config.report_to:
        accelerator.init_trackers("capsmith", json.loads(config.model_dump_json(exclude={"input", "eval_input", "weights", "report_to"})))
    return accelerator


def accumulation(config: FinetuneConfig, processes: int) -> int:
    """The parts that a device's share of the batch is taken in; raises ValueError where they would be of unequal size."""
    size = config.device_batch_size or config.batch_size // processes
    if config.batch_size % processes or config.batch_size % (processes * size):
        raise ValueError(f"--batch-size {config.batch_size} is not a multiple of {processes} processes times {size} pictures each")
    return config.batch_size // (processes * size)
