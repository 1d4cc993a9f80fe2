"""`capsmith finetune` as a whole: validation, page, card and best weights; adapters; vision-language models."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError

import capsmith
from captioners.base import Request, SamplingConfig
from captioners.load import load_captioner
from finetune.batching import collate
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.forward import training_forward
from finetune.captioner.held_out import losses_on
from finetune.captioner.pictures import CaptionedPictures
from finetune.captioner.run import load, run
from finetune.checkpoints import Checkpoints
from finetune.optimizer import learning_rate
from finetune.rejects import check_rejects
from finetune.student.config import StudentConfig
from finetune.student.run import run as train_student
from finetune.trainer import Trainer
from generate.captions.config import GenerateConfig
from generate.captions.run import run as generate
from imagetext.sources import read_records, read_samples

from ..captioners.vlm.models import make_model_and_processor, scramble
from .cards import code_of
from .ranks import check_equal, gradients_of_a_step

SCENES = "scenes:train,n=40,size=48"


def settings(folder, **changes):
    return FinetuneConfig(
        **{
            "input": [SCENES],
            "model": "coca_tiny",
            "output": folder,
            "samples_seen": 64,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "num_workers": 0,
            "name": "mine",
            "device": "cpu",
            "hold_out": 2,
            "validate_every": 10**6,
        }
        | changes
    )


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(settings(folder, validate_every=24, eval_input=["scenes:test,n=9,size=48"], hold_out=6))
    return folder


def test_it_validates_while_it_trains_and_at_the_end(finished):
    validations = rows(finished / "validation.jsonl")
    assert [row["samples"] for row in validations] == [0, 24, 48, 64]  # the first validation is before training
    assert all(row["pictures"] == 6 and 0 < row["caption"] < 10 and 0 <= row["cider_d"] <= 10 for row in validations)
    assert all(key.startswith("test") for key in validations[0]["samples_shown"])


def test_a_disk_that_is_full_at_the_best_weights_is_told(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("captioners.coca.captioner.save_file", full)
    with pytest.raises(OSError, match="best: cannot be written: I/O error: No space left on device"):
        run(settings(tmp_path / "run", samples_seen=16, validate_every=8))
    monkeypatch.undo()
    run(settings(tmp_path / "run", samples_seen=16, validate_every=8))
    assert [row["samples"] for row in rows(tmp_path / "run" / "validation.jsonl")] == [0, 8, 16]


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path, monkeypatch):
    losses = iter([{"caption": loss} for loss in (1.0, float("nan"), 2.0)])  # at the start, the first step, the second
    monkeypatch.setattr("finetune.captioner.held_out.losses_on", lambda *_: next(losses))
    run(settings(tmp_path / "run", samples_seen=16, validate_every=8))
    assert [row["step"] for row in rows(tmp_path / "run" / "validation.jsonl")] == [0, 1, 2]
    weights = "open_clip_model.safetensors"
    assert (tmp_path / "run" / "best" / weights).read_bytes() == (tmp_path / "run" / weights).read_bytes()


def test_page_and_card_tell_of_it(finished):
    page, card = (finished / "training.html").read_text(), (finished / "README.md").read_text()
    assert "CIDEr-D" in page and page.count("data:image/jpeg") >= 6
    assert "6 pictures of scenes:test" in card and "coca_tiny" in card


def test_the_best_weights_are_kept(finished):
    best = min(rows(finished / "validation.jsonl")[1:], key=lambda row: row["caption"])
    same = all(
        torch.equal(a, b)
        for a, b in zip(
            *(load_captioner(str(folder)).model.state_dict().values() for folder in (finished, finished / "best")),
            strict=True,
        )
    )
    assert same == (best["samples"] == 64)


def test_pictures_held_out_are_not_trained_on(tmp_path, capsys):
    run(settings(tmp_path / "run", samples_seen=8))
    assert "over 38 pictures" in capsys.readouterr().out
    assert rows(tmp_path / "run" / "validation.jsonl")[-1]["pictures"] == 2


def test_a_mix_takes_its_inputs_by_weight(tmp_path, capsys):
    mix = [SCENES, "scenes:train,n=10,size=48,seed=1"]
    with pytest.raises(ValueError, match="--weights: 1 for 2 inputs"):
        run(settings(tmp_path / "run", input=mix, weights=[2.0]))
    run(settings(tmp_path / "other", input=mix, weights=[0.5, 2.0], hold_out=0))
    assert "1.6 passes over 50 pictures" in capsys.readouterr().out  # 64 of 20 + 20
    message = "--weights 0.04: is so small that none of the 10 pictures of this input would be trained on; 0.1 "
    with pytest.raises(ValueError, match=message):
        run(settings(tmp_path / "none", input=mix, weights=[1.0, 0.04], hold_out=0))


def test_adapters_train_alone_and_are_merged(tmp_path):
    run(settings(tmp_path / "run", lora_rank=4, ema=0.5, freeze_image=True))
    before, after = (load_captioner(name).model.state_dict() for name in ("coca_tiny", str(tmp_path / "run")))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name for name in before if name.endswith(("c_fc.weight", "c_proj.weight")) and not name.startswith("visual.")
    }
    open_clip.create_model(f"local-dir:{tmp_path / 'run'}", require_pretrained=True)
    best = load_captioner(str(tmp_path / "run" / "best")).model.state_dict()
    assert all(torch.equal(best[name], after[name]) for name in after)  # the only validation is the last


@pytest.mark.parametrize("frozen", [{"lora_rank": 2}, {"freeze_image": True}])
def test_frozen_weights_that_changed_since_the_run_began_are_told(frozen, tmp_path):
    base, changes = tmp_path / "base", frozen | {"model": str(tmp_path / "base"), "hold_out": 0}
    run(settings(base, samples_seen=8, hold_out=0))
    run(settings(tmp_path / "run", samples_seen=8, **changes))
    run(settings(base, samples_seen=16, hold_out=0))
    before = (tmp_path / "run" / "open_clip_model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="run: the weights of the model to start from have changed since"):
        run(settings(tmp_path / "run", samples_seen=16, **changes))
    assert (tmp_path / "run" / "open_clip_model.safetensors").read_bytes() == before
    trained = {"model": str(base), "hold_out": 0}  # all weights are in its checkpoints
    run(settings(tmp_path / "whole", samples_seen=8, **trained))
    run(settings(base, samples_seen=24, hold_out=0))
    run(settings(tmp_path / "whole", samples_seen=16, **trained))


def test_validation_sees_the_merged_adapters(tmp_path, monkeypatch):
    observed = {}

    def validate(captioner, pictures, **_):
        observed["pictures"] = [Request(*picture[:2]) for picture in pictures]
        observed["captions"] = [
            captioned.captions[0].logprob for captioned in captioner.caption(observed["pictures"], SamplingConfig())
        ]
        observed["steps"] = len(rows(tmp_path / "run" / "train.jsonl"))
        from finetune.validation import Validation

        return Validation({}, {}, {}, warning="")

    monkeypatch.setattr("finetune.captioner.held_out.validate", validate)
    run(settings(tmp_path / "run", lora_rank=4))
    assert observed["steps"] == 8  # all steps are in the log before the page is written
    written = load_captioner(str(tmp_path / "run")).caption(observed["pictures"], SamplingConfig())
    assert [captioned.captions[0].logprob for captioned in written] == pytest.approx(observed["captions"], abs=1e-4)


def test_what_is_written_has_the_umasks_rights(finished):
    os.umask(umask := os.umask(0))
    assert {oct(path.stat().st_mode & 0o777) for path in finished.rglob("*") if path.is_file()} == {
        oct(0o666 & ~umask)
    }


@pytest.mark.parametrize("language", ["capsmith", "python"])
def test_the_cards_snippets_print_a_caption(language, finished, tmp_path, capsys):
    (pictures := tmp_path / "pictures").mkdir()
    blocks = code_of(
        finished / "README.md",
        {
            "THIS_FOLDER": finished,
            "PICTURE.jpg": picture_in(pictures),
            "PICTURES": pictures,
            "CAPTIONS": tmp_path / "captions",
        },
    )
    if language == "capsmith":
        assert capsmith.main(blocks[0].split()[1:]) == 0
        (record,) = read_records(str(tmp_path / "captions" / "*.tar"))
        assert record.syn_text["syn_text_mine"]
        return
    assert len(blocks[1:-1]) == 2  # one by capsmith, one by open_clip alone
    for block in blocks[1:-1]:
        exec(block, {})
        assert len(capsys.readouterr().out.splitlines()[-1]) > 5


def picture_in(folder: Path) -> Path:
    path = folder / "picture.png"
    path.write_bytes(next(iter(read_records("scenes:test,n=1,size=48"))).image)
    return path


class Hub:
    """A fake Hub that records calls and fails `fails` times."""

    def __init__(self, *, role: str = "write", fails: int = 0):
        self.calls, self.role, self.fails = [], role, fails

    def __call__(self):
        return self

    def whoami(self):
        return {"name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": self.role}}}

    def create_repo(self, name, **options):
        self.calls.append((name, options))

    def upload_folder(self, **options):
        self.fails -= 1
        if self.fails >= 0:
            raise RuntimeError("503")
        self.calls.append(options)


def test_uploads_only_where_asked_and_only_the_captioner(tmp_path, monkeypatch):
    """Only the captioner's files and the card, privately; after a failure the same command tries again."""
    monkeypatch.setattr("huggingface_hub.HfApi", hub := Hub(fails=1))
    config = settings(tmp_path / "run", samples_seen=8, hold_out=0)
    run(config)
    assert hub.calls == []
    (tmp_path / "run" / "notes.json").write_text("of the user")
    config = config.model_copy(update={"push_to_hub": "lab/mine"})
    monkeypatch.setattr("finetune.captioner.run.load_captioner", None)  # so that it cannot be trained again
    with pytest.raises(OSError, match="(?s)503.*is finished in .*run; the same command tries the upload again"):
        run(config)
    assert run(config) == 0
    assert hub.calls[-2] == ("lab/mine", {"private": True, "exist_ok": True})
    files = {
        "README.md",
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert hub.calls[-1]["folder_path"] == tmp_path / "run" and set(hub.calls[-1]["allow_patterns"]) == files
    run(config.model_copy(update={"hub_public": True}))
    assert hub.calls[-2] == ("lab/mine", {"private": False, "exist_ok": True})


@pytest.mark.parametrize(
    "name, role, message",
    [
        ("other/mine", "write", "--push-to-hub other/mine: the token may only write to me, lab"),
        ("me/mine", "read", "--push-to-hub me/mine: the token may only read"),
        ("me/-mine", "write", "--push-to-hub me/-mine: "),
    ],
)
def test_the_hub_is_asked_before_any_work(name, role, message, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub(role=role))
    monkeypatch.setattr("finetune.captioner.run.run_in_ranks", None)
    with pytest.raises(ValueError, match=message):
        run(settings(tmp_path / "run", push_to_hub=name))


def test_no_token_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    monkeypatch.setattr("finetune.captioner.run.run_in_ranks", None)
    with pytest.raises(
        ValueError, match="--push-to-hub me/mine: there is no token; give one with `hf auth login` or HF_TOKEN"
    ):
        run(settings(tmp_path / "run", push_to_hub="me/mine"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"report_to": ["tensorboard"]}, "--report-to tensorboard: not installed; pip install tensorboard"),
        ({"eval_input": ["nowhere.tar"]}, "nowhere.tar: no such file"),
        ({"weights": [1, 2]}, "--weights: 2 for 1 inputs"),
        ({"device_batch_size": 3}, "--batch-size 8 is not a multiple of 1 processes times 3"),
        ({"shard": True}, "--shard: needs at least two processes, and there is one"),
    ],
)
def test_what_is_wrong_is_told_before_any_picture_is_read_and_nothing_is_left(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.launch.get_available_trackers", list)
    monkeypatch.setattr("finetune.captioner.run.load_captioner", None)
    with pytest.raises(ValueError, match=message):
        run(settings(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_captioner_that_has_no_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--model rules:negatives: has nothing to train"):
        load(settings(tmp_path / "run", model="rules:negatives"), torch.device("cpu"))


def test_an_output_that_is_the_input_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.captioner.run.load_captioner", None)
    monkeypatch.setattr("finetune.student.run.load_student", None)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("black")
    asked = {"input": [str(tmp_path)], "output": tmp_path / "run", "batch_size": 8, "samples_seen": 8}
    for command, config in (
        (run, FinetuneConfig(**asked, model="coca_tiny")),
        (train_student, StudentConfig(**asked, student="ViT-B-32", distill_weight=0, contrastive_weight=1)),
    ):
        with pytest.raises(ValueError, match="run: lies in a folder that is the input .*; give another folder"):
            command(config)
    assert sorted(os.listdir(tmp_path)) == ["a.png", "a.txt"]


def test_weights_that_are_not_finite_are_told_before_any_picture_is_read(tmp_path, monkeypatch):
    captioner = load_captioner("coca_tiny")
    with torch.no_grad():
        captioner.model.text.token_embedding.weight[3] = float("nan")
    captioner.save(tmp_path / "model", "mine")
    monkeypatch.setattr("finetune.captioner.run.CaptionedPictures", None)
    with pytest.raises(
        ValueError,
        match=r"model\.safetensors: 1 of its weights hold numbers that are not finite: text\.token",
    ):
        run(settings(tmp_path / "run", model=str(tmp_path / "model")))


def test_too_many_broken_pictures_stop_the_run(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.jpg").write_text("not a picture")
        (folder / f"{number}.txt").write_text("a red circle")
        (folder / f"mute{number}.png").write_bytes(
            picture_in(tmp_path).read_bytes()
        )  # pictures without a caption are no faults
    with pytest.raises(
        ValueError,
        match=r"(?s)6 of 46 samples cannot be used, 13.0%, and --max-error-rate allows 10.0%:\n  0: "
        r".*and 3 more",
    ):
        run(settings(tmp_path / "run", input=[SCENES, str(folder)]))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="--eval-input: 6 of 7 samples cannot be used, 85.7%, and --max-error-rate"):
        (folder / "good.png").write_bytes(picture_in(tmp_path).read_bytes())
        (folder / "good.txt").write_text("a red circle")
        run(settings(tmp_path / "run", eval_input=[str(folder)]))
    assert not (tmp_path / "run").exists()
    run(settings(tmp_path / "run", eval_input=[str(folder)], max_error_rate=0.9, samples_seen=8))
    assert len([row for row in rows(tmp_path / "run" / "rejects.jsonl") if "mute" not in row["key"]]) == 6
    check_rejects([("key", "broken")] * 6, 40, settings(tmp_path / "run", max_error_rate=0.2))


def test_more_samples_go_on_from_where_a_finished_run_ended(tmp_path):
    for samples, steps in ((16, [1, 2]), (24, [1, 2, 3])):
        run(settings(tmp_path / "run", samples_seen=samples, hold_out=0))
        assert [row["step"] for row in rows(tmp_path / "run" / "train.jsonl")] == steps
    assert "samples_seen: 24" in (tmp_path / "run" / "README.md").read_text()


def test_the_first_step_of_a_longer_run_has_its_learning_rate(tmp_path):
    """The rate in the checkpoint is that of the shorter run's end, 0."""
    for samples in (32, 64):
        run(settings(tmp_path / "run", samples_seen=samples, hold_out=0))
    rates = [row["learning_rate"] for row in rows(tmp_path / "run" / "train.jsonl")]
    assert rates[4:] == [1e-3 * learning_rate(step, 8, 0.05) for step in range(4, 8)]


def test_a_captioner_is_fine_tuned_onto_itself(tmp_path):
    """With `--model X --output X --overwrite`, X stays whole until the new model is written."""
    short = {"samples_seen": 8, "hold_out": 0}
    run(settings(tmp_path / "run", **short))
    (tmp_path / "copy").mkdir()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    shutil.copytree(tmp_path / "run", tmp_path / "copy", dirs_exist_ok=True)
    for name, model in (("run", "run"), ("other", "copy")):
        run(settings(tmp_path / name, model=str(tmp_path / model), overwrite=True, **short))
    assert {path.name for path in (tmp_path / "run").iterdir()} == names
    ours, theirs = (load_captioner(str(tmp_path / name)).model.state_dict() for name in ("run", "other"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_there_are_eight_validations_and_one_before_the_first_step(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "finetune.captioner.held_out.HeldOut.__call__", lambda self, trainer, step, samples: seen.append(samples)
    )
    monkeypatch.setattr(Checkpoints, "save", lambda *_, **__: None)
    monkeypatch.setattr("finetune.captioner.run.finish", lambda *_, **__: None)
    run(settings(tmp_path / "run", samples_seen=128, batch_size=4, validate_every=None))
    assert seen == list(range(0, 129, 16))


def test_a_batch_that_processes_cannot_share_is_told_before_any_starts(tmp_path):
    with pytest.raises(ValueError, match="--batch-size 7 is not a multiple of 2 processes"):
        run(settings(tmp_path / "other", batch_size=7, num_processes=2))


def test_accelerates_launcher_that_starts_one_process_is_found_out(tmp_path, monkeypatch):
    (tmp_path / "above.py").write_text("import json, psutil; print(json.dumps(psutil.Process().parent().cmdline()))")
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        str(tmp_path / "above.py"),
    ]
    above = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    parent = SimpleNamespace(cmdline=lambda: above)
    monkeypatch.setattr("finetune.launch.psutil.Process", lambda: SimpleNamespace(parent=lambda: parent))
    with pytest.raises(ValueError, match="accelerate launch started one process, not 2"):
        run(settings(tmp_path / "run"))


# Vision-language models


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """Return a folder with a tiny random BLIP."""
    torch.manual_seed(0)
    model, processor = make_model_and_processor("blip")
    scramble(model)
    folder = tmp_path_factory.mktemp("blip")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


FOUR_BIT = pytest.param(
    {"lora_rank": 4, "four_bit": True},
    id="QLoRA",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("bitsandbytes") is None, reason="weights in 4 bits need bitsandbytes"
    ),
)


@pytest.mark.parametrize("how", [pytest.param({}, id="full"), pytest.param({"lora_rank": 4}, id="LoRA"), FOUR_BIT])
def test_a_vision_language_model_is_fine_tuned_and_captions(vlm, how, tmp_path):
    run(settings(tmp_path / "run", model=str(vlm), samples_seen=240, learning_rate=2e-2, device_batch_size=4, **how))
    losses = [row["caption"] for row in rows(tmp_path / "run" / "train.jsonl")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]) and "contrastive" not in rows(tmp_path / "run" / "train.jsonl")[0]
    for folder in (tmp_path / "run", tmp_path / "run" / "best"):
        assert (folder / ("adapter_config.json" if how else "config.json")).exists()
    card = (tmp_path / "run" / "README.md").read_text()
    assert (
        f"library_name: {'peft' if how else 'transformers'}" in card and "# mine" in card and "open_clip" not in card
    )
    generate(
        GenerateConfig(
            input=["scenes:test,n=3,size=48"],
            model=str(tmp_path / "run"),
            output=tmp_path / "records",
            num_workers=0,
            redraws=0,
            on_degenerate="keep",
        )
    )
    records = list(read_records(str(tmp_path / "records" / "*.tar")))
    assert len(records) == 3 and all(len(record.syn_text["syn_text_mine"]) == 5 for record in records)


def test_adapters_are_as_the_flags_say(vlm, tmp_path):
    flags = {"lora_rank": 4, "lora_alpha": 2, "lora_dropout": 0.25, "lora_targets": ["query", "value"]}
    captioner = load_captioner(str(vlm))
    forward = training_forward(captioner, settings(tmp_path, model=str(vlm), lora_merge=True, **flags))
    adapter = captioner.adapter.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (4, 2, 0.25) and forward.library == "transformers"
    adapted = {name for name, _ in captioner.model.named_parameters() if "lora_A" in name}
    assert adapted and all(
        name.startswith("text_decoder") and (".query." in name or ".value." in name) for name in adapted
    )
    captioner.save(tmp_path / "whole", "mine")
    assert (tmp_path / "whole" / "config.json").exists() and not (tmp_path / "whole" / "adapter_config.json").exists()
    forward = training_forward(load_captioner("coca_tiny"), settings(tmp_path, **flags | {"lora_targets": ["c_fc"]}))
    layer = forward.adapter.model.text.transformer.resblocks[0].mlp
    assert layer.c_fc.scaling["default"] == 0.5 and not hasattr(layer.c_proj, "scaling")


@pytest.mark.parametrize(
    "model, flags, message",
    [
        (
            "coca_tiny",
            {"lora_rank": 2, "lora_targets": ["q_proj"]},
            "--lora-targets q_proj: CoCa can only have adapters in c_fc and c_proj",
        ),
        (
            "vlm",
            {"lora_rank": 2, "lora_targets": ["query", "nowhere"]},
            "--lora-targets query nowhere: the language model has no layer nowhere; its linear layers are .*query",
        ),
        ("vlm", {"lora_merge": True}, "--lora-merge: .* has no adapters"),
    ],
)
def test_adapters_that_a_model_cannot_have_are_refused(vlm, tmp_path, model, flags, message):
    name = str(vlm) if model == "vlm" else model
    with pytest.raises(ValueError, match=message):
        training_forward(load_captioner(name), settings(tmp_path, model=name, **flags))


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"lora_alpha": 2}, "is a setting of adapters: add --lora-rank"),
        ({"lora_rank": 4, "lora_targets": ["q_proj,v_proj"]}, "is not the name of a layer; give each name its own"),
        ({"lora_rank": 4, "lora_merge": True, "four_bit": True}, "adapters cannot be merged into weights in 4 bits"),
    ],
)
def test_settings_of_adapters_that_contradict_each_other_are_refused(tmp_path, flags, message):
    with pytest.raises(ValidationError, match=message):
        settings(tmp_path, **flags)


