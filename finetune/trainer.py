"""Training with the losses of whole batches, on one page: captioners and students of reinforced sets.

What differs between them is in their forward pass: `finetune.captioner.forward`, `finetune.student.model`.

B: pictures of a part of a batch, N: of the whole batch, K: captions of each, T: tokens to predict, V: vocabulary, E: embedding
"""

import contextlib
import copy
import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from finetune.accelerator import accumulation, make_accelerator
from finetune.batching import Batch, BatchOrder, TrainingPictures, batches, decoders
from finetune.checkpoints import LOG, Checkpoints
from finetune.config import TrainingConfig
from finetune.folder import remove_earlier_run
from finetune.forward import Forward
from finetune.interrupts import Interrupts
from finetune.losses import Losses, caption_loss
from finetune.not_finite import explain_not_finite
from finetune.optimizer import learning_rate, parameter_groups
from finetune.weights import AveragedWeights, Buffers, OptimizerState, TrainedWeights, shard
from imagetext.lock import check_lock
from imagetext.shown import Progress, say

# Samples between validations, and how many there are at least, unless told otherwise.
VALIDATE_EVERY, VALIDATIONS = 1_000_000, 8
# Settings that trackers do not take.
LISTS = {"input", "eval_input", "eval_classes", "weights", "report_to", "logit_scale", "teacher_dimension"}


