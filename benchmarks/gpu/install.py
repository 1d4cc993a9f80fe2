"""Make an environment on a GPU machine without a package index: `python3 -m benchmarks.gpu.install .gpu-wheels
FOLDER`.

The environment has the wheels of `make gpu-wheels`, then the packages of the interpreter that runs this, and capsmith
from this checkout. FOLDER-peer is an environment of the same kind for the paper's loop, with the wheels of
`.gpu-wheels/peer`. This needs only Python with pip.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make(folder: Path, wheels: list[Path]) -> Path:
    """Make an environment with these wheels before this interpreter's packages; return the folder of its packages."""
    if not wheels:
        raise SystemExit(f"{folder}: there are no wheels to install; `make gpu-wheels` collects them")
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # --system-site-packages is no help: if this interpreter is itself in an environment, it gives the packages of the
    # interpreter below it.
    folders = dict.fromkeys(
        [
            *(path for path in sys.path if path.endswith(("site-packages", "dist-packages"))),
            sysconfig.get_path("purelib"),
            sysconfig.get_path("platlib"),
        ]
    )
    (site / "zz_machine.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in folders))
    subprocess.run(
        [
            folder / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--ignore-installed",
            "--no-compile",
            "--disable-pip-version-check",
            *wheels,
        ],
        check=True,
    )
    return site


def main() -> None:
    wheels, folder = map(Path, sys.argv[1:])
    site = make(folder, sorted(wheels.glob("*.whl")))
    for name in ("capsmith.py", "quickstart.py", "captioners", "diversity", "finetune", "generate", "imagetext"):
        installed = site / name  # only metadata and command come from the wheel, code from the checkout
        shutil.rmtree(installed) if installed.is_dir() else installed.unlink()
    (site / "capsmith.pth").write_text(f"{ROOT}\n")
    make(folder.with_name(f"{folder.name}-peer"), sorted((wheels / "peer").glob("*.whl")))


if __name__ == "__main__":
    main()