def test_pictures_of_several_shapes_are_one_batch(tmp_path):
    """A batch gives the same result as each picture alone, however the batch is split."""
    torch.manual_seed(0)
    model, processor = make_model_and_processor("internvl")
    scramble(model)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    captioner = load_captioner(str(tmp_path / "model"))
    forward = training_forward(captioner, settings(tmp_path / "run", model=str(tmp_path / "model")))
    captions = [
        [captioner.encode_text_ids(text)] for text in ("a red circle", "two green stars", "a star", "a blue square")
    ]
    pictures = [
        captioner.preprocess(Image.effect_noise(size, 60).convert("RGB"))
        for size in ((32, 32), (64, 32), (40, 90), (32, 32))
    ]
    batch = collate(
        [(picture, ids, number, str(number)) for number, (picture, ids) in enumerate(zip(pictures, captions))],
        captioner.pad_id,
    )
    with torch.no_grad():
        alone = [captioner.caption_logits([picture], torch.tensor(ids))[0] for picture, ids in zip(pictures, captions)]
        for count in (1, 2):
            parts = batch.parts(count, torch.device("cpu"), captioner.pad_id)
            logits = torch.cat([forward(part.images, part.tokens)["logits"] for part in parts])
            torch.testing.assert_close(logits, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_held_out_losses_are_without_dropout(vlm, tmp_path):
    captioner = load_captioner(str(vlm))
    pictures = CaptionedPictures(read_samples([SCENES]), captioner, quiet=True)
    config = settings(tmp_path, model=str(vlm), lora_rank=4)
    trainer = Trainer(config, training_forward(captioner, config), pictures)
    with torch.no_grad():
        for weight in trainer.weights.weights.values():
            weight += 0.1 * torch.randn_like(weight)
    assert losses_on(pictures, trainer) == losses_on(pictures, trainer) and trainer.forward.training


def test_activations_may_be_computed_twice(vlm):
    """This includes adapters, where the inputs of the layers need no gradients."""
    for lora_rank in (0, 4):
        twice, once = (
            gradients_of_a_step(model=str(vlm), lora_rank=lora_rank, grad_checkpointing=checkpointing)
            for checkpointing in (True, False)
        )
        check_equal(twice, once)


def test_what_the_model_cannot_have_is_refused(vlm, tmp_path):
    with pytest.raises(ValueError, match="--layer-decay 0.5"):
        run(settings(tmp_path / "one", model=str(vlm), layer_decay=0.5))
    with pytest.raises(ValueError, match="--caption-weight 0: .* is a vision-language model"):
        run(settings(tmp_path / "one", model=str(vlm), caption_weight=0))
    with pytest.raises(
        ValueError, match="--four-bit: is for vision-language models of transformers, and coca_tiny is not one of them"
    ):
        run(settings(tmp_path / "two", lora_rank=4, four_bit=True))
    captioner = load_captioner(str(vlm))
    captioner.add_lora(r=2)
    captioner.save(tmp_path / "adapters", "mine")
    with pytest.raises(ValueError, match="--lora-rank 4: mine has adapters of rank 2"):
        run(settings(tmp_path / "three", model=str(tmp_path / "adapters"), lora_rank=4))
    with pytest.raises(ValidationError, match="weights in 4 bits cannot be trained: add --lora-rank"):
        settings(tmp_path, four_bit=True)
