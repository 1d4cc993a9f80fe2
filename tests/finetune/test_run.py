"""`capsmith finetune` as a whole: validation, page, card and best weights; adapters; vision-language models."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from captioners.base import SamplingConfig
from captioners.coca import load_captioner
from finetune.batching import CaptionedPictures, collate
from finetune.config import FinetuneConfig
from finetune.forward import training_forward
from finetune.held_out import losses_on
from finetune.run import run
from finetune.trainer import Trainer
from generate.config import GenerateConfig
from generate.engine import run as generate
from imagetext.sources import read_records, read_samples

from ..captioners.vlm.models import make_model_and_processor, scramble
from .ranks import check_equal, gradients_of_a_step

SCENES = "scenes:train,n=40,size=48"


def settings(folder, **changes):
    return FinetuneConfig(**{"input": [SCENES], "model": "coca_tiny", "output": folder, "samples_seen": 64, "batch_size": 8,
                             "learning_rate": 1e-3, "num_workers": 0, "name": "mine", "device": "cpu", "hold_out": 2} | changes)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(settings(folder, validate_every=24, eval_input=["scenes:test,n=9,size=48"], hold_out=6))
    return folder


def test_it_validates_while_it_trains_and_at_the_end(finished):
    found = rows(finished / "validation.jsonl")
    assert [row["samples"] for row in found] == [24, 48, 64]
    assert all(row["pictures"] == 6 and 0 < row["caption"] < 10 and 0 <= row["cider_d"] <= 10 for row in found)
    assert all(key.startswith("test") for key in found[0]["samples_shown"])


def test_page_and_card_tell_of_it(finished):
    page, card = (finished / "training.html").read_text(), (finished / "README.md").read_text()
    assert "CIDEr-D" in page and page.count("data:image/jpeg") >= 6
    assert "6 pictures of scenes:test" in card and "coca_tiny" in card


def test_the_best_weights_are_kept(finished):
    best = min(rows(finished / "validation.jsonl"), key=lambda row: row["caption"])
    same = all(torch.equal(a, b) for a, b in zip(*(load_captioner(str(folder)).model.state_dict().values()
                                                  for folder in (finished, finished / "best")), strict=True))
    assert same == (best["samples"] == 64)


def test_pictures_held_out_are_not_trained_on(tmp_path, capsys):
    run(settings(tmp_path / "run"))
    assert "over 38 pictures" in capsys.readouterr().out
    assert rows(tmp_path / "run" / "validation.jsonl")[-1]["pictures"] == 2


def test_a_mix_takes_its_inputs_by_weight(tmp_path, capsys):
    mix = [SCENES, "scenes:train,n=10,size=48,seed=1"]
    with pytest.raises(ValueError, match="--weights: 1 for 2 inputs"):
        run(settings(tmp_path / "run", input=mix, weights=[2.0]))
    run(settings(tmp_path / "other", input=mix, weights=[0.5, 2.0], hold_out=0))
    assert "1.6 passes over 50 pictures" in capsys.readouterr().out  # 64 of 20 + 20


def test_adapters_train_alone_and_are_merged(tmp_path):
    run(settings(tmp_path / "run", lora_rank=4, ema=0.5, freeze_image=True))
    before, after = (load_captioner(name).model.state_dict() for name in ("coca_tiny", str(tmp_path / "run")))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before
                       if name.endswith(("c_fc.weight", "c_proj.weight")) and not name.startswith("visual.")}
    open_clip.create_model(f"local-dir:{tmp_path / 'run'}", require_pretrained=True)
    best = load_captioner(str(tmp_path / "run" / "best")).model.state_dict()
    assert all(torch.equal(best[name], after[name]) for name in after)  # the only validation is the last


def test_validation_sees_the_merged_adapters(tmp_path, monkeypatch):
    seen = {}

    def validate(captioner, pictures, **_):
        seen["pictures"] = [picture[:2] for picture in pictures]
        seen["captions"] = [one.captions[0].logprob for one in captioner.caption(seen["pictures"], SamplingConfig())]
        seen["steps"] = len(rows(tmp_path / "run" / "train.jsonl"))
        from finetune.validation import Validation
        return Validation({}, {}, {}, "")

    monkeypatch.setattr("finetune.held_out.validate", validate)
    run(settings(tmp_path / "run", lora_rank=4))
    assert seen["steps"] == 8  # the page that comes of it shows them all
    written = load_captioner(str(tmp_path / "run")).caption(seen["pictures"], SamplingConfig())
    assert [one.captions[0].logprob for one in written] == pytest.approx(seen["captions"], abs=1e-4)


def test_uploads_only_where_asked_and_only_the_captioner(tmp_path, monkeypatch):
    calls = []

    class Hub:
        create_repo = staticmethod(lambda repo, **_: calls.append(repo))
        upload_folder = staticmethod(lambda **options: calls.append(options))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    run(settings(tmp_path / "quiet", samples_seen=8))
    assert calls == []
    run(settings(tmp_path / "run", samples_seen=8, push_to_hub="me/mine"))
    assert calls[0] == "me/mine" and calls[1]["folder_path"] == tmp_path / "run" and "best/*" in calls[1]["ignore_patterns"]


def test_a_mistake_that_the_ranks_find_is_the_commands(tmp_path):
    command = [sys.executable, "-m", "capsmith", "finetune", "--input", SCENES, "--model", str(tmp_path),
               "--output", str(tmp_path / "run"), "--num-processes", "2", "--device", "cpu"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 2 and f"{tmp_path}: neither open_clip_config.json nor config.json in it" in process.stderr
    with pytest.raises(ValueError, match="--batch-size 7 is not a multiple of 2 processes"):  # no rank is asked
        run(settings(tmp_path / "other", batch_size=7, num_processes=2))


def test_accelerates_launcher_that_starts_one_process_is_found_out(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "capsmith", "finetune",
               "--input", SCENES, "--model", "coca_tiny", "--output", str(tmp_path / "run"), "--samples-seen", "8",
               "--device", "cpu"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode != 0 and "accelerate launch started one process, not 2" in process.stderr


# Vision-language models


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """A folder with a tiny random BLIP."""
    torch.manual_seed(0)
    model, processor = make_model_and_processor("blip")
    scramble(model)
    folder = tmp_path_factory.mktemp("blip")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


FOUR_BIT = pytest.param({"lora_rank": 4, "four_bit": True}, id="QLoRA", marks=pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="weights in 4 bits need bitsandbytes"))


@pytest.mark.parametrize("how", [pytest.param({}, id="full"), pytest.param({"lora_rank": 4}, id="LoRA"), FOUR_BIT])
def test_a_vision_language_model_is_fine_tuned_and_captions(vlm, how, tmp_path):
    run(settings(tmp_path / "run", model=str(vlm), samples_seen=240, learning_rate=2e-2, device_batch_size=4, **how))
    losses = [row["caption"] for row in rows(tmp_path / "run" / "train.jsonl")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]) and "contrastive" not in rows(tmp_path / "run" / "train.jsonl")[0]
    for folder in (tmp_path / "run", tmp_path / "run" / "best"):
        assert (folder / ("adapter_config.json" if how else "config.json")).exists()
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"library_name: {'peft' if how else 'transformers'}" in card and "# mine" in card and "open_clip" not in card
    generate(GenerateConfig(input=["scenes:test,n=3,size=48"], model=str(tmp_path / "run"), output=tmp_path / "records",
                            num_workers=0, redraws=0, on_degenerate="keep"))
    records = list(read_records(str(tmp_path / "records" / "*.tar")))
    assert len(records) == 3 and all(len(record.syn_text["syn_text_mine"]) == 5 for record in records)


def test_adapters_are_as_the_flags_say(vlm, tmp_path):
    asked = {"lora_rank": 4, "lora_alpha": 2, "lora_dropout": 0.25, "lora_targets": ["query", "value"]}
    captioner = load_captioner(str(vlm))
    forward = training_forward(captioner, settings(tmp_path, model=str(vlm), lora_merge=True, **asked))
    adapter = captioner.adapter.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (4, 2, 0.25) and forward.library == "transformers"
    adapted = {name for name, _ in captioner.model.named_parameters() if "lora_A" in name}
    assert adapted and all(name.startswith("text_decoder") and (".query." in name or ".value." in name) for name in adapted)
    captioner.save(tmp_path / "whole", "mine")
    assert (tmp_path / "whole" / "config.json").exists() and not (tmp_path / "whole" / "adapter_config.json").exists()
    forward = training_forward(load_captioner("coca_tiny"), settings(tmp_path, **asked | {"lora_targets": ["c_fc"]}))
    layer = forward.adapter.model.text.transformer.resblocks[0].mlp
    assert layer.c_fc.scaling["default"] == 0.5 and not hasattr(layer.c_proj, "scaling")


@pytest.mark.parametrize("model, asked, told", [
    ("coca_tiny", {"lora_rank": 2, "lora_targets": ["q_proj"]}, "--lora-targets q_proj: CoCa's adapters are in c_fc and c_proj alone"),
    ("vlm", {"lora_rank": 2, "lora_targets": ["nowhere"]}, "--lora-targets nowhere: "),
    ("vlm", {"lora_merge": True}, "--lora-merge: .* has no adapters"),
])
def test_adapters_that_a_model_cannot_have_are_refused(vlm, tmp_path, model, asked, told):
    name = str(vlm) if model == "vlm" else model
    with pytest.raises(ValueError, match=told):
        training_forward(load_captioner(name), settings(tmp_path, model=name, **asked))


@pytest.mark.parametrize("asked, told", [
    ({"lora_alpha": 2}, "is of adapters: say --lora-rank, too"),
    ({"lora_rank": 4, "lora_merge": True, "four_bit": True}, "weights in 4 bits are not merged"),
])
def test_settings_of_adapters_that_contradict_each_other_are_refused(tmp_path, asked, told):
    with pytest.raises(ValidationError, match=told):
        settings(tmp_path, **asked)


def test_pictures_of_several_shapes_are_one_batch(tmp_path):
    """What comes of them is what comes of each by itself, in any parts of the batch."""
    torch.manual_seed(0)
    model, processor = make_model_and_processor("internvl")
    scramble(model)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    captioner = load_captioner(str(tmp_path / "model"))
    forward = training_forward(captioner, settings(tmp_path / "run", model=str(tmp_path / "model")))
    captions = [[captioner.encode_text_ids(text)] for text in ("a red circle", "two green stars", "a star", "a blue square")]
    pictures = [captioner.preprocess(Image.effect_noise(size, 60).convert("RGB")) for size in ((32, 32), (64, 32), (40, 90), (32, 32))]
    batch = collate([(picture, ids, number, str(number)) for number, (picture, ids) in enumerate(zip(pictures, captions))], captioner.pad_id)
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
    """Under adapters, too, where what comes into the layers needs no gradients."""
    for lora_rank in (0, 4):
        twice, once = (gradients_of_a_step(model=str(vlm), lora_rank=lora_rank, grad_checkpointing=of) for of in (True, False))
        check_equal(twice, once)


def test_what_the_model_cannot_have_is_refused(vlm, tmp_path):
    with pytest.raises(ValueError, match="--layer-decay 0.5"):
        run(settings(tmp_path / "one", model=str(vlm), layer_decay=0.5))
    with pytest.raises(ValueError, match="--four-bit: is for vision-language models of transformers, and coca_tiny is none"):
        run(settings(tmp_path / "two", lora_rank=4, four_bit=True))
    captioner = load_captioner(str(vlm))
    captioner.add_lora(r=2)
    captioner.save(tmp_path / "adapters", "mine")
    with pytest.raises(ValueError, match="--lora-rank 4: mine has adapters of rank 2"):
        run(settings(tmp_path / "three", model=str(tmp_path / "adapters"), lora_rank=4))
    with pytest.raises(ValidationError, match="weights in 4 bits do not learn: say --lora-rank, too"):
        settings(tmp_path, four_bit=True)
