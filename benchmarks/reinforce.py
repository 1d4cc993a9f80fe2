"""Reinforcement compared with its peers: `python -m benchmarks.reinforce --case embeddings --peer-python PYTHON`.

The last line of the output is a JSON object.

`embeddings`: `capsmith reinforce` on a shard of 32 records with 8 views, the original caption and 5 synthetic captions
each. The peer is the embedding stage of ml-mobileclip-dr (apple, commit 418551d) on the same shard, with its reader
and writer. There are two teachers (ViT-B-32 with random weights), and all cores are used. Photographs and captions are
those of CAPSMITH_DATA, as JPEGs of 640 x 480. The peer loses the embeddings after the first batch of a shard, so its
batch is the whole shard. It draws its own views and does not store them. Neither time includes loading models, and the
peer's does not include starting Ray. `text_gap` is the largest difference between the two sides' text embeddings.

`student`: the time of training steps of `train-student` with stored embeddings of two teachers, divided by the time of
plain CLIP training: open_clip's forward pass, its ClipLoss, AdamW and clipped gradients, in this process. Both train
ViT-B-32 on 16 records per step with one synthetic caption each (`--text-weight 0`; the original caption would double
the work of the text tower). Both read the same set with the same worker: records, pictures and views, and for the
student also embeddings. A turn has four steps; the first one waits for the worker.

PYTHON is an interpreter prepared by hand, as `generate.py` says.
"""

import argparse
import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.decoding import DATA
from benchmarks.generate import photographs, write_shard
from benchmarks.side_by_side import Peer, alternate, cost_of
from captioners.ranks import Rank
from finetune.batching import Batch, BatchOrder, batches
from finetune.optimizer import parameter_groups
from finetune.student.config import StudentConfig
from finetune.student.model import MAX_LOGIT_SCALE, StudentForward, load_student
from finetune.student.records import ReinforcedPictures
from finetune.student.teachers import read_teachers
from finetune.trainer import Trainer
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.run import Reinforcing, run
from generate.runs.protocol import Embedded
from imagetext.reinforced.embeddings import unpack
from imagetext.sources import read_samples

ARCHITECTURE, TEACHERS = "ViT-B-32", 2
RECORDS, VIEWS, CAPTIONS = 32, 8, 5
COLUMN = "syn_text_coco"
BATCH, STEPS = 16, 4  # records per step and steps per turn of the student


def captioned() -> Iterator[dict[str, bytes]]:
    """Yield the samples: photographs, with captions of COCO's pictures."""
    annotated = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))
    for photograph, captions in zip(photographs(RECORDS), annotated):
        yield photograph | {
            "txt": captions["candidates"][0].encode(),
            "syn.json": json.dumps({COLUMN: captions["references"][:CAPTIONS]}).encode(),
        }


def text_embeddings(shard: Path) -> Tensor:
    """Embeddings of all captions (RECORDS, 1 + CAPTIONS, D), with the original caption first."""
    records = [unpack(sample.members) for sample in read_samples(str(shard))[0]]
    return torch.stack([torch.cat([embeddings["text_emb"], embeddings[f"{COLUMN}_emb"]]) for embeddings in records])


def reinforcement(folder: Path, views: int, *, device: str, dtype: str) -> ReinforceConfig:
    """Write a shard of samples and teachers with random weights to the folder; return the configuration for them."""
    shard = write_shard(folder / "input/records.tar", captioned())
    files = [folder / f"{seed}.safetensors" for seed in range(TEACHERS)]
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        save_file(open_clip.create_model(ARCHITECTURE).state_dict(), file)
    return ReinforceConfig(
        input=[str(shard)],
        output=folder / "ours",
        teacher=[f"{ARCHITECTURE}:{file}" for file in files],
        views=views,
        device=device,
        dtype=dtype,
    )


