"""The peer of `loss.py`, in its own environment: the official trainer's loss, in one or more processes.

This file imports nothing of ours. Its argument is a JSON object with the fields: `features`, an npz file of arrays;
`dimensions` and `logit_scales` of the teachers; `weights` of the contrastive and the distillation loss; `processes`;
`local_loss`; and `answer`, the npz file to write. The answer has both losses (means over the processes) and the
gradients of their sum, with the parts of the batch in the order of the processes.
"""

import json
import os
import sys
import tempfile
import warnings

import numpy as np
import torch
import torch.distributed as dist

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # open_clip warns that it registers models twice
    from open_clip.loss import DRClipLoss


def losses(rank, options, folder):
    """Compute the losses and gradients for one process's part of the batch, and write them to a file in the folder."""
    world = options["processes"]
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    with np.load(options["features"], allow_pickle=False) as arrays:
        features = {name: torch.from_numpy(array) for name, array in arrays.items()}
    scale = features.pop("logit_scale")
    mine = {
        name: rows.chunk(world)[rank].clone().requires_grad_(not name.startswith("dist_"))
        for name, rows in features.items()
    }
    loss = DRClipLoss(
        local_loss=options["local_loss"],
        gather_with_grad=True,
        cache_labels=True,
        rank=rank,
        world_size=world,
        teacher_dimension=options["dimensions"],
        distill_loss_weights=options["weights"],
        average_after_softmax=True,
        dist_logit_scale=options["logit_scales"],
    )
    values = loss(**mine, logit_scale=scale, output_dict=True)
    sum(values.values()).backward()
    gradients = {f"gradient_{name}": rows.grad.numpy() / world for name, rows in mine.items() if rows.requires_grad}
    np.savez(f"{folder}/{rank}.npz", **gradients, **{name: value.detach().numpy() for name, value in values.items()})
    if world > 1:
        dist.destroy_process_group()


def main() -> None:
    options = json.loads(sys.argv[1])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        if options["processes"] == 1:
            losses(0, options, folder)
        else:
            torch.multiprocessing.spawn(losses, (options, folder), nprocs=options["processes"])
        shares = [dict(np.load(f"{folder}/{rank}.npz")) for rank in range(options["processes"])]
    np.savez(
        options["answer"],
        **{
            name: np.concatenate([share[name] for share in shares])
            if name.startswith("gradient")
            else np.mean([share[name] for share in shares])
            for name in shares[0]
        },
    )
    print(json.dumps({"torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
