"""`capsmith train-student` as a whole: from reinforced records to a folder that open_clip loads."""

import html
import json

import open_clip
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

import capsmith
import finetune.student.run
from captioners.load import load_captioner
from finetune.student.config import StudentConfig
from finetune.student.run import run
from finetune.trainer import Trainer
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.run import run as reinforce

from .cards import code_of
from .ranks import in_two_processes
from .sets import RESNET, STUDENT, members, picture, write_set, write_student, write_tar


@pytest.fixture
def settings(tmp_path):
    spec = write_set(tmp_path / "set", count=16)

    def make(folder, model_cfg=RESNET, **changes) -> StudentConfig:
        student = write_student(tmp_path / "student", model_cfg)
        return StudentConfig(
            **{
                "input": [spec],
                "student": student,
                "output": tmp_path / folder,
                "samples_seen": 96,
                "batch_size": 8,
                "num_workers": 0,
                "device": "cpu",
            }
            | changes
        )

    return make


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder):
    return load_file(folder / "open_clip_model.safetensors")


def test_the_whole_way_from_captions_to_a_student(tmp_path, capsys):
    """Records, one of them broken, are reinforced by two teachers; then the command writes all of its files."""
    records = {f"r{record}": members(record) | {"paug.json": None, "npz": None} for record in range(12)}
    records["broken"] = records["r3"] | {"jpg": picture(3)[:80]}
    write_tar(tmp_path / "captioned" / "0.tar", records)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        load_captioner("coca_tiny", from_scratch=True).save(tmp_path / "teacher", "other")
    reinforce(
        ReinforceConfig(
            input=[str(tmp_path / "captioned" / "*.tar")],
            teacher=["coca_tiny", str(tmp_path / "teacher")],
            views=2,
            output=str(tmp_path / "set"),
            device="cpu",
            num_workers=0,
        )
    )
    command = [
        "train-student",
        "--input",
        str(tmp_path / "set" / "*.tar"),
        "--student",
        write_student(tmp_path / "student"),
        "--output",
        str(tmp_path / "run"),
        "--samples-seen",
        "160",
        "--batch-size",
        "8",
        "--num-workers",
        "1",
        "--device",
        "cpu",
        "--eval-input",
        "scenes:test,n=6,size=48",
        "--validate-every",
        "80",
        "--logit-scale",
        "30",
        "--logit-scale",
        "20",
    ]
    assert capsmith.main(command) == 0
    log, held_out = rows(tmp_path / "run" / "train.jsonl"), rows(tmp_path / "run" / "validation.jsonl")
    assert [line["samples"] for line in log] == list(range(8, 161, 8))
    assert sum(line["distill"] for line in log[-5:]) < sum(line["distill"] for line in log[:5])
    assert [line["samples"] for line in held_out] == [0, 80, 160] and held_out[0]["pictures"] == 6
    assert [line["key"] for line in rows(tmp_path / "run" / "rejects.jsonl")] == ["broken"]
    open_clip.create_model(f"local-dir:{tmp_path / 'run'}", require_pretrained=True)
    (tmp_path / "picture.png").write_bytes(picture(3))
    names = {"THIS_FOLDER": tmp_path / "run", "PICTURE.jpg": tmp_path / "picture.png"}
    exec(code_of(tmp_path / "run" / "README.md", names)[0], {})
    assert "a photo of a" in capsys.readouterr().out.splitlines()[-1]
    card, page = (tmp_path / "run" / "README.md").read_text(), (tmp_path / "run" / "training.html").read_text()
    assert (
        "12 records of" in card
        and "coca\\_tiny: 128 numbers, logit scale 30" in card
        and "6 pictures of scenes" in card
    )
    assert (
        "Training run" in page
        and "Distillation loss" in page
        and "records seen" in page
        and "Caption to picture R@5" in page
    )
    capsys.readouterr()
    assert capsmith.main(command) == 0
    assert "already holds the finished model of this run" in capsys.readouterr().out
    assert capsmith.main([*command, "--logit-scale", "10"]) == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_resumes_bit_for_bit(workers, settings, monkeypatch):
    """The model has batch statistics, averaged weights, and accumulation."""
    how = {
        "checkpoint_every": 5,
        "ema": 0.9,
        "num_workers": workers,
        "contrastive_weight": 0.5,
        "device_batch_size": 4,
    }
    run(settings("whole", **how))

    def stops(self, *args, step=Trainer._step, count=[0]):
        count[0] += 1
        if count[0] == 8:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stops)
        with pytest.raises(KeyboardInterrupt):
            run(settings("stopped", **how))
    run(settings("stopped", **how))
    whole, other = (settings(name).output for name in ("whole", "stopped"))
    assert rows(whole / "train.jsonl") == rows(other / "train.jsonl") and len(rows(whole / "train.jsonl")) == 12
    ours, theirs = weights(whole), weights(other)
    assert any(name.endswith("running_mean") for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_held_out_pictures_are_not_trained_on(settings, tmp_path, monkeypatch, capsys):
    """This includes pictures with the same bytes under another key."""
    monkeypatch.setattr("finetune.student.retrieval.write_page", lambda trainer: None)
    others = {f"other{record}": {"jpg": picture(record), "txt": b"a picture"} for record in (1, 2)}
    held_out = write_tar(tmp_path / "held.tar", others)
    run(settings("run", STUDENT, eval_input=[held_out], samples_seen=8))
    printed = capsys.readouterr().out
    assert (
        "2 pictures of --input are also in --eval-input and are not trained on" in printed
        and "over 14 pictures" in printed
    )
    with pytest.raises(ValueError, match="1 of 17 samples cannot be used, 5.9%, and --max-error-rate allows 5.0%"):
        broken = write_tar(tmp_path / "set" / "broken.tar", {"broken": members(3) | {"jpg": b"no picture"}})
        run(settings("other", STUDENT, input=[*settings("run").input], max_error_rate=0.05))
    assert broken and not (tmp_path / "other").exists()
    held_out = write_tar(tmp_path / "held2.tar", {**others, "broken": {"jpg": b"no picture", "txt": b"a picture"}})
    with pytest.raises(ValueError, match="--eval-input: 1 of 3 samples cannot be used, 33.3%, and --max-error-rate"):
        run(settings("other", STUDENT, eval_input=[held_out]))
    run(settings("other", STUDENT, eval_input=[held_out], samples_seen=8, max_error_rate=0.5))
    assert "2 samples cannot be used and are left out" in capsys.readouterr().out


def test_labelled_pictures_are_validated_on_as_zero_shot_has_it_and_not_trained_on(settings, tmp_path, capsys):
    held_out = tmp_path / "held"
    for record, label in ((1, "cat"), (2, "cat"), (40, "dog"), (41, "dog"), (42, "big_cat")):
        (held_out / label).mkdir(parents=True, exist_ok=True)
        (held_out / label / f"{record}.png").write_bytes(picture(record))
    (held_out / "dog" / "broken.png").write_bytes(picture(3)[:99])
    how = {"eval_classes": [str(held_out)], "templates": "plain", "samples_seen": 8}
    run(settings("run", STUDENT, **how))
    assert "2 pictures of --input are also in --eval-classes and are not trained on" in capsys.readouterr().out
    output = settings("run").output
    *_, last = rows(output / "validation.jsonl")
    assert len(rows(output / "validation.jsonl")) == 2 and "zero_shot_top5" not in last
    assert last["chance"] == {
        "zero_shot_top1": 0.5,
        "zero_shot_per_class": pytest.approx(1 / 3),
    }  # of cat, dog and big_cat
    page = (output / "training.html").read_text()
    assert "without a look" in page and "Zero-shot top-1" in page and "Zero-shot mean per class" in page
    assert "Zero-shot top-1" in (output / "README.md").read_text()
    flags = ["--model", str(output), "--input", str(held_out), "--templates", "plain", "--max-error-rate", "0.5"]
    assert capsmith.main(["zero-shot", *flags, "--output", str(tmp_path / "asked"), "--device", "cpu"]) == 0
    (model,) = json.loads((tmp_path / "asked" / "zero_shot.json").read_text())["models"].values()
    for score in ("top1", "per_class"):
        assert last[f"zero_shot_{score}"] == pytest.approx(model[score]["mean"])
    with pytest.raises(ValidationError, match="--templates: is a setting of --eval-classes, which is not given"):
        settings("other", templates="plain")
    with pytest.raises(ValueError, match="--eval-classes: all pictures are of one class, 'cat'"):
        (tmp_path / "one" / "cat").mkdir(parents=True)
        (tmp_path / "one" / "cat" / "a.png").write_bytes(picture(50))
        run(settings("other", eval_classes=[str(tmp_path / "one")]))
    assert not (tmp_path / "other").exists()


def test_the_seed_decides_weights_and_draws(settings):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        run(settings(name, seed=seed, samples_seen=16))
    first, again, other = (weights(settings(name).output) for name in ("one", "again", "other"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["visual.conv1.weight"], other["visual.conv1.weight"])


def test_two_processes_train_as_one(settings):
    single, double = (settings(name, STUDENT) for name in ("one", "two"))
    run(single)
    in_two_processes(double.output.parent / "found.pt", student_runs=[double.model_dump(mode="json")])
    ours, theirs = rows(double.output / "train.jsonl"), rows(single.output / "train.jsonl")
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-3)


@pytest.mark.parametrize(
    "arm, drawn, logged",
    [
        ({"distill_weight": 0, "contrastive_weight": 1, "synthetic_weight": 0}, 1, {"contrastive"}),
        ({"distill_weight": 0, "contrastive_weight": 1}, 2, {"contrastive"}),
        ({"synthetic_weight": 0}, 1, {"distill"}),
        ({}, 2, {"distill"}),
        ({"contrastive_weight": 0.25}, 2, {"distill", "contrastive"}),
    ],
)
def test_each_arm_of_an_ablation(arm, drawn, logged, settings, monkeypatch):
    """The arm decides which texts reach the losses, and which losses are computed."""
    shapes, step = [], Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, batch: shapes.append(batch.tokens.shape) or step(self, batch))
    config = settings("run", samples_seen=16, **arm)
    run(config)
    assert shapes == [(8, drawn, 12)] * 2
    lines = rows(config.output / "train.jsonl")
    assert all(line.keys() - {"step", "samples", "loss", "gradient_norm", "learning_rate"} == logged for line in lines)
    assert ("No teacher" in (config.output / "README.md").read_text()) == ("distill" not in logged)


