"""What a run's folder may hold when the run begins; no model is loaded for it."""

import json

import pytest

from finetune.config import FinetuneConfig
from finetune.launch import CARRIED_OUT, DONE, prepare_output
from finetune.student_config import StudentConfig

SETTINGS = {"finetune": (FinetuneConfig, {"input": ["scenes:train,n=2"], "model": "coca_tiny"}),
            "train-student": (StudentConfig, {"input": ["reinforced/*.tar"], "student": "ViT-B-32"})}


@pytest.fixture(params=SETTINGS)
def configure(request, tmp_path):
    config, needed = SETTINGS[request.param]
    return lambda **changes: config(**{**needed, "output": tmp_path / "run", **changes})


def begun_by_0_1(config):
    """The folder of a run as capsmith 0.1 left it after its first checkpoint, which knew nothing of `seed`; its files."""
    (config.output / "checkpoints").mkdir(parents=True)
    (config.output / "checkpoints" / "000001000.pt").write_bytes(b"of 0.1")
    settings = config.model_dump(mode="json", exclude=CARRIED_OUT | {"seed"})
    (config.output / f"{config.command}.json").write_text(json.dumps(settings, indent=2))
    return files(config)


def files(config):
    return {path.name: path.read_bytes() for path in config.output.rglob("*") if path.is_file()}


@pytest.mark.parametrize("changes", [{}, {"learning_rate": 1.0}])
def test_what_an_earlier_version_began_is_refused_and_stays_as_it_is(configure, changes):
    before = begun_by_0_1(configure())
    with pytest.raises(ValueError, match="run: capsmith 0.1 began this run; finish it with capsmith 0.1, or --overwrite"):
        prepare_output(configure(**changes))
    assert files(configure()) == before


def test_overwrite_starts_anew_where_an_earlier_version_began(configure):
    config = configure(overwrite=True)
    begun_by_0_1(config)
    prepare_output(config)
    assert list(files(config)) == [f"{config.command}.json"]
    assert json.loads(files(config)[f"{config.command}.json"])["capsmith"] == "0.2"
    prepare_output(configure())


@pytest.mark.parametrize("done", DONE)
def test_what_an_earlier_version_finished_stays_finished(configure, done):
    begun_by_0_1(configure())
    (configure().output / done).write_text("{}")
    before = files(configure())
    prepare_output(configure())
    assert files(configure()) == before
    with pytest.raises(ValueError, match="other settings .*: learning_rate was .*, is 1.0$"):
        prepare_output(configure(learning_rate=1.0))


def test_other_settings_are_refused_and_how_it_is_carried_out_may_change(configure):
    prepare_output(configure())
    prepare_output(configure(num_workers=3, device="cpu"))
    with pytest.raises(ValueError, match="other settings .*: seed was 0, is 1$"):
        prepare_output(configure(seed=1))
