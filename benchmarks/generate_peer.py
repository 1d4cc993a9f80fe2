"""The peer of `generate.py`, in its own environment: ml-mobileclip-dr's captioning stage, from a shard on disk to one on disk.

Imports nothing of ours. Its argument is a JSON object: `architecture` and `weights`, a file of its state; `shard`, a tar;
`output`, a folder; `captions` of a picture; `batch`, pictures at a time; `device`, cpu unless given. `at_home`, `writing_to` and
`answer` are also for `reinforce_peer.py`.
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


def at_home(device: str = "cpu") -> None:
    """Has the stages work in this process, on the device told, and on local files, where they ask for Ray's actors, a GPU and S3."""
    datasetio.download_fileobj = lambda s3_client, s3_url: io.BytesIO(Path(s3_url).read_bytes())
    datasetio.ray.get = lambda number: 0  # of a shard, which its name does not need
    gen.Model.__init__, gen.Model.device = _begin, torch.device(device)


def _begin(self, model_name, pretrained, batch_size: int, shard_writer_kwargs: dict) -> None:
    self.model_name, self.pretrained, self.batch_size, self.total = model_name, pretrained, batch_size, 0
    self.s3_client, self.logger = None, logging.getLogger("gen")
    self.shard_writer = datasetio.get_shard_writer(None, **shard_writer_kwargs)


def writing_to(folder: str) -> dict:
    """How a stage's writer is asked for."""
    return {
        "output_format": "wds",
        "output_path": folder,
        "output_shard_name_format": "orig",
        "bfloat16": False,
        "counter_actor": MagicMock(),
    }


def answer(warm_up: Callable[[], object], work: Callable[[], object]) -> None:
    """What the work costs, for each line on the standard input."""
    print(json.dumps({"open_clip": open_clip.__version__, "torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        warm_up()
        with open("/proc/self/clear_refs", "w") as file:  # the peak is forgotten
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
    at_home(options.get("device", "cpu"))
    stage = gen.CaptionModel(
        options["architecture"],
        options["weights"],
        batch_size=options["batch"],
        tag_suffix="_peer",
        num_samples=options["captions"],
        shard_writer_kwargs=writing_to(options["output"]),
    )
    pictures = torch.randn(options["batch"], 3, 224, 224, device=stage.device)

    def warm_up() -> None:
        with torch.inference_mode():
            stage.model.generate(pictures, generation_type="top_p", top_p=0.9, seq_len=6, fixed_output_length=True)

    answer(warm_up, lambda: stage({"path": options["shard"]}))


if __name__ == "__main__":
    main()
