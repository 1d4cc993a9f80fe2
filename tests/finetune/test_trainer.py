"""The trainer: learns, resumes bit for bit, stops on a loss that is not finite, and writes what open_clip loads."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import open_clip
import pytest
import torch

import capsmith
import finetune.captioner.run
import finetune.trainer
from captioners.load import load_captioner
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.forward import training_forward
from finetune.captioner.pictures import CaptionedPictures
from finetune.captioner.run import run
from finetune.not_finite import explain_not_finite
from finetune.optimizer import coca_depth, learning_rate, parameter_groups
from finetune.trainer import Trainer
from imagetext.sources import read_samples

from ..captioners.vlm.models import make_model_and_processor
from .ranks import check_equal, gradients_of_a_step, in_two_processes

SCENES = "scenes:train,n=24,size=48"


def settings(folder, **changes):
    return FinetuneConfig(
        **{
            "input": [SCENES],
            "model": "coca_tiny",
            "output": folder,
            "from_scratch": True,
            "samples_seen": 96,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "num_workers": 0,
            "name": "mine",
            "device": "cpu",
            "validate_every": 10**6,
        }
        | changes
    )


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
    model, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{tmp_path / 'run'}", require_pretrained=True
    )
    for name, weight in weights(tmp_path / "run").items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0)
    assert load_captioner(str(tmp_path / "run")).name == "mine"


def test_a_stopped_run_resumes_to_the_same_weights_and_log(tmp_path, monkeypatch, capsys):
    """The run dies in its eighth step, or gets a signal in it, and then leaves a checkpoint of that step."""

    def die(*_):
        raise KeyboardInterrupt

    run(settings(tmp_path / "whole", checkpoint_every=5))
    for name, stop, kept in (("dead", die, 5), ("SIGTERM", os.kill, 8)):

        def stops(self, *args, step=Trainer._step, count=[0]):
            count[0] += 1
            if count[0] == 8:
                stop(os.getpid(), signal.SIGTERM)
            return step(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", stops)
            with pytest.raises(KeyboardInterrupt):
                run(settings(tmp_path / name, checkpoint_every=5))
        assert newest(tmp_path / name) == kept
        assert "resumed" not in capsys.readouterr().out
        run(settings(tmp_path / name, checkpoint_every=5))
        assert f"resumed from step {kept} of " in capsys.readouterr().out
        assert log(tmp_path / name) == log(tmp_path / "whole")
        resumed, expected = weights(tmp_path / name), weights(tmp_path / "whole")
        assert all(torch.equal(resumed[name], expected[name]) for name in resumed)


@pytest.mark.parametrize("given, used", [(None, "torch"), ("onednn", "onednn")])
def test_the_record_says_which_library_multiplied(tmp_path, monkeypatch, given, used):
    """coca_tiny is too narrow to gain from oneDNN in training, but its captions are decoded with it."""
    monkeypatch.setattr("captioners.coca.load.choose_products", lambda model: ("torch", "a reason"))
    trained = []
    monkeypatch.setattr(Trainer, "fit", lambda trainer: trained.append(trainer.forward) or {})
    run(settings(tmp_path / "run", products=given))
    record = json.loads((tmp_path / "run" / "finetune.json").read_text())
    assert record["products"] == trained[0].captioner.products == used


@pytest.mark.parametrize(
    "products, width, used", [("onednn", 256, True), ("torch", 256, False), ("onednn", 128, False)]
)
def test_wide_models_train_by_onednn_if_the_run_does(tmp_path, monkeypatch, products, width, used):
    captioner = load_captioner("coca_tiny", products=products)
    captioner.model.text_decoder.width = width
    assert training_forward(captioner, settings(tmp_path / "run")).in_onednn == used


def test_the_same_command_after_the_end_does_nothing(tmp_path, monkeypatch, capsys):
    run(settings(tmp_path / "run"))
    monkeypatch.setattr(finetune.captioner.run, "load_captioner", None)
    assert run(settings(tmp_path / "run")) == 0
    assert "holds the finished model" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    "changes, spoil, why",
    [
        (
            {"learning_rate": 1e30},
            lambda pictures: None,
            "step 2, .*\nThe model's outputs are not finite for any picture: lower "
            "--learning-rate .it was 1e.30 at this step",
        ),
        (
            {},
            lambda pictures: pictures.update({"train2-000003": float("nan")}),
            "step 1, .*\nThe model's outputs are not finite for train2-000003 alone: check these pictures",
        ),
    ],
)
def test_a_loss_that_is_not_finite_names_its_cause(changes, spoil, why, tmp_path, monkeypatch):
    pixels, spoilt = CaptionedPictures._pixels, {}
    spoil(spoilt)
    monkeypatch.setattr(
        CaptionedPictures, "_pixels", lambda self, index: pixels(self, index) * spoilt.get(self.samples[index].key, 1)
    )
    with pytest.raises(ValueError, match=f"(?s)is nan at {why}"):
        run(settings(tmp_path / "run", batch_size=24, hold_out=0, warmup=0, **changes))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_that_a_step_broke_are_the_cause(tmp_path):
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, float("inf"))
    explanation = explain_not_finite(SimpleNamespace(model=model), [], rate=1e-3, dtype="fp32")
    assert explanation == (
        "Earlier steps have left weights that are not finite (weight): lower --learning-rate (it was 0.001 at "
        "this step) or raise --warmup, and start again."
    )


def test_rejects_are_written(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "bad.jpg").write_text("not a picture")
    (folder / "bad.txt").write_text("a red circle")
    run(settings(tmp_path / "run", input=[SCENES, str(folder)]))
    assert [json.loads(line)["key"] for line in (tmp_path / "run" / "rejects.jsonl").read_text().splitlines()] == [
        "bad"
    ]


def test_weight_decay_is_for_matrices_only(tmp_path):
    model = load_captioner("coca_tiny", from_scratch=True).model
    without, with_decay = parameter_groups(model, settings(tmp_path))
    assert (without["weight_decay"], with_decay["weight_decay"]) == (0, 0.1)
    names = {id(weight): name for name, weight in model.named_parameters() if weight.requires_grad}
    assert "text.token_embedding.weight" in {names[id(weight)] for weight in without["params"]}
    assert all(weight.ndim > 1 for weight in with_decay["params"])
    assert len(with_decay["params"]) + len(without["params"]) == len(names)


@pytest.mark.parametrize(
    "family, embeddings",
    [
        ("llava", ["model.language_model.embed_tokens.weight"]),
        ("qwen3_vl", ["model.visual.pos_embed.weight", "model.language_model.embed_tokens.weight"]),
        ("blip-2", ["query_tokens", "language_model.model.decoder.embed_tokens.weight"]),
        ("florence2", ["model.language_model.shared.weight", "model.language_model.decoder.embed_positions.weight"]),
    ],
)
def test_embeddings_of_any_name_have_no_weight_decay(family, embeddings, tmp_path):
    model = make_model_and_processor(family)[0]
    decays = {
        id(weight): group["weight_decay"]
        for group in parameter_groups(model, settings(tmp_path))
        for weight in group["params"]
    }
    assert [decays[id(model.get_parameter(name))] for name in embeddings] == [0] * len(embeddings)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    tied = {id(model.get_parameter(name)) for name in embeddings}
    assert {decays[id(module.weight)] for module in linear if id(module.weight) not in tied} == {0.1}


def test_lower_blocks_learn_slower(tmp_path):
    model = load_captioner(
        "coca_tiny", from_scratch=True
    ).model  # 4 blocks of the image tower, 2 of the text's, 3 of the decoder
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups = parameter_groups(model, settings(tmp_path, layer_decay=0.5, learning_rate=1.0), coca_depth(model))
    rates = {names[id(weight)]: group["lr"] for group in groups for weight in group["params"]}
    assert rates["logit_scale"] == rates["text_decoder.text_projection"] == rates["text_decoder.ln_final.weight"] == 1
    assert rates["text_decoder.resblocks.2.ln_1.weight"] == rates["text_decoder.cross_attn.2.ln_1.weight"] == 0.5
    assert rates["text_decoder.resblocks.0.ln_1.weight"] == 0.5**3
    assert (
        rates["visual.transformer.resblocks.3.ln_1.weight"]
        == rates["text.transformer.resblocks.1.ln_1.weight"]
        == 0.5**4
    )
    assert rates["visual.transformer.resblocks.0.ln_1.weight"] == 0.5**7
    assert (
        rates["text.token_embedding.weight"]
        == rates["visual.conv1.weight"]
        == rates["visual.class_embedding"]
        == 0.5**8
    )


def test_learning_rate_rises_then_falls_to_nothing():
    rates = [learning_rate(step, 100, 0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1 and rates[100] == pytest.approx(0, abs=1e-9)
    assert rates[10:] == sorted(rates[10:], reverse=True)


# However the batch is parted


LOSSES = {
    "both": {},
    "caption": {"contrastive_weight": 0},
    "contrastive": {"caption_weight": 0},
    "three captions": {"captions_per_image": 3},
}


@pytest.mark.parametrize("which", LOSSES)
def test_accumulation_is_exact(which):
    expected = gradients_of_a_step(**LOSSES[which])
    assert sum(gradient.abs().sum() for gradient in expected["gradients"].values()) > 1
    for size in (4, 2, 1):
        check_equal(gradients_of_a_step(**LOSSES[which], device_batch_size=size), expected)


IN_TWO = [("both", None), ("both", 2), ("caption", 2), ("contrastive", 1), ("three captions", 2)]


@pytest.fixture(scope="module")
def found_in_two(tmp_path_factory):
    """Return the results of two processes for each item of IN_TWO."""
    file = tmp_path_factory.mktemp("ranks") / "found.pt"
    in_two_processes(file, gradients=[LOSSES[which] | {"device_batch_size": size} for which, size in IN_TWO])
    return dict(zip(IN_TWO, torch.load(file, weights_only=True), strict=True))


@pytest.mark.parametrize("case", IN_TWO, ids=str)
def test_two_processes_are_exact(case, found_in_two):
    check_equal(found_in_two[case], gradients_of_a_step(**LOSSES[case[0]]))


def test_one_caption_per_picture_is_open_clips_loss(tmp_path):
    """Compared with open_clip's own forward pass and loss on captions padded to the context, without accumulation."""
    from finetune.batching import BatchOrder, batches

    captioner = load_captioner("coca_tiny", from_scratch=True)
    pictures = CaptionedPictures(read_samples(["scenes:train,n=8,size=32"]), captioner, quiet=True)
    trainer = Trainer(config := settings(tmp_path), training_forward(captioner, config), pictures)
    batch = next(iter(batches(BatchOrder(pictures, 8, 1, seed=0), 0)))
    tokens = torch.nn.functional.pad(batch.tokens[:, 0], (0, 76 - batch.tokens.shape[-1]))
    with torch.no_grad():
        output = captioner.model(captioner.normalise(batch.images), tokens)
        theirs = open_clip.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=0)(
            **output, output_dict=True
        )
    ours = trainer._step(batch)
    assert ours["caption"] == pytest.approx(theirs["caption_loss"].item() / 2, abs=1e-5)
    assert ours["contrastive"] == pytest.approx(theirs["contrastive_loss"].item(), abs=1e-6)


