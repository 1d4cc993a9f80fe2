"""The rules of docs/architecture.md: imports point down only, torch is imported late, dependencies are declared."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import capsmith

from .doubles import doubles

ROOT = Path(capsmith.__file__).parent
BELOW = {  # the other rooms that each room may import
    "imagetext": set(),
    "captioners": {"imagetext"},
    "diversity": {"imagetext", "captioners"},
    "generate": {"diversity", "captioners", "imagetext"},
    "finetune": {"diversity", "captioners", "imagetext"},
}
ONLY = {  # (importing room, imported room): only these files may be imported
    ("captioners", "imagetext"): {"imagetext.outputs", "imagetext.hashes", "imagetext.shown"},
    ("diversity", "captioners"): {"captioners.clip", "captioners.device", "captioners.english", "captioners.replies"},
}
FOLDERS = {  # the other folders of its room that each folder may import; a room's base files import no folder
    "imagetext": {
        "readers": set(),
        "writers": {"readers"},
        "sets": {"readers", "writers"},
        "reinforced": {"readers"},
        "scenes": {"readers"},
    },
    "captioners": {
        "decoding": set(),
        "coca": {"decoding"},
        "vlm": {"decoding"},
        "lm": {"decoding", "vlm"},
        "server": {"decoding"},
        "rules": {"decoding"},
    },
    "diversity": {
        "words": set(),
        "measures": {"words"},
        "inputs": {"measures", "words"},
        "verdict": {"measures", "words"},
        "page": {"measures", "verdict", "words"},
    },
    "generate": {
        "runs": set(),
        "sets": {"runs"},
        "captions": {"runs", "sets"},
        "select": {"runs", "captions"},
        "reinforce": {"runs", "captions"},
    },
    "finetune": {"captioner": set(), "zero_shot": set(), "student": {"captioner", "zero_shot"}},
}
ENTRIES = {
    "imagetext": {"sources", "patterns", "shards"},
    "captioners": {"load"},
    "diversity": {"run", "score", "sampled", "conclude", "notes", "examples", "report", "metric"},
    "generate": set(),
    "finetune": set(),
}  # the entry files of each room, which may import its folders
OURS = {*BELOW, "capsmith", "quickstart"}
NEEDS_TORCH = {"metric", "views", "embeddings"}  # files of the lower rooms that may import torch at their top level


def modules_imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere, including late imports and imports for types."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            candidates = {f"{module}.{alias.name}" for alias in node.names}
            names |= {name if is_module(name) else module for name in candidates}
    return names


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere; a relative import is one of its own room."""
    return {name.partition(".")[0] for name in modules_imported(path)}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def cycles(room: str) -> set[tuple[str, ...]]:
    """Groups of modules of a room that import one another, in any number of steps; each group is sorted."""
    modules = {module_of(path): path for path in files(room)}
    needs = {name: modules_imported(path) & modules.keys() for name, path in modules.items()}
    reached = {name: set(direct) for name, direct in needs.items()}
    for through in modules:  # Warshall's algorithm
        for needed in reached.values():
            if through in needed:
                needed |= reached[through]
    return {
        tuple(sorted(other for other in needed if name in reached[other]))
        for name, needed in reached.items()
        if name in needed
    }


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", BELOW)
def test_imports_point_down_only(room):
    assert files(room)
    wrong = {
        str(path.relative_to(ROOT)): names
        for path in files(room)
        if (names := (imported(path) & OURS) - BELOW[room] - {room})
    }
    assert wrong == {}


@pytest.mark.parametrize("rooms", ONLY, ids=lambda rooms: "-".join(rooms))
def test_of_some_rooms_only_some_files_are_imported(rooms):
    above, below = rooms
    others = {module_of(path) for path in files(below)} - ONLY[rooms]
    wrong = {str(path.relative_to(ROOT)): names for path in files(above) if (names := modules_imported(path) & others)}
    assert wrong == {}