class Trainer:
    """Trains a model on pictures with texts; `fit()` is the whole loop.

    Losses and gradients are those of the whole batch, however it is parted over devices and accumulation. Resumes from the last
    checkpoint in `config.output`; which picture comes when is a function of the seed alone, so a resumed run goes on exactly
    where it stopped.
    validate: called in the main process with this trainer, the step and the samples seen, every
    `config.validate_every` samples and at the end; what it finds, `fit` returns.
    """

    def __init__(
        self,
        config: TrainingConfig,
        forward: Forward,
        pictures: TrainingPictures,
        validate: "Callable[[Trainer, int, int], dict[str, Any]] | None" = None,
    ):
        self.config, self.pictures, self.validate = config, pictures, validate
        self.accelerator = make_accelerator(config)
        self.accumulation = accumulation(config, self.accelerator.num_processes)
        self.samples_per_step = config.batch_size * config.captions_per_image
        self.steps = math.ceil(config.samples_seen / self.samples_per_step)
        self.forward: Any = forward  # an nn.Module, too, which no protocol can say
        self.learner: Any = forward
        self.numbers: list[nn.Parameter] = []  # weights that shards leave whole
        if config.shard:  # the model stays whole, in the main memory, for what is validated and written
            self.learner = copy.deepcopy(self.forward)
            self.numbers = shard(self.learner, self.accelerator.device)
        else:
            self.forward.model.to(self.accelerator.device)
        self.weights = TrainedWeights(self.learner.model)
        self.average = AveragedWeights(self.weights, config.ema) if config.ema else None
        groups = parameter_groups(self.learner.model, config, self.forward.depth)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step, self.steps, config.warmup)
        )
        self.model = self.accelerator.prepare_model(
            self.learner, evaluation_mode=config.shard
        )  # of shards, without DDP
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.checkpoints = Checkpoints(config.output)
        self.state = {
            "model": self.weights,
            "buffers": Buffers(self.learner.model),
            "optimizer": OptimizerState(self.optimizer),
            "schedule": self.schedule,
        }
        self.state |= {"average": self.average} if self.average else {}
        self.state |= {"scaler": self.accelerator.scaler} if config.dtype == "fp16" else {}

    def fit(self) -> dict[str, Any]:
        """Train to the budget; what the last validation found, {} without one.

        Raises ValueError on a loss that is not finite, KeyboardInterrupt after a checkpoint where SIGINT or SIGTERM ask for it.
        """
        config, rank, main = self.config, self.accelerator.process_index, self.accelerator.is_main_process
        world = self.accelerator.num_processes
        first = self.checkpoints.load(self.state)
        if main:
            self.checkpoints.cut_logs(first)
            if first:
                say(f"resumed from step {first:,} of {self.steps:,}")
        if config.report_to:
            self.accelerator.init_trackers("capsmith", json.loads(config.model_dump_json(exclude=LISTS)))
        self.forward.prepare(self.pictures, self.accelerator, config)
        if config.shard:
            self.forward.model.to("cpu" if main else "meta")
        order = BatchOrder(self.pictures, config.batch_size, self.steps, config.seed, first, rank=rank, world=world)
        on_gpu = self.accelerator.device.type == "cuda"
        loader = batches(order, decoders(config.num_workers, on_gpu), pin_memory=on_gpu)
        with (
            open(config.output / LOG if main else os.devnull, "a", buffering=1, encoding="utf-8") as log,
            Interrupts(alone=world == 1) as interrupts,
        ):  # the log is written line by line
            self._validate(first, interrupts)
            progress = Progress(
                loader, initial=first, total=self.steps, desc="training", unit="step", mininterval=1, disable=not main
            )
            for step, batch in enumerate(progress, first + 1):
                torch.manual_seed((config.seed << 32) + step * world + rank)  # of dropout
                with self.forward.products():
                    losses = self._step(batch)
                check_lock(config.output)
                log.write(json.dumps({"step": step, "samples": step * self.samples_per_step, **losses}) + "\n")
                self.accelerator.log(losses, step)
                progress.set_postfix({name: f"{losses[name]:.3f}" for name in self.forward.weights}, refresh=False)
                stops = self._in_any_process(bool(interrupts.asked))
                if (
                    stops
                    or step == self.steps
                    or step % config.checkpoint_every == 0
                    or (self.validate and self._is_due(step))
                ):
                    self.checkpoints.save(step, self.state, write=main)
                    if main:
                        remove_earlier_run(config)
                if stops:
                    raise KeyboardInterrupt(interrupts.asked or signal.SIGINT)
                self._validate(step, interrupts)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return self.checkpoints.last_validation()

    def _is_due(self, step: int) -> bool:
        """Whether there is a validation after this step: before the first, at the end, and at least as often as asked for."""
        every = self.config.validate_every or min(VALIDATE_EVERY, self.config.samples_seen / VALIDATIONS)
        return step in (0, self.steps) or step * self.samples_per_step % every < self.samples_per_step

    def _validate(self, step: int, interrupts: Interrupts) -> None:
        """Brings what is to be validated, and written at the end, into the main process's model; validates it unless it was."""
        if step < self.steps and not (self.validate and self._is_due(step)):
            return
        self._gather()
        if (
            self.validate
            and self.accelerator.is_main_process
            and self.checkpoints.last_validation().get("step") != step
        ):
            with interrupts.at_once():  # there is a checkpoint
                self.validate(self, step, step * self.samples_per_step)

    def _in_any_process(self, said: bool) -> bool:
        """Whether any process says so; a step of all."""
        if self.accelerator.num_processes == 1:
            return said
        count: Any = self.accelerator.reduce(torch.tensor(float(said), device=self.accelerator.device))
        return bool(count.item())

    def _gather(self) -> None:
        """Brings weights that learn in shards, or their average, into the main process's model."""
        if self.config.shard:
            state = (self.average or self.weights).state_dict()
            if self.accelerator.is_main_process:
                TrainedWeights(self.forward.model).load_state_dict(state)

    @contextlib.contextmanager
    def trained(self) -> Iterator[Any]:
        """What the run would write now: with averaged weights, and with adapters merged."""
        model, weights = self.forward.model, TrainedWeights(self.forward.model)
        model.to(self.accelerator.device)
        average = None if self.config.shard else self.average  # of shards, the average was gathered
        own = {name: weight.clone() for name, weight in weights.state_dict().items()} if average else {}
        if average:
            weights.load_state_dict(average.state_dict())
        yield self.forward.written()
        if average:
            weights.load_state_dict(own)
        if self.config.shard:
            model.to("cpu")

    def _step(self, batch: Batch) -> dict[str, float]:
        """One step of the optimizer; for the log, the losses of the whole batch, and the gradients' norm before clipping.

        Raises ValueError where these are not finite, before any weight changes.
        """
        learner, world = self.learner, self.accelerator.num_processes
        reduce: Callable[..., Any] = self.accelerator.reduce
        parts = batch.parts(self.accumulation, self.accelerator.device, learner.pad_id)
        losses: Losses = {name: torch.zeros((), device=self.accelerator.device) for name in learner.weights}
        gradients = None
        tokens: Any = 0  # of the captions of the whole batch
        if learner.captions:
            tokens = reduce(sum((part.tokens[..., 1:] != learner.pad_id).sum() for part in parts))
        if learner.contrasts and len(parts) > 1:
            with torch.no_grad():
                outputs = [self.model(part.images, part.tokens) for part in parts]
                batch_losses, *gradients = self._batch_losses(outputs, parts)
            losses |= batch_losses
            del outputs
            torch.manual_seed(torch.initial_seed())  # dropout is again what it was
        for number, part in enumerate(parts):
            with self.accelerator.no_sync(self.model) if number < len(parts) - 1 else contextlib.nullcontext():
                output, loss = self.model(part.images, part.tokens), torch.zeros((), device=self.accelerator.device)
                if learner.captions:
                    own = caption_loss(output["logits"], output["labels"]) / tokens
                    # ranks' gradients are averaged: what is a rank's share of a sum counts as often as there are ranks
                    loss = loss + learner.weights["caption"] * own * world
                    losses["caption"] += own.detach()
                if learner.contrasts:
                    if gradients is None:
                        batch_losses, *gradients = self._batch_losses([output], parts)
                        losses |= batch_losses
                    image, text, scale = (gradient[number] for gradient in gradients)
                    through = (
                        (output["image_features"] * image).sum() + (output["text_features"] * text).sum()
                    ) * world
                    loss = loss + through + output["logit_scale"] * scale
                self.accelerator.backward(loss)
        for number in self.numbers:
            number.grad = reduce(number.grad, "mean")
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        if learner.captions:
            losses["caption"] = reduce(losses["caption"])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        *values, norm = torch.stack([*losses.values(), norm]).tolist()  # at once, as each look waits for the device
        told = {
            name: value
            for name, value in zip(losses, values, strict=True)
            if name in learner.weights or not math.isnan(value)
        }
        told = {
            "loss": sum(weight * told[name] for name, weight in learner.weights.items()),
            **told,
            "gradient_norm": norm,
            "learning_rate": self.schedule.get_last_lr()[-1],
        }
        self._check_finite(told, parts, batch.keys)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.learner.clamp()
        if self.average:
            self.average.update()
        return told

    def _check_finite(self, told: Mapping[str, float], parts: Sequence[Batch], keys: Sequence[str]) -> None:
        """Raises ValueError for a step whose loss, or gradient, is not finite, with the cause as far as it can be told."""
        # fp16 leaves out steps that overflow.
        names = ["loss"] if self.config.dtype == "fp16" else ["loss", "gradient_norm"]
        if not (wrong := [name for name in names if not math.isfinite(told[name])]):
            return
        why = ""
        if not self.config.shard:
            with self.accelerator.autocast():
                why = explain_not_finite(self.learner, parts, told["learning_rate"], self.config.dtype)
        raise ValueError(
            f"the {wrong[0].replace('_', ' ')} is {told[wrong[0]]} at step {self.schedule.last_epoch + 1}, "
            f"pictures {', '.join(keys)}\n{why}"
        )

    def _batch_losses(
        self, outputs: Sequence[dict[str, Tensor]], parts: Sequence[Batch]
    ) -> tuple[Losses, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """The losses of the whole batch's features, and gradients of their sum by the parts' features here and the logit scale.

        The features of every part and rank are held as they are, so that each part's graph can be built by itself
        (Gao et al. 2021, arXiv 2101.06983).
        """
        gather: Callable[..., Any] = self.accelerator.gather
        held = [
            torch.cat([output[name].detach().float() for output in outputs])
            for name in ("image_features", "text_features")
        ]
        count, first = len(held[0]), self.accelerator.process_index * len(held[0])
        image, text = (gather(features).requires_grad_() for features in held)  # of all ranks
        scale = outputs[0]["logit_scale"].detach().float().requires_grad_()
        pictures, embeddings = gather(
            (
                torch.cat([part.pictures for part in parts]),
                {name: torch.cat([part.embeddings[name] for part in parts]) for name in parts[0].embeddings},
            )
        )
        with torch.enable_grad():
            losses = self.learner.batch_losses(image, text, scale, pictures, **embeddings)
            weights = self.learner.weights
            loss = sum(
                (weights[name] * loss for name, loss in losses.items() if name in weights),
                start=torch.zeros((), device=scale.device),
            )
        by_image, by_text, by_scale = torch.autograd.grad(loss, (image, text, scale))
        image_parts, text_parts = (
            gradient[first : first + count].chunk(len(parts)) for gradient in (by_image, by_text)
        )
        scale_parts = [by_scale / len(parts)] * len(parts)
        return {name: loss.detach() for name, loss in losses.items()}, image_parts, text_parts, scale_parts
