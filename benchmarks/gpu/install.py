"""An environment for a GPU machine without a package index: `python3 -m benchmarks.gpu.install .gpu-wheels FOLDER`.

It sees the packages of the interpreter that runs this, with the wheels of `make gpu-wheels` before them, and capsmith as it lies
in this checkout. FOLDER-peer is the same for the paper's loop, with the wheels of `.gpu-wheels/peer`. Needs nothing but Python
with pip.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make(folder: Path, wheels: list[Path]) -> Path:
    """An environment of that folder, made anew, with these wheels over this interpreter's packages; its own packages' folder."""
    if not wheels:
        raise SystemExit(f"{folder}: there are no wheels to install; `make gpu-wheels` collects them")
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # by hand: --system-site-packages would show those of the interpreter below this one, where this one is an environment itself
    seen = dict.fromkeys(
        [
            *(path for path in sys.path if path.endswith(("site-packages", "dist-packages"))),
            sysconfig.get_path("purelib"),
            sysconfig.get_path("platlib"),
        ]
    )
    (site / "zz_machine.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in seen))
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
        installed = site / name  # the wheel brings capsmith's metadata and its command; its code is the checkout's
        shutil.rmtree(installed) if installed.is_dir() else installed.unlink()
    (site / "capsmith.pth").write_text(f"{ROOT}\n")
    make(folder.with_name(f"{folder.name}-peer"), sorted((wheels / "peer").glob("*.whl")))


if __name__ == "__main__":
    main()