def test_a_run_with_negatives_tells_of_them(settings, tmp_path, capsys):
    """Log, validation, page and card have their share and how often a true text wins."""
    others = {"neg_text_a": ["two dogs"]}
    files = {f"held{record}": members(record, negatives=others) | {"jpg": picture(50 + record)} for record in range(2)}
    held = write_tar(tmp_path / "held.tar", files | {"plain": members(9) | {"jpg": picture(60)}})
    spec = write_set(tmp_path / "negatives", count=16, negatives=True)
    how = {"input": [spec], "eval_input": [held], "single_text": 0.25, "negatives": "^neg_text", "samples_seen": 16}
    config = settings("run", STUDENT, distill_weight=0, contrastive_weight=1, **how)
    run(config)
    assert "hard negatives: 12 of 16 records have one (75.0%), in columns like '^neg_text'" in capsys.readouterr().out
    log, held_out = rows(config.output / "train.jsonl"), rows(config.output / "validation.jsonl")
    assert sum(8 * line["with_negative"] for line in log) == 12 and all(0 <= line["choice"] <= 1 for line in log)
    assert all(line["loss"] == pytest.approx(line["contrastive"] + line["negative"]) for line in log)
    assert all(line["with_negative"] == pytest.approx(2 / 3) and 0 <= line["choice"] <= 1 for line in held_out)
    page, card = (config.output / "training.html").read_text(), (config.output / "README.md").read_text()
    assert "True before negative" in page and "Hard negatives' loss" in html.unescape(page)
    assert "12 of 16 records have one" in card and "True before negative" in card
    assert (
        "one caption of each record, 75% original and 25% synthetic" in card
        and "1 × the loss that hard negatives add" in card
    )
    with pytest.raises(ValueError, match="with --negative-weight 0 they are used in validation only, and no picture"):
        run(settings("other", STUDENT, negatives="^neg_text", negative_weight=0))
    with pytest.raises(ValueError, match="--negatives '.neg_text': no record has such a column"):
        run(settings("other", STUDENT, negatives="^neg_text"))
    assert not (tmp_path / "other").exists()


