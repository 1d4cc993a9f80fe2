"""Replay our views with the reference's own transforms.

Usage: `python -m benchmarks.compat.replay --peer-python PATH [--module MODULE]`. PATH is the interpreter of an
environment that can import MODULE. This is `raygen.dr.transforms` of apple/ml-mobileclip-dr (the default), or
`open_clip_train.dr.transforms` of the official trainer; `readers.py` and `trainer.py` say what these need.

`capsmith reinforce` draws views of drawn scenes, some of them half-transparent PNGs, and of photographs if
CAPSMITH_DATA has any. `imagetext/reinforced/views.py` computes the pixels of each view in this process, and the
reference computes them in its own. They are compared bit by bit, before and after normalising, over all 14 operations.
Exit code 1 means that some differ although the versions of Pillow and torchvision are the same.
"""

import argparse
import io
import json
import os
import shutil
import sys
import tarfile
from collections import Counter
from pathlib import Path

import PIL
import torch
import torchvision
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from benchmarks.compat.replay_peer import sha
from benchmarks.compat.sets import MEAN, RUNS, STD, Set, as_png, run
from benchmarks.side_by_side import Peer
from imagetext.reinforced.views import OPERATIONS, decode_stored, normalise, read_views, replay
from imagetext.sources import read_samples

SCENES, SIDE = 16, 224
DATA = Path(os.environ.get("CAPSMITH_DATA", "../shared/data")) / "gbc_wiki" / "images" / "wiki"


def pictures() -> dict[str, bytes]:
    """Pictures by key: scenes, of which every fourth one is a half-transparent PNG, and unchanged photographs."""
    scenes = [sample for shard in read_samples(f"scenes:train,n={SCENES},level=3,size=160") for sample in shard]
    images = {}
    for number, sample in enumerate(scenes):
        images[sample.key] = as_png(sample.image) if number % 4 == 3 else sample.image
    for number, path in enumerate(sorted(DATA.glob("*.[jp]*g"))):
        images[f"photograph-{number:02d}"] = path.read_bytes()
    return images


def write_captioned(path: Path, images: dict[str, bytes]) -> None:
    """Write a shard of records with one caption each, to which `capsmith reinforce` adds views."""
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as archive:
        for key, image in images.items():
            for suffix, data in (("jpg", image), ("syn.json", json.dumps({"syn_text_x": ["a caption"]}).encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter of the reference's environment")
    parser.add_argument("--module", default="raygen.dr.transforms", help="module of the reference's transforms")
    parser.add_argument("--views", type=int, default=16, help="number of views for each picture")
    args = parser.parse_args()
    folder = (RUNS / "replay").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    write_captioned(folder / "captioned" / "00000.tar", pictures())
    run(
        "reinforce",
        "--input",
        str(folder / "captioned" / "*.tar"),
        "--output",
        str(folder / "views"),
        "--embeddings",
        "none",
        "--views",
        str(args.views),
        "--size",
        str(SIDE),
        "--num-workers",
        "0",
    )
    records = {key: files for key, files in Set(folder / "views").records.items() if "paug.json" in files}
    stored = []
    for key, files in records.items():
        (folder / key).write_bytes(files["jpg"])
        stored.append((str(folder / key), json.loads(files["paug.json"])))
    (folder / "views.json").write_text(json.dumps(stored))
    with Peer(
        args.peer_python,
        "compat/replay_peer.py",
        module=args.module,
        config=str(folder / "views" / "config.json"),
        views=str(folder / "views.json"),
    ) as peer:
        reference = peer.ready
    operations, differing = Counter(), Counter()
    for files, (decoded, *view_hashes) in zip(
        tqdm(records.values(), desc="ours", unit="picture"), reference["pixels"], strict=True
    ):
        image = decode_stored(files["jpg"])
        differing["pictures as decoded"] += sha(pil_to_tensor(image)) != decoded
        for view, before, after in zip(read_views(files["paug.json"]), *view_hashes, strict=True):
            pixels = replay(view, image, SIDE)
            operations.update(OPERATIONS[number] for number, _ in view[1])
            differing["views"] += sha(pixels) != before
            differing["views, normalised"] += sha(normalise(pixels, MEAN, STD)) != after
            differing["views of pictures that decode equally"] += (
                sha(pixels) != before and sha(pil_to_tensor(image)) == decoded
            )
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__}
    same = all(reference[name] == versions[name] for name in ("torchvision", "pillow"))
    print(f"ours {versions}\ntheirs, {args.module}: { {name: reference[name] for name in versions} }")
    photographs = sum(key.startswith("photograph") for key in records)
    print(
        f"{args.views * len(records)} views of {len(records)} pictures, {photographs} of them photographs; "
        f"operations {dict(operations.most_common())}\ndiffering: {dict(differing)}"
    )
    missing = set(OPERATIONS) - operations.keys()
    if missing:
        print(f"operations that were not drawn: {', '.join(sorted(missing))}")
    return bool(missing or same and any(differing.values()))


if __name__ == "__main__":
    sys.exit(main())
