import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DATA = Path(os.environ.get("CAPSMITH_DATA", Path(__file__).parents[2] / "../shared/data"))


def picture(seed: int = 0, format: str = "JPEG", size: tuple[int, int] = (12, 8), **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def write_tar(path, files: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


@pytest.fixture(name="picture")
def picture_fixture():
    return picture


@pytest.fixture(name="write_tar")
def write_tar_fixture():
    return write_tar


@pytest.fixture
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"CAPSMITH_DATA: no {DATA}")
    return DATA


@pytest.fixture
def wiki() -> Path:
    folder = DATA / "gbc_wiki/images/wiki"
    if not folder.is_dir():
        pytest.skip(f"no real pictures at {folder} (see CAPSMITH_DATA)")
    return folder