def test_a_batch_without_a_negative_tells_of_no_choice(settings, tmp_path):
    records = {
        f"r{number}": members(number, negatives={"neg_text_a": ["7 7"] if number == 0 else []}) for number in range(16)
    }
    write_tar(tmp_path / "set" / "few.tar", records)
    run(settings("run", STUDENT, input=[str(tmp_path / "set" / "few.tar")], negatives="^neg_text", samples_seen=16))
    lines = rows(tmp_path / "run" / "train.jsonl")
    assert sorted(line["with_negative"] for line in lines) == [0, 1 / 8]
    assert [line["negative"] > 0 for line in lines] == ["choice" in line for line in lines]


def test_a_student_goes_on_from_weights(settings, tmp_path):
    """The weights may be those of a folder, or of a file for an architecture."""
    run(settings("first"))
    run(settings("second", student=str(tmp_path / "first"), samples_seen=8, learning_rate=1e-12))
    first, second = (weights(tmp_path / name) for name in ("first", "second"))
    for name in first:
        if "running" not in name and "batches" not in name:
            torch.testing.assert_close(second[name], first[name], atol=1e-6, rtol=0)


def test_an_average_is_what_is_written(settings):
    """With decay 0.999999 the average is nearly the initial weights, like those of a run that hardly learns."""
    run(settings("still", learning_rate=1e-12))
    run(settings("average", ema=0.999999, learning_rate=0.01))
    still, average = (weights(settings(name).output) for name in ("still", "average"))
    torch.testing.assert_close(average["visual.conv1.weight"], still["visual.conv1.weight"], atol=1e-5, rtol=0)


