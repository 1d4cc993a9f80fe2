"""The peer of `generate.py`, in its own environment: ml-mobileclip-dr's captioning stage, from a shard on disk to
another.

This file imports nothing of ours. Its argument is a JSON object: `architecture` and `weights`, a file with its state;
`shard`, a tar; `output`, a folder; `captions` per picture; `batch`, pictures at a time; `device` (default cpu).
`reinforce_peer.py` also uses `run_locally`, `writer_options` and `answer`.
"""

import io
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import gen
import open_clip
import raygen.datasetio as datasetio
import torch


def run_locally(device: str = "cpu") -> None:
    """Make the stages work in this process, on the device and on local files, instead of with Ray, a GPU and S3."""
    datasetio.download_fileobj = lambda s3_client, s3_url: io.BytesIO(Path(s3_url).read_bytes())
    datasetio.ray.get = lambda number: 0  # the number of a shard, which the shard's name does not use
    gen.Model.__init__, gen.Model.device = _begin, torch.device(device)


def _begin(self, model_name, pretrained, batch_size: int, shard_writer_kwargs: dict) -> None:
    self.model_name, self.pretrained, self.batch_size, self.total = model_name, pretrained, batch_size, 0
    self.s3_client, self.logger = None, logging.getLogger("gen")
    self.shard_writer = datasetio.get_shard_writer(None, **shard_writer_kwargs)


def writer_options(folder: str) -> dict:
    """Options of a stage's writer that writes to the folder."""
    return {
        "output_format": "wds",
        "output_path": folder,
        "output_shard_name_format": "orig",
        "bfloat16": False,
        "counter_actor": MagicMock(),
    }


def answer(warm_up: Callable[[], object], work: Callable[[], object]) -> None:
    """For each line on standard input, print the cost of the work as JSON."""
    print(json.dumps({"open_clip": open_clip.__version__, "torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        warm_up()
        with open("/proc/self/clear_refs", "w") as file:  # resets the peak
            file.write("5")
        before, start = memory("VmRSS"), time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak": memory("VmHWM") - before}), flush=True)


def memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def main() -> None:
    options = json.loads(sys.argv[1])
    run_locally(options.get("device", "cpu"))
    stage = gen.CaptionModel(
        options["architecture"],
        options["weights"],
        batch_size=options["batch"],
        tag_suffix="_peer",
        num_samples=options["captions"],
        shard_writer_kwargs=writer_options(options["output"]),
    )
    pictures = torch.randn(options["batch"], 3, 224, 224, device=stage.device)

    def warm_up() -> None:
        with torch.inference_mode():
            stage.model.generate(pictures, generation_type="top_p", top_p=0.9, seq_len=6, fixed_output_length=True)

    answer(warm_up, lambda: stage({"path": options["shard"]}))


if __name__ == "__main__":
    main()
