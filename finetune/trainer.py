"""The training loop for captioners and for students, with losses over whole batches.

What differs between models is in their forward pass: `finetune.captioner.forward` and `finetune.student.model`.

B: pictures in a part of a batch, N: pictures in the whole batch, K: captions of each picture, T: tokens to predict,
V: vocabulary size, E: embedding dimension
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

# The defaults: at most this many samples between validations, and at least this many validations.
VALIDATE_EVERY, VALIDATIONS = 1_000_000, 8
# Settings that are lists, which trackers do not accept.
LISTS = {"input", "eval_input", "eval_classes", "weights", "report_to", "logit_scale", "teacher_dimension"}


class Trainer:
    """Trains a model on pictures with texts; `fit()` is the whole loop.

    Losses and gradients are those of the whole batch, however it is split over devices and accumulation steps. A run
    resumes from the last checkpoint in `config.output`. The order of the pictures depends on the seed alone, so a
    resumed run continues exactly where it stopped.

    validate: called in the main process with this trainer, the step and the number of samples seen, every
    `config.validate_every` samples and at the end. `fit` returns the last result.
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
        self.forward: Any = forward  # also an nn.Module, which a protocol cannot express
        self.learner: Any = forward
        self.unsharded: list[nn.Parameter] = []  # trained weights that are not sharded
        if config.shard:  # `forward` keeps the whole model in main memory, to be validated and written
            self.learner = copy.deepcopy(self.forward)
            self.unsharded = shard(self.learner, self.accelerator.device)
        else:
            self.forward.model.to(self.accelerator.device)
        self.weights = TrainedWeights(self.learner.model)
        self.average = AveragedWeights(self.weights, config.ema) if config.ema else None
        groups = parameter_groups(self.learner.model, config, self.forward.depth)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step, self.steps, config.warmup)
        )
        # evaluation mode means without DDP, which shards do not need
        self.model = self.accelerator.prepare_model(self.learner, evaluation_mode=config.shard)
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
        """Train to the end, and return the last row of the validation log, {} if there is none.

        Raises ValueError for a loss that is not finite, and KeyboardInterrupt after SIGINT or SIGTERM, once a
        checkpoint is written.
        """
        config, rank, main = self.config, self.accelerator.process_index, self.accelerator.is_main_process
        world = self.accelerator.num_processes
        first = self.checkpoints.load(self.state)
        self._set_rates()
        if main:
            self.checkpoints.cut_logs(first)
            if first:
                say(f"resumed from step {first:,} of {self.steps:,}")
        if config.report_to:
            self.accelerator.init_trackers("capsmith", json.loads(config.model_dump_json(exclude=LISTS)))
        self.forward.prepare(self.pictures, self.accelerator, config)
        if config.shard:
            self.forward.model.to("cpu" if main else "meta")
        order = BatchOrder(
            self.pictures, config.batch_size, self.steps, seed=config.seed, first=first, rank=rank, world=world
        )
        on_gpu = self.accelerator.device.type == "cuda"
        loader = batches(order, decoders(config.num_workers, on_gpu), pin_memory=on_gpu)
        with (
            contextlib.closing(loader),
            open(config.output / LOG if main else os.devnull, "a", buffering=1, encoding="utf-8") as log,  # by line
            Interrupts(alone=world == 1) as interrupts,
        ):
            self._validate(first, interrupts)
            progress = Progress(
                loader, initial=first, total=self.steps, desc="training", unit="step", mininterval=1, disable=not main
            )
            for step, batch in enumerate(progress, first + 1):
                torch.manual_seed((config.seed << 32) + step * world + rank)  # for dropout
                with self.forward.products():
                    losses = self._step(batch)
                check_lock(config.output)
                log.write(json.dumps({"step": step, "samples": step * self.samples_per_step, **losses}) + "\n")
                self.accelerator.log(losses, step)
                progress.set_postfix({name: f"{losses[name]:.3f}" for name in self.forward.weights}, refresh=False)
                stops = self._in_any_process(bool(interrupts.received))
                validates = self.validate is not None and self._is_due(step)
                if stops or validates or step == self.steps or step % config.checkpoint_every == 0:
                    self.checkpoints.save(step, self.state, write=main)
                    if main:
                        remove_earlier_run(config)
                if stops:
                    raise KeyboardInterrupt(interrupts.received or signal.SIGINT)
                self._validate(step, interrupts)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return self.checkpoints.last_validation()

    def _set_rates(self) -> None:
        """Set the learning rates of the next step; those in a checkpoint may be of a shorter run."""
        share = learning_rate(self.schedule.last_epoch, self.steps, self.config.warmup)
        for group, peak in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = peak * share

    def _is_due(self, step: int) -> bool:
        """Return whether a validation follows this step: at the start, at the end, or at the interval between."""
        every = self.config.validate_every or min(VALIDATE_EVERY, self.config.samples_seen / VALIDATIONS)
        return step in (0, self.steps) or step * self.samples_per_step % every < self.samples_per_step

    def _validate(self, step: int, interrupts: Interrupts) -> None:
        """Validate if it is due and not in the log yet; before that, and at the end, gather sharded weights."""
        if step < self.steps and not (self.validate and self._is_due(step)):
            return
        self._gather()
        if (
            self.validate
            and self.accelerator.is_main_process
            and self.checkpoints.last_validation().get("step") != step
        ):
            with interrupts.at_once():  # nothing is lost, because there is a checkpoint
                self.validate(self, step, step * self.samples_per_step)

    def _in_any_process(self, flag: bool) -> bool:
        """Return whether the flag is true in any process; all processes must call this together."""
        if self.accelerator.num_processes == 1:
            return flag
        count: Any = self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device))
        return bool(count.item())

    def _gather(self) -> None:
        """Copy sharded weights, or their average if there is one, into the main process's whole model."""
        if self.config.shard:
            state = (self.average or self.weights).state_dict()
            if self.accelerator.is_main_process:
                TrainedWeights(self.forward.model).load_state_dict(state)

    @contextlib.contextmanager
    def trained(self) -> Iterator[Any]:
        """Within this context, give the model that the run would write now: averaged, and with merged adapters."""
        model, weights = self.forward.model, TrainedWeights(self.forward.model)
        model.to(self.accelerator.device)
        average = None if self.config.shard else self.average  # for a sharded model, the average is gathered already
        last_weights = {name: weight.clone() for name, weight in weights.state_dict().items()} if average else {}
        if average:
            weights.load_state_dict(average.state_dict())
        yield self.forward.written()
        if average:
            weights.load_state_dict(last_weights)
        if self.config.shard:
            model.to("cpu")

    def _step(self, batch: Batch) -> dict[str, float]:
        """Make one step of the optimizer, and return its row of the log without step and samples.

        The row has the losses of the whole batch, the gradient norm before clipping, and the learning rate.
        Raises ValueError if these are not finite, before any weight changes.
        """
        learner, world = self.learner, self.accelerator.num_processes
        reduce: Callable[..., Any] = self.accelerator.reduce
        parts = batch.parts(self.accumulation, self.accelerator.device, learner.pad_id)
        losses: Losses = {name: torch.zeros((), device=self.accelerator.device) for name in learner.weights}
        gradients = None
        tokens: Any = 0  # number of tokens to predict in the whole batch
        if learner.captions:
            tokens = reduce(sum((part.tokens[..., 1:] != learner.pad_id).sum() for part in parts))
        if learner.contrasts and len(parts) > 1:
            batch_losses, *gradients = self._losses_ahead(parts)
            losses |= batch_losses
        for index, part in enumerate(parts):
            with self.accelerator.no_sync(self.model) if index < len(parts) - 1 else contextlib.nullcontext():
                output, loss = self.model(part.images, part.tokens), torch.zeros((), device=self.accelerator.device)
                if learner.captions:
                    part_loss = caption_loss(output["logits"], output["labels"]) / tokens
                    # Gradients are averaged over processes, but the loss is a sum over them: so it is multiplied
                    # by their number.
                    loss = loss + learner.weights["caption"] * part_loss * world
                    losses["caption"] += part_loss.detach()
                if learner.contrasts:
                    if gradients is None:
                        batch_losses, *gradients = self._batch_losses([output], parts)
                        losses |= batch_losses
                    image, text, scale = (gradient[index] for gradient in gradients)
                    # The gradient of these products by the features is the gradient of the whole batch's losses.
                    products = (output["image_features"] * image).sum() + (output["text_features"] * text).sum()
                    loss = loss + products * world + output["logit_scale"] * scale
                self.accelerator.backward(loss)
        for weight in self.unsharded:
            weight.grad = reduce(weight.grad, "mean")
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        if learner.captions:
            losses["caption"] = reduce(losses["caption"])
        row = self._log_row(losses, norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self._check_finite(row, parts, batch.keys)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.learner.clamp()
        if self.average:
            self.average.update()
        return row

    def _losses_ahead(
        self, parts: Sequence[Batch]
    ) -> tuple[Losses, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """Return what `_batch_losses` does for several parts, by a forward pass that leaves no trace."""
        buffers = Buffers(self.learner.model)
        before = {name: buffer.clone() for name, buffer in buffers.state_dict().items()}
        with torch.no_grad():
            outputs = [self.model(part.images, part.tokens) for part in parts]
            losses_and_gradients = self._batch_losses(outputs, parts)
        buffers.load_state_dict(before)  # each part counts once in batch statistics, in the second forward pass
        torch.manual_seed(torch.initial_seed())  # the second forward pass needs the same dropout as the first
        return losses_and_gradients

    def _log_row(self, losses: Losses, norm: Tensor) -> dict[str, float]:
        """Return the row of a step: its weighted loss, each loss or number, gradient norm and learning rate."""
        numbers: list[float] = torch.stack([*losses.values(), norm]).tolist()  # together, because each transfer waits
        *values, gradient_norm = numbers
        weights = self.learner.weights
        named_values = {
            name: value for name, value in zip(losses, values, strict=True) if name in weights or not math.isnan(value)
        }
        return {
            "loss": sum(weight * named_values[name] for name, weight in weights.items()),
            **named_values,
            "gradient_norm": gradient_norm,
            "learning_rate": float(self.optimizer.param_groups[-1]["lr"]),
        }

    def _check_finite(self, row: Mapping[str, float], parts: Sequence[Batch], keys: Sequence[str]) -> None:
        """Raise ValueError if the step's loss or gradient norm is not finite, with the cause if it can be found."""
        # In fp16 a gradient may overflow: the gradient scaler then skips the step.
        names = ["loss"] if self.config.dtype == "fp16" else ["loss", "gradient_norm"]
        wrong = [name for name in names if not math.isfinite(row[name])]
        if not wrong:
            return
        explanation = ""
        if not self.config.shard:
            with self.accelerator.autocast():
                explanation = explain_not_finite(
                    self.learner, parts, rate=row["learning_rate"], dtype=self.config.dtype
                )
        raise ValueError(
            f"the {wrong[0].replace('_', ' ')} is {row[wrong[0]]} at step {self.schedule.last_epoch + 1}, "
            f"pictures {', '.join(keys)}\n{explanation}"
        )

    def _batch_losses(
        self, outputs: Sequence[dict[str, Tensor]], parts: Sequence[Batch]
    ) -> tuple[Losses, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """Return the losses of the whole batch, and the gradients of their weighted sum.

        The gradients are those by this process's image features, text features, and the logit scale, each a list with
        an item for each part. They are computed from the detached features of all parts and processes, so that the
        graph of each part can be built on its own (Gao et al. 2021, arXiv 2101.06983).
        """
        gather: Callable[..., Any] = self.accelerator.gather
        local_features = [
            torch.cat([output[name].detach().float() for output in outputs])
            for name in ("image_features", "text_features")
        ]
        count = len(local_features[0])
        first = self.accelerator.process_index * count
        image, text = (gather(features).requires_grad_() for features in local_features)  # (N, E), (N, K, E)
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