def test_all_problems_of_a_configuration_at_once(capsys):
    with pytest.raises(ValidationError, match="batch_size\n.*greater than 1"):
        StudentConfig(input=["x"], student="x", output="x", batch_size=1)
    with pytest.raises(ValidationError, match="there is no loss; .*there are no texts"):
        StudentConfig(input=["x"], student="x", output="x", distill_weight=0, text_weight=0, synthetic_weight=0)
    with pytest.raises(ValidationError, match="--logit-scale, --teacher-dimension: not used with --distill-weight 0"):
        StudentConfig(input=["x"], student="x", output="x", distill_weight=0, contrastive_weight=1, logit_scale=[3])
    with pytest.raises(
        ValidationError, match="--text-weight, --synthetic-weight: .*--single-text.*; --negative-weight: needs"
    ):
        StudentConfig(input=["x"], student="x", output="x", single_text=0.5, text_weight=2, negative_weight=1)
    for chance in ("1.5", "-0.1", "nan"):
        assert capsmith.main(["train-student", "--single-text", chance, "--negatives", "("]) == 2
        error = capsys.readouterr().err
        assert f"--single-text {chance}" in error and "--negatives (" in error
    assert capsmith.main(["train-student", "--columns", "(", "--batch-size", "0"]) == 2
    error = capsys.readouterr().err
    assert all(text in error for text in ("--columns (", "--batch-size 0", "--input: required", "--student: required"))


def test_what_is_wrong_is_found_before_anything_is_loaded(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.student.run, "load_student", None)
    with pytest.raises(ValueError, match=r"--logit-scale: 3 \(1, 2, 3\) for 2 teachers"):
        run(settings("run", logit_scale=[1, 2, 3]))
    with pytest.raises(ValueError, match="nowhere: no such"):
        run(settings("other", eval_input=[str(tmp_path / "nowhere")]))
