"""The wheel holds everything that is needed, and its command starts fast; the make targets and CI's check work."""

import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import capsmith

ROOT = Path(capsmith.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = [pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
MODULES = PROJECT["tool"]["setuptools"]["py-modules"]


def run(*command: object, **options) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built in a copy of the tree, so that no build folder is left in the tree or gets into the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", *(f"{module}.py" for module in MODULES)):
        shutil.copy(ROOT / name, folder)
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('.')", cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A fresh environment with only the wheel in it, which can also see the distributions that are installed here."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "installed.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin" / "python",
        "install",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
        wheel,
    )
    return folder


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"{module}.py" for module in MODULES}
    for room in ROOMS:
        expected |= {
            str(path.relative_to(ROOT))
            for path in (ROOT / room).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
    assert names == expected


def test_the_wheel_holds_the_shipped_captioners(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "captioners/models/coca_tiny/open_clip_config.json",
        "captioners/models/coca_small/open_clip_config.json",
    } <= names
    weights = "captioners/models/coca_tiny/open_clip_model.safetensors"
    assert weights in names
    assert zipfile.ZipFile(wheel).getinfo(weights).file_size <= 10_000_000


def test_the_command_runs_from_the_wheel_in_under_a_second_of_cpu(environment, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = run(environment / "bin" / "capsmith", "--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(command in text for command in capsmith.COMMANDS)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    assert run(environment / "bin" / "capsmith", "--version", cwd=tmp_path) == "capsmith 0.2.0\n"


@pytest.mark.parametrize("argv", [["--help"], *([command, "--help"] for command in capsmith.COMMANDS)])
def test_help_comes_from_the_wheel_without_torch(environment, tmp_path, argv):
    code = (
        "import sys, capsmith\n"
        "try: capsmith.main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
        "print(capsmith.__file__)"
    )
    where = run(environment / "bin" / "python", "-c", code, *argv, cwd=tmp_path).splitlines()[-1]
    assert Path(where).is_relative_to(environment)


# --- make and CI -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target, last",
    [
        ("quickstart", ".venv/bin/capsmith quickstart --output runs/quickstart"),
        ("test", "OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --dist loadfile"),
        ("pretrain-tiny", ".venv/bin/python -m finetune.captioner.pretrain_tiny"),
    ],
)
def test_make_installs_first_and_only_once(tmp_path, target, last):
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    make = (
        "make",
        "-n",
        "--no-print-directory",
        target,
    )  # the suite itself may run under make, and would pass on make's level and flags
    planned = run(*make, cwd=tmp_path)
    assert "-m venv .venv" in planned and "--editable ." in planned
    assert planned.strip().splitlines()[-1].strip() == last
    (tmp_path / ".venv").mkdir()
    for stamp in ("installed", "installed-test"):
        (tmp_path / ".venv" / stamp).touch()
    assert run(*make, cwd=tmp_path).strip() == last
    later = (tmp_path / ".venv" / "installed-test").stat().st_mtime + 5
    os.utime(tmp_path / "pyproject.toml", (later, later))
    assert "--editable ." in run(*make, cwd=tmp_path)


def test_make_help_says_what_every_target_does():
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY: "))
    listed = [line.split(maxsplit=1) for line in run("make", "--no-print-directory", "help", cwd=ROOT).splitlines()]
    assert sorted(name for name, _ in listed) == sorted(phony.split()[1:])
    assert all(sentence[0].isupper() and sentence.endswith(".") for _, sentence in listed)


@pytest.mark.parametrize(
    "output, make_code, code",
    [
        ("10 passed", 0, 0),
        ("SKIPPED [2] tests/x.py:3: needs a CUDA device", 0, 0),
        ("SKIPPED [1] tests/x.py:3: CAPSMITH_DATA: no folder ../shared/data", 0, 0),
        ("SKIPPED [2] tests/x.py:3: needs a CUDA device\nSKIPPED [1] tests/x.py:9: flaky", 0, 1),
        ("1 failed", 2, 2),
    ],
)
def test_ci_fails_on_failures_and_on_skips_that_are_not_listed(tmp_path, output, make_code, code):
    make = tmp_path / "make"
    make.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {make_code}\n")
    make.chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci" / "run"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert output in done.stdout
    assert ("does not list" in done.stdout) == ("flaky" in output)
