"""What a run's folder may hold at its start, and what happens to an earlier run; no model is loaded."""

import json
import os
from functools import partial
from types import SimpleNamespace

import pytest

import finetune.folder
from finetune.captioner.config import FinetuneConfig
from finetune.folder import (
    BEFORE,
    DONE,
    EXECUTION_SETTINGS,
    _names_of_run,
    check_output,
    is_done,
    remove_earlier_run,
    remove_leftovers,
    run_folder,
    with_current_paths,
    with_settled,
    write_finished,
)
from finetune.student.config import StudentConfig

SETTINGS = {
    "finetune": (FinetuneConfig, {"input": ["scenes:train,n=2"], "model": "coca_tiny"}),
    "train-student": (StudentConfig, {"input": ["reinforced/*.tar"], "student": "ViT-B-32"}),
}
STATE = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)


class Model:
    """A model that saves two files; the config holds its content."""

    def __init__(self, what: str):
        self.what = what

    def save(self, folder, *name):
        (folder / "weights.safetensors").write_text(self.what)
        (folder / "open_clip_config.json").write_text(self.what)


class Died(BaseException):
    """Raised where a process is killed: no code of the run handles it."""


@pytest.fixture(params=SETTINGS)
def configure(request, tmp_path):
    config, needed = SETTINGS[request.param]
    return lambda **changes: config(**{**needed, "output": tmp_path / "run", **changes})


def train(config, *, checkpoint: bool = True, finish: str = "", error: BaseException | None = None, read=None):
    """Imitate a run that reads its inputs, may write a checkpoint, and ends, finished or with an error."""
    check_output(config)
    with run_folder(config, read or {"in.tar": "1234"}, STATE):
        (config.output / "train.jsonl").write_text("new")
        if checkpoint:
            (config.output / "checkpoints").mkdir(exist_ok=True)
            (config.output / "checkpoints" / "000000005.pt").write_text(finish)
            remove_earlier_run(config)
        if error:
            raise error
        if finish:
            write_finished(config, Model(finish))


def test_what_a_record_names_outside_the_folder_is_not_the_runs(configure, tmp_path):
    config, outside = configure(overwrite=True), tmp_path / "somebody's"
    outside.mkdir()
    config.output.mkdir()
    (config.output / "weights.safetensors").write_text("ours")
    record = {"files": ["weights.safetensors", "../somebody's", str(outside / "x"), "gone"]}
    assert _names_of_run(config.output, record) == ["weights.safetensors"]


def begun_by_0_1(config):
    """Make a run's folder as capsmith 0.1, which had no `seed`, left it after a checkpoint; return its files."""
    (config.output / "checkpoints").mkdir(parents=True)
    (config.output / "checkpoints" / "000001000.pt").write_bytes(b"of 0.1")
    settings = config.model_dump(mode="json", exclude=EXECUTION_SETTINGS | {"seed"})
    (config.output / f"{config.command}.json").write_text(json.dumps(settings, indent=2))
    return files(config)


def files(config):
    output = config.output
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.mark.parametrize("changes", [{}, {"learning_rate": 1.0}])
def test_what_an_earlier_version_began_is_refused_and_stays_as_it_is(configure, changes):
    before = begun_by_0_1(configure())
    with pytest.raises(
        ValueError, match="run: capsmith 0.1 began this run; finish it with capsmith 0.1, or --overwrite"
    ):
        check_output(configure(**changes))
    assert files(configure()) == before


def test_overwrite_starts_anew_where_an_earlier_version_began(configure):
    config = configure(overwrite=True)
    begun_by_0_1(config)
    train(config)
    assert set(files(config)) == {f"{config.command}.json", "train.jsonl", "checkpoints/000000005.pt"}
    assert json.loads(files(config)[f"{config.command}.json"])["capsmith"] == "0.2"
    check_output(configure())


@pytest.mark.parametrize("done", DONE)
def test_what_an_earlier_version_finished_stays_finished(configure, done):
    begun_by_0_1(configure())
    (configure().output / done).write_text("{}")
    before = files(configure())
    check_output(configure())
    assert files(configure()) == before and is_done(configure())
    with pytest.raises(ValueError, match="other settings .*: learning_rate was .*, is 1.0$"):
        check_output(configure(learning_rate=1.0))


def test_other_settings_are_refused_and_how_it_is_carried_out_may_change(configure):
    train(configure())
    check_output(configure(num_workers=3, device="cpu", validate_every=9))
    with pytest.raises(ValueError, match="other settings .*: seed was 0, is 1$"):
        check_output(configure(seed=1))


