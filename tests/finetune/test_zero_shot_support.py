"""A few labelled pictures as an adapter: the paper's formula, leave-one-out accuracy, and the command."""

import json

import pytest
import torch
import torch.nn.functional as F

import capsmith
from finetune.identity import picture_hash
from finetune.zero_shot.support import (
    ALONE,
    Adapter,
    Shot,
    adapter_keys,
    adapters,
    draw_shots,
    embed_descriptions,
    read_descriptions,
)
from imagetext.sample import Record
from imagetext.sources import read_records

from .sets import picture


def units(count, seed):
    return F.normalize(
        torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def test_logits_are_the_papers():
    pictures, texts, classes, queries = units(8, 0), units(8, 1), units(3, 2), units(5, 3)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    theta, alpha, beta = 0.3, 10.0, 5.5
    affinity = theta * queries @ texts.T + (1 - theta) * queries @ pictures.T
    slow = 100 * queries @ classes.T + alpha * torch.exp(-beta * (1 - affinity)) @ F.one_hot(labels, 3).double()
    adapter = Adapter(adapter_keys(pictures, texts, theta), labels, 3, alpha=alpha, beta=beta)
    assert torch.allclose(adapter(queries, classes), slow)
    right = []
    for index in range(8):
        others = [other for other in range(8) if other != index]
        without = Adapter(adapter_keys(pictures, texts, theta)[others], labels[others], 3, alpha=alpha, beta=beta)
        right.append(without(pictures[[index]], classes).argmax().item() == labels[index])
    assert adapter.leave_one_out_accuracy(pictures, classes, labels) == pytest.approx(sum(right) / 8)


def test_what_descriptions_tell_helps_and_settings_are_chosen_by_the_support_alone():
    labels, ranks = torch.arange(3).repeat_interleave(5), torch.arange(5).repeat(3)
    direction = torch.eye(6, dtype=torch.float64)[:3]
    classes = F.normalize(direction.sum(dim=0), dim=0).expand(3, -1)  # classes that cannot be told apart
    texts = direction[labels]
    pictures = F.normalize(direction[labels] + 2 * units(15, 7), dim=1)
    right = torch.arange(60) % 3
    queries = F.normalize(direction[right] + 0.8 * units(60, 8), dim=1)

    def accuracy(descriptions):
        return {
            count: (adapter(queries, classes).argmax(dim=1) == right).double().mean().item()
            for count, adapter in adapters(pictures, descriptions, labels=labels, ranks=ranks, classes=classes).items()
        }

    alone, helped = accuracy(None), accuracy(texts)
    assert list(alone) == [1, 2, 4, 5] and helped[5] > alone[5] and helped[5] > 0.8
    first = ranks < 1
    one_shot = adapters(pictures[first], None, labels=labels[first], ranks=ranks[first], classes=classes)
    assert list(one_shot) == [1]


def test_shots_are_drawn_by_key_and_none_is_asked_for():
    records = [Record(f"r{number}", picture(number), label=("cat", "dog")[number % 2]) for number in range(10)]
    bad = [
        Record("broken", b"x", label="cat"),
        Record("none", None, label="cat", error="no label"),
        Record("other", picture(99), label="emu"),
    ]
    class_indices, settings = {"cat": 0, "dog": 1}, {"seed": 0, "input_hashes": {picture_hash(picture(0)), b"?"}}
    shots, left_out = draw_shots([*records, *bad], class_indices, 3, **settings)
    again, _ = draw_shots([*bad, *reversed(records)], class_indices, 3, **settings)
    assert left_out == 1 and shots == again
    assert [(shot.label, shot.rank) for shot in shots] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert "r0" not in {shot.record.key for shot in shots}
    two, _ = draw_shots(records, class_indices, 2, **settings)
    assert [shot for shot in shots if shot.rank < 2] == two
    with pytest.raises(ValueError, match="--support: no picture that can be used; 1 are among those of --input"):
        draw_shots(records[:1], class_indices, 3, **settings)


def test_descriptions_are_those_of_the_columns_asked_for():
    shots = [Shot(Record("a", b"", ("a cat",), {"syn_text_x": ("one", "two")}), 0, 0), Shot(Record("b", b""), 1, 0)]
    assert read_descriptions(shots, []) == {"captions": [("a cat",), ()], "syn_text_x": [("one", "two"), ()]}
    with pytest.raises(
        ValueError, match="syn_text_y: no picture of --support has captions in it; there are syn_text_x"
    ):
        read_descriptions(shots, ["syn_text_y"])
    vectors = {"one": [1.0, 0.0], "two": [0.0, 1.0]}
    pictures = torch.tensor([[0.6, 0.8], [0.8, 0.6]])
    features = embed_descriptions(
        lambda texts: torch.tensor([vectors[text] for text in texts]), [("one", "two"), ()], pictures
    )
    assert torch.allclose(features, torch.tensor([[0.5**0.5, 0.5**0.5], [0.8, 0.6]]))


def test_the_command_reports_accuracy_against_the_shots(tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        with open(tmp_path / split / "set.jsonl", "w") as table:
            for record in read_records(f"scenes:{split},n=20,level=2"):
                (tmp_path / split / f"{record.key}.jpg").write_bytes(record.image)
                (first, *_) = record.meta["scene"]["objects"]
                colour = "red" if first["colour"] in ("red", "orange", "yellow", "purple") else "blue"
                row = {
                    "image": f"{record.key}.jpg",
                    "kind": colour,
                    "syn_text_x": [f"a {colour} thing"],
                    "captions": [],
                }
                table.write(json.dumps(row) + "\n")
    flags = [
        "zero-shot",
        "--model",
        "coca_tiny",
        "--templates",
        "plain",
        "--label",
        "kind",
        "--input",
        str(tmp_path / "test" / "set.jsonl"),
    ]
    flags += ["--output", str(tmp_path / "out")]
    assert capsmith.main([*flags, "--column", "syn_text_x"]) == 2
    assert "--column: is a setting of --support" in capsys.readouterr().err
    assert capsmith.main([*flags, "--support", str(tmp_path / "train" / "set.jsonl"), "--shots", "3"]) == 0
    report = json.loads((tmp_path / "out" / "zero_shot.json").read_text())
    support = report["models"]["coca_tiny"]["support"]
    assert {name: list(by_count) for name, by_count in support["top1"].items()} == {
        ALONE: ["1", "2", "3"],
        "syn_text_x": ["1", "2", "3"],
    }
    assert [(difference["first"], difference["second"]) for difference in support["differences"]] == [
        (ALONE, "syn_text_x")
    ]
    assert "With up to 3 labelled pictures of each class, coca_tiny is right for" in " ".join(report["answer"])
    assert "With a few labelled pictures" in (tmp_path / "out" / "zero_shot.html").read_text()
