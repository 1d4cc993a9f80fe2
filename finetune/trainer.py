"""Fine-tuning a captioner with CoCa's two losses, on one page.

B: pictures of a part of the batch on this device, K: captions of each, L: tokens of the longest caption and one pad,
E: embedding
"""

import contextlib
import copy
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from captioners.base import Captioner
from captioners.coca import evaluating
from finetune.batching import Batch, BatchOrder, CaptionedPictures, batches, collate
from finetune.checkpoints import LOG, Checkpoints
from finetune.config import FinetuneConfig
from finetune.forward import training_forward
from finetune.image_cache import cache_images
from finetune.losses import caption_loss, contrastive_loss
from finetune.optimizer import learning_rate, parameter_groups
from finetune.weights import AveragedWeights, OptimizerState, TrainedWeights, shard


class CaptionTrainer:
    """Trains a captioner on captioned pictures; `fit()` is the whole loop.

    Losses and gradients are those of the whole batch, however it is parted over devices and accumulation. Resumes from the last
    checkpoint in `config.output`; which picture comes when is a function of the seed alone, so a resumed run goes on exactly
    where it stopped. validate: called with the step and the captions seen, every `config.validate_every` captions.
    """

    def __init__(self, config: FinetuneConfig, captioner: Captioner, pictures: CaptionedPictures,
                 validate: Callable[[int, int], None] | None = None):
        self.config, self.captioner, self.pictures, self.validate = config, captioner, pictures, validate
        self.accelerator = make_accelerator(config)
        self.accumulation = accumulation(config, self.accelerator.num_processes)
        self.samples_per_step = config.batch_size * config.captions_per_image
        self.steps = math.ceil(config.samples_seen / self.samples_per_step)
        self.forward = self.learner = training_forward(captioner, config)
        self.numbers: list[Tensor] = []  # weights that shards leave whole
        if config.shard:  # the captioner stays whole, in the main memory, for what is validated and written
            self.learner = copy.deepcopy(self.forward)
            self.numbers = shard(self.learner, self.accelerator.device)
        else:
            captioner.model.to(self.accelerator.device)
        self.weights = TrainedWeights(self.learner.model)
        self.average = AveragedWeights(self.weights, config.ema) if config.ema else None
        groups = parameter_groups(self.learner.model, config, self.forward.depth)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, self.steps, config.warmup))
        self.model = self.accelerator.prepare_model(self.learner, evaluation_mode=config.shard)  # of shards, without DDP
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.checkpoints = Checkpoints(config.output)
        self.state = {"model": self.weights, "optimizer": OptimizerState(self.optimizer), "schedule": self.schedule}
        self.state |= {"average": self.average} if self.average else {}
        self.state |= {"scaler": self.accelerator.scaler} if config.dtype == "fp16" else {}

    def fit(self) -> None:
        """Train to the budget; ValueError on a loss that is not finite."""
        config, rank, main = self.config, self.accelerator.process_index, self.accelerator.is_main_process
        first = self.checkpoints.load(self.state)
        if main:
            self.checkpoints.cut_logs(first)
        if config.freeze_image and self.forward.contrasts:
            self.captioner.model.to(self.accelerator.device)
            self.pictures.image = cache_images(self.pictures, config.output / "image_cache", self.accelerator,
                                               batch_size=config.device_batch_size or 16, num_workers=config.num_workers)
        if config.shard:
            self.captioner.model.to("cpu" if main else "meta")
        order = BatchOrder(self.pictures, config.batch_size, self.steps, config.seed, first,
                           rank=rank, world=self.accelerator.num_processes)
        progress = tqdm(batches(order, config.num_workers), initial=first, total=self.steps, desc="fine-tuning", unit="step",
                        mininterval=1, disable=not main)
        with open(config.output / LOG if main else os.devnull, "a", buffering=1, encoding="utf-8") as log:  # line by line
            for step, batch in enumerate(progress, first + 1):
                torch.manual_seed((config.seed << 32) + step * self.accelerator.num_processes + rank)  # of dropout
                with self.forward.products():
                    losses = self._step(batch)
                if not math.isfinite(losses["loss"]):
                    raise ValueError(f"the loss is {losses['loss']} at step {step}, pictures {', '.join(batch.keys)}")
                samples = step * self.samples_per_step
                log.write(json.dumps({"step": step, "samples": samples, **losses}) + "\n")
                self.accelerator.log(losses, step)
                shown = {name: f"{losses[name]:.3f}" for name in ("caption", "contrastive") if name in losses}
                progress.set_postfix(shown, refresh=False)
                if step == self.steps or (self.validate and samples % config.validate_every < self.samples_per_step):
                    self._gather()
                    if self.validate and main:
                        self.validate(step, samples)
                if step % config.checkpoint_every == 0 and step < self.steps:
                    self.checkpoints.save(step, self.state, write=main)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _gather(self) -> None:
        """Brings weights that learn in shards, or their average, into the main process's captioner."""
        if self.config.shard:
            state = (self.average or self.weights).state_dict()
            if self.accelerator.is_main_process:
                TrainedWeights(self.captioner.model).load_state_dict(state)

    @contextlib.contextmanager
    def trained(self) -> Iterator[Captioner]:
        """The captioner that the run would write now: with averaged weights, and with adapters merged."""
        model, weights = self.captioner.model, TrainedWeights(self.captioner.model)
        model.to(self.accelerator.device)
        swapped = self.average is not None and not self.config.shard  # of shards, the average was gathered
        if swapped:
            own = {name: weight.clone() for name, weight in weights.state_dict().items()}
            weights.load_state_dict(self.average.state_dict())
        yield self.forward.written(self.captioner)
        if swapped:
            weights.load_state_dict(own)
        if self.config.shard:
            model.to("cpu")

    @torch.no_grad()
    def losses_on(self, pictures: CaptionedPictures, batch_size: int = 64) -> dict[str, float]:
        """Both losses on pictures that are not trained on, with a caption each: per token, and in batches of so many pictures."""
        totals = torch.zeros(3)
        for at in range(0, len(pictures), batch_size):
            items = [pictures[index, 0] for index in range(at, min(at + batch_size, len(pictures)))]
            part, = collate(items, self.captioner.pad_id).parts(1, self.accelerator.device)
            with self.accelerator.autocast(), evaluating(self.forward):
                output = self.forward(part.images, part.tokens)
            features = [output[name].float() for name in ("image_features", "text_features")] if self.forward.contrasts else []
            contrastive = contrastive_loss(*features, output["logit_scale"], part.pictures) if features else 0.0
            caption, tokens = caption_loss(output["logits"], output["labels"]), len(output["labels"])
            totals += torch.tensor([caption, tokens, contrastive * len(items)])
        losses = {"caption": (totals[0] / totals[1]).item()}
        return losses | ({"contrastive": totals[2].item() / len(pictures)} if self.forward.contrasts else {})

    def _step(self, batch: Batch) -> dict[str, float]:
        """One step of the optimizer; the losses of the whole batch, and the gradients' norm before clipping."""
        config, pad_id, world = self.config, self.captioner.pad_id, self.accelerator.num_processes
        parts = batch.parts(self.accumulation, self.accelerator.device)
        tokens = self.accelerator.reduce(sum((part.tokens[..., 1:] != pad_id).sum() for part in parts))
        contrasts, gradients, caption, contrastive = self.forward.contrasts, None, 0.0, None
        if contrasts and len(parts) > 1:
            with torch.no_grad():
                contrastive, *gradients = self._contrastive([self.model(part.images, part.tokens) for part in parts], parts)
        for number, part in enumerate(parts):
            with self.accelerator.no_sync(self.model) if number < len(parts) - 1 else contextlib.nullcontext():
                output = self.model(part.images, part.tokens)
                own = caption_loss(output["logits"], output["labels"]) / tokens
                # ranks' gradients are averaged: what is a rank's share of a sum counts as often as there are ranks
                loss = config.caption_weight * own * world
                if contrasts:
                    if gradients is None:
                        contrastive, *gradients = self._contrastive([output], parts)
                    image, text, scale = (gradient[number] for gradient in gradients)
                    through = ((output["image_features"] * image).sum() + (output["text_features"] * text).sum()) * world
                    loss = loss + config.contrastive_weight * (through + output["logit_scale"] * scale)
                self.accelerator.backward(loss)
                caption += own.detach()
        for number in self.numbers:
            number.grad = self.accelerator.reduce(number.grad, "mean")
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_grad_norm)
        self.optimizer.step()
        rate = self.schedule.get_last_lr()[-1]
        self.schedule.step()
        self.optimizer.zero_grad()
        self.learner.clamp()
        if self.average:
            self.average.update()
        losses = {"caption": self.accelerator.reduce(caption).item()} | ({"contrastive": contrastive.item()} if contrasts else {})
        loss = config.caption_weight * losses["caption"] + config.contrastive_weight * losses.get("contrastive", 0.0)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return {"loss": loss, **losses, "gradient_norm": float(norm), "learning_rate": rate}

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
        mixed_precision={"fp32": "no"}.get(config.dtype, config.dtype), cpu=config.device == "cpu", project_dir=config.output,
        log_with=config.report_to or None, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(f"training with {accelerator.distributed_type.value} is not supported: use DDP, or --shard")
    if config.num_processes not in (None, accelerator.num_processes):
        raise ValueError(f"--num-processes {config.num_processes}: the launcher started {accelerator.num_processes}")
    if config.shard and accelerator.num_processes == 1:
        raise ValueError("--shard: there is one process, and so there are no parts")
    if config.report_to:
        lists = {"input", "eval_input", "weights", "report_to"}  # which trackers do not take
        accelerator.init_trackers("capsmith", json.loads(config.model_dump_json(exclude=lists)))
    return accelerator


def accumulation(config: FinetuneConfig, processes: int) -> int:
    """The parts that a device's share of the batch is taken in; raises ValueError where they would be of unequal size."""
    size = config.device_batch_size or config.batch_size // processes
    if config.batch_size % processes or config.batch_size % (processes * size):
        raise ValueError(f"--batch-size {config.batch_size} is not a multiple of {processes} processes times {size} pictures")
    return config.batch_size // (processes * size)
