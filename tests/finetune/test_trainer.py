"""The trainer: learns, resumes bit for bit, stops on a loss that is not finite, and writes what open_clip loads."""

import json

import open_clip
import pytest
import torch

import finetune.trainer
from captioners.coca import load_captioner
from finetune.config import FinetuneConfig
from finetune.trainer import CaptionTrainer, run

SCENES = "scenes:train,n=24,size=48"


def settings(folder, **changes):
    return FinetuneConfig(**{"input": [SCENES], "model": "coca_tiny", "output": folder, "from_scratch": True, "samples_seen": 96,
                             "batch_size": 8, "learning_rate": 1e-3, "num_workers": 0, "name": "mine", "device": "cpu"} | changes)


def weights(folder):
    return load_captioner(str(folder)).model.state_dict()


def log(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def test_learns_its_captions(tmp_path):
    assert run(settings(tmp_path / "run", samples_seen=24 * 40, learning_rate=2e-3)) == 0
    losses = [line["caption"] for line in log(tmp_path / "run")]
    assert len(losses) == 120 and losses[0] > 6 and sum(losses[-10:]) / 10 < 1.5


def test_output_loads_in_open_clip_strictly(tmp_path):
    run(settings(tmp_path / "run"))
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'run'}", require_pretrained=True)
    for name, weight in weights(tmp_path / "run").items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0)
    assert load_captioner(str(tmp_path / "run")).name == "mine"


def test_a_stopped_run_resumes_to_the_same_weights_and_log(tmp_path, monkeypatch):
    run(settings(tmp_path / "whole", checkpoint_every=5))

    def stops(self, *args, step=CaptionTrainer._step, count=[0]):
        count[0] += 1
        if count[0] == 8:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(CaptionTrainer, "_step", stops)
        with pytest.raises(KeyboardInterrupt):
            run(settings(tmp_path / "stopped", checkpoint_every=5))
    run(settings(tmp_path / "stopped", checkpoint_every=5))
    assert log(tmp_path / "stopped") == log(tmp_path / "whole")
    one, other = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_same_command_after_the_end_does_nothing(tmp_path, monkeypatch, capsys):
    run(settings(tmp_path / "run"))
    monkeypatch.setattr(finetune.trainer, "load_captioner", None)
    assert run(settings(tmp_path / "run")) == 0
    assert "finished captioner" in capsys.readouterr().out


def test_another_run_or_a_foreign_folder_is_refused(tmp_path):
    run(settings(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"batch_size was 8, is 4.*|learning_rate"):
        run(settings(tmp_path / "run", batch_size=4))
    assert run(settings(tmp_path / "run", batch_size=4, overwrite=True)) == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        run(settings(tmp_path / "other", overwrite=True))


def test_a_loss_that_is_not_finite_names_step_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.trainer, "caption_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(ValueError, match=r"nan at step 1, pictures train2-0000"):
        run(settings(tmp_path / "run"))


def test_rejects_are_written(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "bad.jpg").write_text("not a picture")
    (folder / "bad.txt").write_text("a red circle")
    run(settings(tmp_path / "run", input=[SCENES, str(folder)]))
    assert [json.loads(line)["key"] for line in (tmp_path / "run" / "rejects.jsonl").read_text().splitlines()] == ["bad"]


def test_weight_decay_is_for_matrices_only(tmp_path):
    captioner = load_captioner("coca_tiny", from_scratch=True)
    trainer = CaptionTrainer(settings(tmp_path), captioner, range(24))
    with_decay, without = (group["params"] for group in trainer.optimizer.param_groups)
    assert trainer.optimizer.param_groups[1]["weight_decay"] == 0
    names = {id(weight): name for name, weight in captioner.model.named_parameters() if weight.requires_grad}
    assert "text.token_embedding.weight" in {names[id(weight)] for weight in without}
    assert all(weight.ndim > 1 for weight in with_decay)
    assert len(with_decay) + len(without) == len(names)


def test_learning_rate_rises_then_falls_to_nothing(tmp_path):
    trainer = CaptionTrainer(settings(tmp_path, samples_seen=800, warmup=0.1), load_captioner("coca_tiny", from_scratch=True), range(24))
    rates = [trainer._learning_rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1 and rates[100] == pytest.approx(0, abs=1e-9)
    assert rates[10:] == sorted(rates[10:], reverse=True)