@pytest.mark.parametrize("room", FOLDERS)
def test_folders_of_a_room_import_down_only_and_base_files_import_none(room):
    assert {path.parent.name for path in (ROOT / room).glob("*/__init__.py")} == set(FOLDERS[room])
    wrong = {}
    for path in files(room):
        folder, *within = path.relative_to(ROOT / room).parts
        allowed = (
            FOLDERS[room][folder] | {folder} if within else set(FOLDERS[room]) if path.stem in ENTRIES[room] else set()
        )
        needed = {name.split(".")[1] for name in modules_imported(path) if name.startswith(f"{room}.")}
        if needed & set(FOLDERS[room]) - allowed:
            wrong[str(path.relative_to(ROOT))] = needed & set(FOLDERS[room]) - allowed
    assert wrong == {}


@pytest.mark.parametrize("room", FOLDERS)
def test_every_folder_says_what_is_in_it(room):
    for path in (ROOT / room).glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("room", BELOW)
def test_no_files_import_one_another(room):
    assert list(cycles(room)) == []


def test_a_cycle_is_found_however_it_is_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    room = tmp_path / "generate"
    (room / "deep").mkdir(parents=True)
    for name, text in {
        "__init__": "from generate.a import x\n",
        "a": "import generate.b\n",
        "b": "from generate import c\nimport generate.d\n",
        "c": "def late():\n    from generate.a import x\n",
        "d": "import os\n",
        "deep/e": "from ..deep.f import x\n",
        "deep/f": "if TYPE_CHECKING:\n    from .e import x\n",
    }.items():
        (room / f"{name}.py").write_text(text)
    assert cycles("generate") == {("generate.a", "generate.b", "generate.c"), ("generate.deep.e", "generate.deep.f")}


def test_the_walk_sees_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "generate").mkdir()
    path = tmp_path / "generate" / "x.py"
    path.write_text(
        "import a.b as c\nfrom d.e import f\nfrom . import g\nfrom .h import i\ndef j():\n    import finetune.k\n"
    )
    assert imported(path) == {"a", "d", "generate", "finetune"}


@pytest.mark.parametrize("room", BELOW)
def test_every_import_is_declared(room):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "test" for line in lines]
    declared = {
        re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in [*project["dependencies"], *extras]
    }
    assert not declared & {
        "diversity",
        "finetune",
    }  # distributions of other projects that have the import names of our rooms
    distributions = packages_distributions()
    declared.add("triton")  # torch's CUDA builds require it; without it, its kernels are not used
    undeclared = {
        name
        for path in files(room)
        for name in imported(path) - OURS - set(sys.stdlib_module_names)
        if not declared & {each.lower().replace("_", "-") for each in distributions.get(name, [name])}
    }
    assert undeclared == set()


def test_torch_is_not_imported_before_it_is_needed():
    modules = [
        "capsmith",
        "quickstart",
        "captioners.base",
        "finetune.config",
        "finetune.captioner.config",
        "finetune.student.config",
        "finetune.zero_shot.config",
        "generate.captions.config",
        "generate.select.config",
        "generate.reinforce.config",
    ]
    modules += [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in ("imagetext", "diversity")
        for path in files(room)
        if path.stem not in NEEDS_TORCH
    ]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(f'{name} imports torch')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_users_own_generate_or_finetune_does_not_disturb_the_rooms_below(tmp_path):
    for name in ("generate", "finetune", "diversity", "capsmith", "quickstart"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the user has a {name}.py')\n")
    below = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in ("imagetext", "captioners")
        for path in files(room)
    ]
    script = tmp_path / "script.py"
    script.write_text("".join(f"import {name}\n" for name in below))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_double_is_found_indented_anew_and_between_imports():
    lines = [f"value_{number} = {number}" for number in range(12)]
    imports = [f"import module_{number}" for number in range(12)]
    files = {
        "whole.py": "\n".join([*imports, *lines]),
        "copied.py": "\n".join([*imports, "if True:", *(f"    {line}\n" for line in lines[2:11])]),
        "eight.py": "\n".join([*imports, *lines[:4], "import late", *lines[4:8], "other = 0", *lines[9:]]),
    }
    assert doubles(files) == ["whole.py:15 and copied.py:14 share 9 lines"]
    assert doubles({"twice.py": "\n".join([*lines, "other = 0", *lines])}) == [
        "twice.py:1 and twice.py:14 share 12 lines"
    ]
