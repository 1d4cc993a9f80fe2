"""Make tars of pictures on all cores: `python -m benchmarks.gpu.photographs FOLDER TARS PICTURES WIDTH HEIGHT`.

The pictures are noise that is smooth at many scales, like photographs, so that JPEGs of 640 x 480 at quality 90 have
about 80 kB.
"""

import io
import os
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(job: tuple[int, int, int]) -> bytes:
    """Draw a JPEG; `job` is its seed, width and height."""
    seed, wide, high = job
    generator = np.random.default_rng(seed)
    pixels = np.zeros((high, wide, 3), np.float32)
    for cell, strength in ((160, 60), (40, 35), (10, 16), (3, 9), (1, 5)):  # distance of random numbers in pixels
        noise = generator.normal(0, strength, (-(-high // cell) + 1, -(-wide // cell) + 1, 3)).astype(np.float32)
        small = Image.fromarray((noise + 128).clip(0, 255).astype(np.uint8))
        pixels += np.asarray(small.resize((wide, high), Image.Resampling.BILINEAR), np.float32) - 128
    with io.BytesIO() as file:
        Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        return file.getvalue()


def main() -> None:
    folder, (tars, pictures, wide, high) = Path(sys.argv[1]), map(int, sys.argv[2:])
    jobs = [(seed, wide, high) for seed in range(tars * pictures)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        photographs = list(pool.map(photograph, jobs, chunksize=16))
    for number in range(tars):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for index in range(number * pictures, (number + 1) * pictures):
                for ending, data in (("jpg", photographs[index]), ("txt", b"a photograph")):
                    member = tarfile.TarInfo(f"{index:06}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
