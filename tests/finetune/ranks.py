"""Work that tests do in one process and in two: `python -m tests.finetune.ranks FILE JSON` forks two processes.

The JSON object may have `gradients` (of captioners) and `students`, lists of settings, for each of which a step's
gradients are written into FILE; `runs`, a list of (settings, steps or null); and `student_runs`, a list of settings.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.distributed.tensor import DTensor

from captioners.load import load_captioner
from finetune.batching import Batch, BatchOrder, batches
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.forward import CoCaForward, training_forward
from finetune.captioner.pictures import CaptionedPictures
from finetune.captioner.run import run
from finetune.student.config import StudentConfig
from finetune.student.model import StudentForward, load_student
from finetune.student.records import ReinforcedPictures
from finetune.student.run import run as run_student
from finetune.student.teachers import read_teachers
from finetune.trainer import Trainer
from imagetext.sources import read_samples

from .sets import STUDENT, write_set, write_student


def gradients_of_a_step(scaled: bool = False, **settings) -> dict:
    """Return each weight's gradient, and the losses, of one step, always on the same pictures and initial weights.

    scaled: multiply CoCa's token logits by its logit scale, so that the scale also gets a gradient from the captions.
    """
    config = FinetuneConfig(
        **{
            "input": ["scenes:train,n=10,size=32"],
            "model": "coca_tiny",
            "output": "unused",
            "device": "cpu",
            "batch_size": 8,
            "samples_seen": 8,
            "clip_grad_norm": 1e9,
        }
        | settings
    )
    captioner = load_captioner(config.model)
    pictures = CaptionedPictures(
        read_samples(config.input), captioner, captions_per_image=config.captions_per_image, quiet=True
    )
    pictures.samples[3] = pictures.samples[2]
    torch.manual_seed(0)  # for the adapters
    trainer = Trainer(config, training_forward(captioner, config), pictures)
    order = BatchOrder(
        pictures, 8, 1, seed=0, rank=trainer.accelerator.process_index, world=trainer.accelerator.num_processes
    )
    batch, forward = next(iter(batches(order, 0))), CoCaForward.forward

    def scaling(self, images, tokens):
        output = forward(self, images, tokens)
        return output | {"logits": output["logits"] * output["logit_scale"] / 10}

    with mock.patch.object(CoCaForward, "forward", scaling if scaled else forward):
        gradients, losses = _noting(trainer, batch)
    return {"gradients": gradients, "losses": losses}


def gradients_of_a_student(*, whole: bool = False, model_cfg=STUDENT, **settings) -> dict:
    """Return each weight's gradient, and the losses, of one step, always on the same records and initial weights.

    whole: of one graph over the whole batch, without the trainer.
    """
    with tempfile.TemporaryDirectory() as folder:
        spec = write_set(Path(folder) / "set", count=8, negatives="negatives" in settings)
        name = write_student(Path(folder) / "student", model_cfg)
        config = StudentConfig(
            **{
                "input": [spec],
                "student": name,
                "output": "unused",
                "device": "cpu",
                "batch_size": 8,
                "samples_seen": 8,
                "clip_grad_norm": 1e9,
            }
            | settings
        )
        torch.manual_seed(0)
        student, shards = load_student(name), read_samples(spec)
        teachers = read_teachers(shards, config)
        pictures = ReinforcedPictures(shards, student, config, teachers=teachers, quiet=True)
        forward = StudentForward(student, config, teachers)
        with torch.no_grad():
            student.model.logit_scale += 0.5
        trainer = Trainer(config, forward, pictures)
        of_all = list(BatchOrder(pictures, 8, 1, seed=0))[0]
        torch.manual_seed(5)
        if not whole:
            rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
            found, losses = _noting(trainer, pictures.collate([pictures[item] for item in of_all[rank::world]]))
            return {"gradients": found, "losses": losses, "buffers": dict(student.model.named_buffers())}
        batch = pictures.collate([pictures[item] for item in of_all])
        outputs = [
            forward(part.images, part.tokens) for part in batch.parts(trainer.accumulation, torch.device("cpu"))
        ]
        image, text = (torch.cat([output[name] for output in outputs]) for name in ("image_features", "text_features"))
        losses = forward.batch_losses(image, text, outputs[0]["logit_scale"], batch.pictures, **batch.embeddings)
        loss = sum(weight * losses[name] for name, weight in forward.weights.items())
        loss.backward()
        gradients = {name: weight.grad for name, weight in student.model.named_parameters() if weight.grad is not None}
        norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()
        return {
            "gradients": gradients,
            "buffers": dict(student.model.named_buffers()),
            "losses": {
                "loss": loss.item(),
                **{name: of.item() for name, of in losses.items()},
                "gradient_norm": norm,
                "learning_rate": config.learning_rate,
            },
        }


def _noting(trainer: Trainer, batch: Batch) -> tuple[dict, dict]:
    """Return the gathered gradients and the losses of a step."""
    noted, step = {}, trainer.optimizer.step

    def noting() -> None:
        gradients = {name: weight.grad for name, weight in trainer.weights.weights.items() if weight.grad is not None}
        noted.update(
            {
                name: (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).clone()
                for name, gradient in gradients.items()
            }
        )
        step()

    trainer.optimizer.step = noting
    return noted, trainer._step(batch)


def check_equal(found: dict, expected: dict) -> None:
    """Check that gradients and losses are equal to 1e-5."""
    assert found["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        scale = gradient.abs().max().clamp(min=1)
        torch.testing.assert_close(found["gradients"][name] / scale, gradient / scale, atol=1e-5, rtol=0, msg=name)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5, abs=1e-5)


def train(settings: dict, steps: int | None = None) -> None:
    """Run a training, and stop it after `steps` steps."""
    batches_taken, step = [], Trainer._step

    def stopping(self, batch):
        if len(batches_taken) == steps:
            raise KeyboardInterrupt
        batches_taken.append(batch)
        return step(self, batch)

    with mock.patch.object(Trainer, "_step", stopping):
        try:
            run(FinetuneConfig(**settings))
        except KeyboardInterrupt:
            assert steps is not None


def in_two_processes(file: Path, **todo) -> None:
    """Do this work in two processes, and wait for both."""
    subprocess.run(
        [sys.executable, "-m", "tests.finetune.ranks", file, json.dumps(todo)],
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def work(file: Path, todo: dict) -> None:
    """Do the work of one process."""
    gradients = [gradients_of_a_step(**settings) for settings in todo.get("gradients", [])]
    gradients += [gradients_of_a_student(**settings) for settings in todo.get("students", [])]
    if os.environ["RANK"] == "0":
        torch.save(gradients, file)
    for settings, steps in todo.get("runs", []):
        train(settings, steps)
    for settings in todo.get("student_runs", []):
        run_student(StudentConfig(**settings))
    if torch.distributed.is_initialized():  # a finished run has destroyed its group already
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = []
    for rank in ("0", "1"):
        if (child := os.fork()) == 0:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
            try:
                work(Path(sys.argv[1]), json.loads(sys.argv[2]))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        ranks.append(child)
    while ranks:
        ended, status = os.wait()
        ranks.remove(ended)
        if status:
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)
            sys.exit(1)
