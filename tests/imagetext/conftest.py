import io
import os
import tarfile
from pathlib import Path

import pytest

DATA = Path(os.environ.get("CAPSMITH_DATA", Path(__file__).parents[2] / "../shared/data"))


def write_tar(path, files: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


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