@pytest.mark.parametrize(
    "recorded, given, used",
    [
        ("torch", None, "torch"),
        ("onednn", None, "onednn"),
        ("torch", "torch", "torch"),
        ("absent", None, "onednn"),  # begun before there was the setting
        ("absent", "onednn", "onednn"),
    ],
)
def test_a_resumed_run_keeps_the_library_that_it_has_settled(tmp_path, recorded, given, used):
    config = FinetuneConfig(**SETTINGS["finetune"][1], output=tmp_path / "run")
    assert with_settled(config).products is None
    train(config.model_copy(update={"products": recorded}))
    if recorded == "absent":
        record = json.loads((path := config.output / "finetune.json").read_text())
        del record["products"]
        path.write_text(json.dumps(record))
    resumed = config.model_copy(update={"products": given})
    check_output(resumed)
    assert with_settled(resumed).products == used
    other = config.model_copy(update={"products": {"torch": "onednn", "onednn": "torch"}[used]})
    with pytest.raises(ValueError, match=f"other settings .*: products was '{used}', is '{other.products}'$"):
        check_output(other)
    assert with_settled(config.model_copy(update={"overwrite": True})).products is None


def test_a_setting_that_the_record_does_not_know_was_left_at_its_default(configure):
    """A setting that the version of the finished run did not have counts as a difference if it is given."""
    train(config := configure(), finish="model")
    record = json.loads((path := config.output / f"{config.command}.json").read_text())
    del record["ema"]
    path.write_text(json.dumps(record))
    check_output(config)
    with pytest.raises(ValueError, match="other settings .*: ema was 0.0, is 0.5$"):
        check_output(configure(ema=0.5))


@pytest.mark.parametrize(
    "damage, problem",
    [
        (lambda record: "", "Expecting value"),
        (lambda record: "[" * 100_000, "maximum recursion depth exceeded"),
        (lambda record: [1], "expected a JSON object, got list"),
        (lambda record: record | {"samples_seen": None}, "samples_seen: Input should be a valid integer"),
        (lambda record: record | {"finished": "x"}, "finished: Input should be a valid integer"),
        (lambda record: record | {"read": 1}, "read: Input should be a valid dictionary"),
        (lambda record: record | {"files": [1]}, "files.0: Input should be a valid string"),
        (lambda record: record | {"products": "x"}, "products: Input should be 'torch' or 'onednn'"),
    ],
)
def test_a_damaged_record_is_refused_and_the_folder_stays_as_it_is(configure, damage, problem):
    config = configure()
    train(config, finish="a")
    path = config.output / f"{config.command}.json"
    damaged = damage(json.loads(path.read_text()))
    path.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    before = {file: file.read_bytes() for file in config.output.rglob("*") if file.is_file()}
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=f"{path.name}: is no record of a run of ours: {problem}"):
            train(configure(overwrite=overwrite))
        assert {file: file.read_bytes() for file in config.output.rglob("*") if file.is_file()} == before


def test_a_failed_start_locks_nothing(configure):
    with pytest.raises(Died):
        train(configure(), checkpoint=False, error=Died())
    train(configure(seed=1))
    assert json.loads(files(configure())[f"{configure().command}.json"])["seed"] == 1


@pytest.mark.parametrize("error", [ValueError("NaN"), KeyboardInterrupt()], ids=["fails", "interrupted"])
def test_what_overwrite_replaces_is_put_back_where_the_new_run_has_no_checkpoint(configure, error):
    train(configure(), finish="the old")
    (configure().output / "notes.txt").write_text("the user's")
    before = files(configure())
    with pytest.raises(type(error)):
        train(configure(seed=1, overwrite=True), checkpoint=False, error=error)
    assert files(configure()) == before and is_done(configure())


@pytest.mark.parametrize("calls", range(1, 9))
def test_a_killed_start_is_undone_by_the_next_command(configure, calls, monkeypatch):
    """It is killed at each move when it is moved aside, and then at each move when it is put back."""
    train(configure(), finish="the old")
    before, replace, calls_left = files(configure()), os.replace, [calls]

    def dies(*paths):
        calls_left[0] -= 1
        if calls_left[0] < 0:
            raise Died
        replace(*paths)

    monkeypatch.setattr(finetune.folder, "_put_back", lambda *_: None)  # because a killed process puts nothing back
    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(Died):
        train(configure(seed=1, overwrite=True), checkpoint=False, error=Died())
    monkeypatch.undo()
    monkeypatch.setattr(os, "replace", dies)
    for _ in range(9):
        calls_left[0] = 1
        try:
            check_output(configure())
            break
        except Died:
            continue
    assert files(configure()) == before and is_done(configure())