def embeddings(folder: Path, peer_python: Path, *, repeats: int, device: str, dtype: str) -> dict:
    config = reinforcement(folder, VIEWS, device=device, dtype=dtype)
    work = Reinforcing(config)
    work.load(device, {})

    def ours() -> None:
        Embedded(Rank()).do(work, read_samples(config.input))

    options = {
        "architecture": ARCHITECTURE,
        "teachers": [teacher.partition(":")[2] for teacher in config.teacher],
        "shard": config.input[0],
        "output": str(folder / "peer"),
        "views": VIEWS,
        "batch": RECORDS,
        "device": device,
    }
    with Peer(peer_python, "reinforce_peer.py", **options) as peer:
        print(f"the peer: {peer.ready}", flush=True)
        cost, peer_cost = alternate(ours, peer, repeats, device=device)
    count = RECORDS * (VIEWS + 1 + CAPTIONS) * TEACHERS
    gap = text_embeddings(folder / "ours/records.tar") - text_embeddings(folder / "peer/records.tar")
    return {
        "ratio": round(peer_cost.seconds / cost.seconds, 2),
        "embeddings_per_s": round(count / cost.seconds, 1),
        "peer_embeddings_per_s": round(count / peer_cost.seconds, 1),
        "peak_mb": round(cost.peak / 1e6),
        "peer_peak_mb": round(peer_cost.peak / 1e6),
        "text_gap": gap.abs().max().item(),
    }


class Plain:
    """Training steps of plain CLIP; takes the place of a peer's process."""

    def __init__(self, model: nn.Module, config: StudentConfig, pictures: ReinforcedPictures):
        self.model, self.config, self.pictures = model, config, pictures
        self.loss = open_clip.ClipLoss()
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config, None), betas=(0.9, 0.98), eps=1e-6, fused=True
        )

    def train(self) -> None:
        for batch in batches(BatchOrder(self.pictures, BATCH, STEPS, seed=0), num_workers=1):
            self._step(batch)

    def _step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        device = self.model.logit_scale.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.dtype == "bf16"):
            loss = self.loss(*self.model(batch.images.to(device, non_blocking=True), batch.tokens[:, 0].to(device)))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def ask(self) -> dict[str, float]:
        self.train()  # warms up
        return cost_of(self.train, self.config.device)._asdict()


def student(folder: Path, *, repeats: int, device: str, dtype: str) -> dict:
    run(reinforcement(folder, 2, device=device, dtype="fp32"))
    config = StudentConfig(
        input=[str(folder / "ours/records.tar")],
        student=ARCHITECTURE,
        output=folder / "student",
        text_weight=0,
        samples_seen=2 * repeats * STEPS * BATCH,
        batch_size=BATCH,
        device=device,
        dtype=dtype,
    )
    config.output.mkdir()
    shards = read_samples(config.input)
    teachers, trained = read_teachers(shards, config), load_student(config.student)
    without = ReinforcedPictures(shards, trained, config, teachers=None)
    plain = Plain(copy.deepcopy(trained.model).train().to(device), config, without)
    trainer = Trainer(
        config,
        StudentForward(trained, config, teachers),
        ReinforcedPictures(shards, trained, config, teachers=teachers),
    )

    def ours() -> None:
        for batch in batches(BatchOrder(trainer.pictures, BATCH, STEPS, seed=0), num_workers=1):
            with trainer.forward.products():
                trainer._step(batch)

    cost, plain_cost = alternate(ours, plain, repeats, device=device)
    return {
        "ratio": round(cost.seconds / plain_cost.seconds, 3),
        "records_per_s": round(STEPS * BATCH / cost.seconds, 2),
        "plain_records_per_s": round(STEPS * BATCH / plain_cost.seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("embeddings", "student"), required=True)
    parser.add_argument("--peer-python", type=Path, help="for embeddings: the interpreter described above")
    parser.add_argument("--repeats", type=int, default=3, help="number of turns")
    parser.add_argument("--device", default="cpu", help="device of both sides: cpu, cuda, …")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        default="fp32",
        help="dtype of our teachers (the peer's is fp32), or of training",
    )
    args = parser.parse_args()
    if args.case == "embeddings" and not args.peer_python:
        parser.error("--peer-python: embeddings needs an interpreter that has the peer")
    with tempfile.TemporaryDirectory() as folder:
        options = {"repeats": args.repeats, "device": args.device, "dtype": args.dtype}
        if args.case == "embeddings":
            result = embeddings(Path(folder), args.peer_python, **options)
        else:
            result = student(Path(folder), **options)
    print(json.dumps({"case": args.case, **result}))


if __name__ == "__main__":
    main()