def test_a_batch_that_cannot_be_parted_is_refused(tmp_path):
    for changes in ({"device_batch_size": 3}, {"device_batch_size": 16}):
        with pytest.raises(ValueError, match="--batch-size 8 is not a multiple of 1 processes times"):
            Trainer(settings(tmp_path, **changes), None, range(8))


def test_tf32_is_for_those_who_allow_it(tmp_path):
    for allowed in (True, False):
        Trainer(
            config := settings(tmp_path, tf32=allowed), training_forward(load_captioner("coca_tiny"), config), range(8)
        )
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed


def command(folder, *more, samples=96):
    return [
        "-m",
        "capsmith",
        "finetune",
        "--input",
        SCENES,
        "--model",
        "coca_tiny",
        "--output",
        str(folder),
        "--from-scratch",
        "--samples-seen",
        str(samples),
        "--batch-size",
        "8",
        "--num-workers",
        "0",
        "--learning-rate",
        "1e-3",
        "--hold-out",
        "0",
        *more,
    ]


def test_two_processes_train_as_one(tmp_path):
    """tests/test_launch_forms.py has other ways to start the processes."""
    run(settings(tmp_path / "one", name=None, hold_out=0))
    two = [sys.executable, *command(tmp_path / "two", "--num-processes", "2")]
    subprocess.run(two, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    ours, theirs = log(tmp_path / "two"), log(tmp_path / "one")
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-3)
    assert len(ours) == 12 and newest(tmp_path / "two") == 12  # a run of more samples could continue from it


# Stops


def newest(folder):
    return max((int(path.stem) for path in folder.glob("checkpoints/*.pt")), default=0)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    """The run is killed at random points until it ends by itself; its state is as if it was never stopped."""
    more = ["--checkpoint-every", "7", "--ema", "0.9"]
    assert capsmith.main(command(tmp_path / "whole", *more, samples=480)[2:]) == 0
    random.seed(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, *command(tmp_path / "killed", *more, samples=480)])
        checkpoint = newest(tmp_path / "killed")
        while process.poll() is None and newest(tmp_path / "killed") == checkpoint:  # until it has begun to train
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.wait()
    stopped_at = newest(tmp_path / "killed")
    assert 0 < stopped_at < 60
    subprocess.run(
        [sys.executable, *command(tmp_path / "killed", *more, samples=480)], check=True, capture_output=True
    )
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    resumed, expected = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(resumed[name], expected[name]) for name in resumed)
