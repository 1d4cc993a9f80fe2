"""Zero-shot: answers as in open_clip, scores by slow counts, the command on folders, problems reported early."""

import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

import capsmith
from captioners.resolve import SHIPPED
from diversity.measures.embedders import OpenClip
from finetune.zero_shot import run as command
from finetune.zero_shot.classify import class_features, nearest_classes, read_templates
from finetune.zero_shot.compare import make_report
from finetune.zero_shot.models import MISTAKES
from finetune.zero_shot.page import render
from finetune.zero_shot.pictures import Classes, prepare_batches, read_labelled
from finetune.zero_shot.scores import accuracy, class_accuracy, confusions, picture_scores
from finetune.zero_shot.support import ALONE
from imagetext.readers.table_flags import Columns
from imagetext.sample import Record
from imagetext.sources import read_records

from .sets import picture


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Write a folder for each shape, with pictures of up to two shapes."""
    folder = tmp_path_factory.mktemp("scenes")
    for record in read_records("scenes:test,n=24,level=2"):
        path = folder / record.meta["scene"]["objects"][0]["shape"] / f"{record.key}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(record.image)
    return folder


@pytest.fixture(scope="module")
def coca_tiny():
    return OpenClip(str(SHIPPED / "coca_tiny"))


def ask(*flags):
    return capsmith.main(
        ["zero-shot", "--model", "coca_tiny", "--templates", "plain", "--num-workers", "1", *map(str, flags)]
    )


def report_of(folder):
    return json.loads((folder / "zero_shot.json").read_text())


# --- the answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("templates", ["simple", "plain"])
def test_answers_are_open_clips_to_the_last(scenes, coca_tiny, templates):
    samples = list(read_records(str(scenes)))
    names = ["circle", "cross", "heart", "square", "star", "triangle", "red star", "dog", "cat", "sky", "sea", "house"]
    labels = torch.tensor([names.index(sample.key.partition("/")[0]) for sample in samples])
    with torch.inference_mode():
        (batch,) = prepare_batches(samples, [coca_tiny.transform], batch_size=64, threads=1)
        features = coca_tiny.embed_pictures(torch.stack([picture_.pixels[0] for picture_ in batch]))
    theirs = open_clip.build_zero_shot_classifier(
        coca_tiny._model,
        coca_tiny._tokenizer,
        names,
        open_clip.SIMPLE_IMAGENET_TEMPLATES if templates == "simple" else ["a photo of a {}."],
    )
    ours = class_features(coca_tiny.embed_texts, names, read_templates(templates))
    assert torch.equal(ours.T, theirs)
    logits = 100.0 * features @ theirs
    answers = nearest_classes(features, ours)
    assert torch.equal(answers.classes, logits.topk(5).indices)
    assert torch.allclose(answers.probabilities, logits.softmax(1).topk(5).values)
    hits = logits.topk(5, 1, True, True)[1].t().eq(labels.view(1, -1))  # as in `open_clip_train.zero_shot.accuracy`
    right = [hits[:k].reshape(-1).float().sum().item() for k in (1, 5)]
    scores = accuracy(answers.classes.numpy(), labels.numpy(), len(names))
    assert [scores["top1"] * len(labels), scores["top5"] * len(labels)] == pytest.approx(right)
    assert 0 < right[0] < len(labels)


def test_templates_are_open_clips_or_a_files(tmp_path):
    assert read_templates("imagenet")[0] == "a bad photo of a {}." and len(read_templates("imagenet")) == 80
    assert read_templates("name") == ["{}"]
    path = tmp_path / "mine.txt"
    path.write_text("a {} {curly} drawing\n\n {}, of course\n")
    assert read_templates(str(path)) == ["a {} {curly} drawing", "{}, of course"]
    path.write_text("a {}\nno class\n")
    with pytest.raises(ValueError, match="no {} for the class in 'no class'"):
        read_templates(str(path))
    with pytest.raises(ValueError, match="none of imagenet, simple, plain and name, and not a readable file"):
        read_templates("imagnet")


# --- the scores ----------------------------------------------------------------------------------------------------


def test_scores_are_slow_counts():
    random = np.random.default_rng(0)
    best = np.stack([random.permutation(9)[:5] for _ in range(60)])
    labels = random.integers(0, 8, 60)  # class 8 has no picture
    scores = accuracy(best, labels, 9)
    by_class = [[row[0] == label for row, label in zip(best, labels) if label == index] for index in range(8)]
    assert scores["top1"] == pytest.approx(sum(map(sum, by_class)) / 60)
    assert scores["top5"] == pytest.approx(sum(label in row for row, label in zip(best, labels)) / 60)
    assert scores["per_class"] == pytest.approx(np.mean([sum(right) / len(right) for right in by_class]))
    pairs = confusions(best[:, 0], labels)
    assert sum(pair["pictures"] for pair in pairs) == 60 - round(60 * scores["top1"])
    assert [pair["pictures"] for pair in pairs] == sorted((pair["pictures"] for pair in pairs), reverse=True)


def test_five_classes_have_no_top5_and_all_right_has_no_width():
    labels = np.array([0, 0, 0, 1, 2])
    scores = picture_scores(labels[:, None] + np.zeros((1, 5), int), labels, 5)
    assert "top5" not in scores and set(scores["per_class"]) == {1.0}


def test_the_interval_of_the_mean_per_class_is_that_of_drawing_pictures_anew():
    random = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [300, 80, 40])
    right = random.random(420) < np.array([0.9, 0.6, 0.3])[labels]
    linear = picture_scores(np.where(right, labels, 3)[:, None], labels, 4)["per_class"]
    means = []
    for _ in range(2000):
        sample = random.integers(420, size=420)
        means.append(np.nanmean(class_accuracy(right[sample].astype(float), labels[sample], 4)))
    assert linear.mean() == pytest.approx(np.mean([right[labels == label].mean() for label in range(3)]))
    assert linear.std() / np.sqrt(420) == pytest.approx(np.std(means), rel=0.1)


def report_on(answers_of, labels, names=("cat", "dog"), **others):
    classes = Classes(names, names, np.bincount(labels, minlength=len(names)).tolist())
    settings = {"failed": 0, "notes": (), "settings": {}, "seed": 0} | others
    settings = {"reranked": {}, "adapted": {}, "mistakes": dict.fromkeys(answers_of, ())} | settings
    return make_report(answers_of, labels=labels, classes=classes, **settings)


def test_a_model_is_best_where_it_is_clearly_ahead_and_else_nobody_is():
    labels = np.arange(200) % 2
    wrong = np.arange(200) < 60
    better, worse, alike = labels[:, None], np.where(wrong, 1 - labels, labels)[:, None], labels[:, None]
    report = report_on({"a": worse, "b": better}, labels)
    assert report.verdict.winner == "b"
    assert report.answer[0].startswith("b is the best: it gives the right class at its first answer for 100.0")
    assert "clearly more than the other" in report.answer[0]
    report = report_on({"a": worse, "b": better, "c": alike}, labels)
    assert report.verdict.winner is None and report.answer[0].startswith("No model is shown to be the best: b gives")
    assert report.answer[0].endswith("not clearly more than c.")
    assert [difference.sign for difference in report.differences] == [-1, -1, 0]


def test_who_only_guesses_is_said_to():
    labels = np.arange(100) % 2
    report = report_on({"a": np.zeros((100, 1), int)}, labels)
    assert (
        "Without a look at the pictures 50.0" in report.answer[2]
        and "it is not shown that a can do more" in report.answer[2]
    )
    assert "Most often, a mistakes dog for cat (50 of 50)" in report.answer[3]
    assert "pictures are few" in report_on({"a": labels[:9, None]}, labels[:9]).answer[-1]


def test_the_best_descriptions_are_named_where_they_are_shown_to_be():
    labels = np.arange(300) % 2

    def report_of_right(**right):
        answers = {(name, 4): np.where(np.arange(300) < count, labels, 1 - labels) for name, count in right.items()}
        alone = {(ALONE, 4): np.where(np.arange(300) < 180, labels, 1 - labels)}
        report = report_on({"a": labels[:, None]}, labels, adapted={"a": alone | answers})
        return report.answer[-1], render(report), report.to_json()["models"]["a"]["support"]["verdict"]

    answer, page, verdict = report_of_right(captions=181, good=270)
    assert (
        answer.startswith("With up to 4 labelled pictures of each class, a is right for 60.0")
        and "good +30.0 points" in answer
    )
    assert answer.endswith("points. The descriptions in good are the best, clearly better than those in captions.")
    assert verdict["winner"] == "good" and "They are clearly better than all others." in page
    answer, page, _ = report_of_right(good=270, same=269)
    assert answer.endswith("those in good are not clearly better than those in same.")
    assert "They are clearly better than all others." not in page
    answer, *_ = report_of_right(one=180, other=181)
    assert answer.endswith("one +0.0 points; other +0.3 points, none of which is shown to be more than chance.")
    answer, page, _ = report_of_right(bad=90)
    assert answer.endswith("bad −30.0 points.") and "first less second" not in page


def test_nothing_of_the_data_is_markup_on_the_page():
    labels = np.arange(60) % 2
    bad = "<script>alert(1)</script>"
    page = render(report_on({bad: 1 - labels[:, None]}, labels, names=(bad, "dog"), notes=[bad]))
    assert bad not in page and "&lt;script&gt;alert" in page


# --- the command ---------------------------------------------------------------------------------------------------


def test_a_folder_a_class_gives_report_page_and_predictions(scenes, tmp_path, capsys):
    (tmp_path / "set").symlink_to(scenes)
    broken = tmp_path / "more" / "star" / "broken.jpg"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(picture(0)[:40])
    output = tmp_path / "out"
    assert ask("--input", scenes, "--input", tmp_path / "more", "--output", output, "--batch-size", 7) == 0
    report = report_of(output)
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 25 and report["pictures"] == 24 and report["failed"] == 1
    assert [row["key"] for row in rows if row["error"]] == ["star/broken"] and rows[-1]["answers"] == {}
    right = [row["answers"]["coca_tiny"][0]["class"] == row["label"] for row in rows[:-1]]
    assert report["models"]["coca_tiny"]["top1"]["mean"] == pytest.approx(np.mean(right)) and 0.5 < np.mean(right)
    page = (output / "zero_shot.html").read_text()
    assert page.count("data:image/jpeg") == min(MISTAKES, len(right) - sum(right)) > 0
    printed = capsys.readouterr().out
    assert (
        printed.startswith("coca_tiny gives the right class at its first answer for ")
        and "1 of 25 pictures cannot be used, e.g. star/broken" in printed
    )
    assert ask("--input", scenes, "--output", output) == 2
    assert "holds a report; --overwrite replaces it" in capsys.readouterr().err
    assert report_of(output) == report
    assert ask("--input", scenes, "--output", output, "--overwrite") == 0
    assert report_of(output)["failed"] == 0


def test_class_names_have_their_order_and_classes_without_pictures_are_told(scenes, tmp_path):
    names = tmp_path / "names.tsv"
    names.write_text("star\tstar\ncircle\tcircle\nhippo\thippopotamus\nheart\theart\n")
    output = tmp_path / "out"
    # Squares, crosses and triangles are no classes: their pictures are rows with a reason, and more than allowed.
    assert ask("--input", scenes, "--output", output, "--class-names", names) == 2
    assert not output.exists()
    assert ask("--input", scenes, "--output", output, "--class-names", names, "--max-error-rate", 0.9) == 0
    report = report_of(output)
    assert [row["class"] for row in report["classes"]] == ["star", "circle", "hippo", "heart"]
    assert report["models"]["coca_tiny"]["by_class"]["hippo"] is None
    assert report["notes"][0].startswith("1 of 4 classes have no picture (hippopotamus)")


def test_two_classes_of_one_name_stay_apart(tmp_path):
    """ImageNet has two classes named 'missile', and two named 'sunglasses'."""
    for label in "01":
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "a.png").write_bytes(picture(int(label)))
    assert ask("--input", tmp_path / "set", "--output", tmp_path / "numbers") == 0
    assert report_of(tmp_path / "numbers")["notes"][0].startswith("The models are asked for '0', '1' and the like")
    (tmp_path / "names").write_text("star\nstar\n")
    assert ask("--input", tmp_path / "set", "--output", tmp_path / "out", "--class-names", tmp_path / "names") == 0
    assert [row["pictures"] for row in report_of(tmp_path / "out")["classes"]] == [1, 1]


def test_imagenets_folders_and_numbers_are_its_classes_by_their_ids(tmp_path):
    for label, name in (("n01440764", "tench"), ("n01443537", "goldfish")):
        (tmp_path / "val" / label).mkdir(parents=True)
        (tmp_path / "val" / label / f"{name}.png").write_bytes(picture(1))
    rows = [{"image": "a.png", "kind": 1}, {"image": "a.png", "kind": "tench"}]
    (tmp_path / "a.png").write_bytes(picture(2))
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for spec, place in ((tmp_path / "val", "folder"), (tmp_path / "set.jsonl", "kind")):
        shards, names = read_labelled([str(spec)], [], table=Columns(), label=place, class_names="imagenet")
        assert (
            list(names)[:2] == ["n01440764", "n01443537"] and len(names) == 1000 and names["n01443537"] == "goldfish"
        )
        assert {record.label for shard in shards for record in shard} == {"n01440764", "n01443537"}


def test_what_is_wrong_is_said_before_any_model_is_asked(scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "classify", None)
    single = tmp_path / "one" / "cat"
    single.mkdir(parents=True)
    (single / "a.png").write_bytes(picture(0))
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "a.png").write_bytes(picture(0))
    (tmp_path / "names").write_text("dog\nbird\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("precious")
    for flags, message in (
        (["--input", single.parent], "all pictures are of one class, 'cat'; at least two classes are needed"),
        (
            ["--input", tmp_path / "few"],
            "--label folder: the first 1 records have no label: 'a' lies in no folder",
        ),
        (
            ["--input", single.parent, "--class-names", tmp_path / "names"],
            "'cat' is none of the 2 classes, which begin with '0', '1'",
        ),
        (["--input", scenes, "--templates", "nope", "--class-names", "nope"], "--class-names nope: cannot be read"),
        (["--input", scenes, "--templates", "nope"], "--templates nope: is none of imagenet"),
        (["--input", scenes, "--model", "no/such folder"], "--model no/such folder: "),
        (["--input", scenes, "--output", other], "is not empty and has no report of capsmith zero-shot"),
        (["--input", scenes, "--output", scenes / "out"], "lies in a folder that is the input"),
    ):
        all_flags = flags if "--output" in flags else [*flags, "--output", tmp_path / "out"]
        assert ask(*all_flags) == 2, flags
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_more_broken_pictures_than_may_fail_are_exit_code_3(scenes, tmp_path):
    for number in range(4):
        (tmp_path / "more" / "star").mkdir(parents=True, exist_ok=True)
        (tmp_path / "more" / "star" / f"{number}.jpg").write_bytes(picture(number)[:200])
    assert ask("--input", scenes, "--input", tmp_path / "more", "--output", tmp_path / "out") == 3
    assert report_of(tmp_path / "out")["failed"] == 4


def test_batches_keep_their_order_whatever_the_threads():
    records = [Record(str(index), picture(index % 3)) for index in range(11)]
    records[4] = replace(records[4], image=b"x")
    prepared = [item for batch in prepare_batches(records, [np.asarray], batch_size=4, threads=3) for item in batch]
    assert [item.record.key for item in prepared] == [str(index) for index in range(11)]
    assert [index for index, item in enumerate(prepared) if item.error] == [4]


def test_numbers_that_are_none_are_told(coca_tiny, monkeypatch):
    from finetune.zero_shot.models import Classifier

    classifier = Classifier("broken", coca_tiny, "fp32")
    monkeypatch.setattr(coca_tiny, "embed_pictures", lambda pixels: F.normalize(torch.full((1, 4), torch.nan)))
    with pytest.raises(ValueError, match="--model broken: its features of some pictures are not finite numbers"):
        classifier.embed_pictures(torch.zeros(1, 3, 4, 4))