def test_a_run_that_is_killed_while_it_finishes_ends_as_one_that_was_not(configure, tmp_path, monkeypatch):
    """The run is killed at each file that is renamed or removed, and then started again."""
    begin = configure(output=tmp_path / "undisturbed")
    train(begin, finish="the model")
    expected, killed = files(begin), True
    calls = {name: getattr(os, name) for name in ("replace", "unlink", "rmdir")}
    for number in range(99):
        if not killed:
            break
        killed, calls_left = False, [number]
        config = configure(output=tmp_path / str(number))
        (config.output / "checkpoints").mkdir(parents=True)
        for name in ("000000003.pt", "000000004.pt"):  # a finished run no longer needs these
            (config.output / "checkpoints" / name).write_text("old")

        def dies(real, *args, **kwargs):
            calls_left[0] -= 1
            if calls_left[0] < 0:
                raise Died
            return real(*args, **kwargs)

        with run_folder(config, {"in.tar": "1234"}, STATE):
            (config.output / "train.jsonl").write_text("new")
            (config.output / "checkpoints" / "000000005.pt").write_text("the model")
        for name, real in calls.items():
            monkeypatch.setattr(os, name, partial(dies, real))
        try:
            write_finished(config, Model("the model"))
        except Died:
            killed = True
        monkeypatch.undo()
        check_output(config)
        if is_done(config):
            remove_leftovers(config)
        else:
            train(config, finish="the model")
        assert files(config) == expected
    assert number > 8


def test_after_a_checkpoint_the_earlier_run_is_gone(configure):
    train(configure(), finish="the old")
    with pytest.raises(KeyboardInterrupt):
        train(configure(seed=1, overwrite=True), error=KeyboardInterrupt())
    assert set(files(configure())) == {f"{configure().command}.json", "train.jsonl", "checkpoints/000000005.pt"}
    check_output(configure(seed=1))


def test_a_model_that_lies_in_the_folder_is_kept_until_the_new_one_is_written(configure):
    """`--model X --output X --overwrite`, interrupted and resumed."""
    output, name = configure().output, "model" if configure().command == "finetune" else "student"
    train(configure(), finish="the old")
    onto = configure(**{name: str(output)}, overwrite=True)
    assert with_current_paths(onto) == onto
    with pytest.raises(KeyboardInterrupt):
        train(onto, error=KeyboardInterrupt())
    assert getattr(with_current_paths(onto), name) == str(output / BEFORE)
    assert (output / BEFORE / "weights.safetensors").read_text() == "the old"
    with pytest.raises(ValueError, match="holds an unfinished run, which still needs the model that you start from"):
        check_output(onto)
    train(configure(**{name: str(output)}), finish="the new")
    assert (output / "weights.safetensors").read_text() == "the new" and not (output / BEFORE).exists()


def test_more_samples_than_a_finished_run_had_go_on(configure):
    train(configure(samples_seen=100), finish="the old")
    assert is_done(configure(samples_seen=100)) and not is_done(configure(samples_seen=200))
    check_output(configure(samples_seen=200))
    with pytest.raises(ValueError, match="samples_seen was 100, is 50"):
        check_output(configure(samples_seen=50))
    with pytest.raises(KeyboardInterrupt):
        train(configure(samples_seen=200), error=KeyboardInterrupt())
    assert (configure().output / "weights.safetensors").read_text() == "the old"
    assert not is_done(configure(samples_seen=200))
    train(configure(samples_seen=200), finish="the new")
    assert is_done(configure(samples_seen=200))
    (configure().output / "checkpoints" / "000000005.pt").unlink()
    with pytest.raises(ValueError, match="no checkpoint left to go on from"):
        check_output(configure(samples_seen=300))


def test_input_that_changed_since_the_run_began_is_told(configure):
    with pytest.raises(KeyboardInterrupt):
        train(configure(), read={"a.tar": "1", "b.tar": "2"}, error=KeyboardInterrupt())
    before = files(configure())
    with pytest.raises(ValueError, match="(?s)inputs have changed since the run began.*a.tar\n  c.tar$"):
        train(configure(), read={"a.tar": "3", "b.tar": "2", "c.tar": "4"})
    assert files(configure()) == before
    train(configure(), read={"a.tar": "1", "b.tar": "2"})


def test_a_folder_that_is_not_ours_is_refused_and_so_is_one_that_cannot_be_written(configure, monkeypatch):
    configure().output.mkdir()
    monkeypatch.setattr(os, "access", lambda path, how: False)
    with pytest.raises(ValueError, match="run: you have no right to write there"):
        check_output(configure())
    (configure().output / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="run: the folder is not empty and not a run of capsmith"):
            check_output(configure(overwrite=overwrite))
