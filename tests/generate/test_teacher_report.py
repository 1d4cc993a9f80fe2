"""The report on teachers, against loops and closed forms."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from generate.reinforce.report import agreement, ensemble_retrieval, measure, retrieval, sweep, write_report
from imagetext.reinforced.embeddings import pack
from imagetext.sample import Record
from imagetext.shards import ShardWriter

TEACHERS = [{"name": "one", "dimension": 3, "logit_scale": 20.0}, {"name": "two", "dimension": 2, "logit_scale": 50.0}]


def ranks_in_loops(scores, answers):
    """Return how many captions beat each picture's own, and how many pictures beat each caption's best own picture."""
    to_text = [
        sum(score > row[answer_of_row] for score in row) for row, answer_of_row in zip(scores, answers)
    ]  # without ties
    to_image = []
    for answer in range(len(scores[0])):
        best = max(row[answer] for row, answer_of_row in zip(scores, answers) if answer_of_row == answer)
        to_image.append(sum(row[answer] > best for row in scores))
    return to_text, to_image


def shares(ranks):
    return [sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5)]


def test_retrieval_is_that_of_loops_over_pictures_and_captions():
    scores = torch.randn(40, 25, generator=torch.Generator().manual_seed(0))
    answers = torch.arange(40) % 25
    scores[torch.arange(40), answers] += 1.5
    to_text, to_image = ranks_in_loops(scores.tolist(), answers.tolist())
    measured = retrieval(scores, answers)
    assert list(measured.values()) == pytest.approx([*shares(to_text), *shares(to_image)])
    assert list(measured) == ["image_to_text@1", "image_to_text@5", "text_to_image@1", "text_to_image@5"]
    assert 0.1 < min(measured.values()) and max(measured.values()) < 1


def test_of_captions_that_are_not_told_apart_half_come_first():
    assert list(retrieval(torch.zeros(8, 8), torch.arange(8)).values()) == [0, 1, 0, 1]
    assert list(retrieval(torch.zeros(13, 13), torch.arange(13)).values()) == [0, 0, 0, 0]


def test_the_ensemble_is_the_mean_of_probabilities():
    generator = torch.Generator().manual_seed(1)
    logits = [20 * torch.randn(12, 12, generator=generator), torch.randn(12, 12, generator=generator)]
    answers = torch.arange(12)
    rows = [
        [
            sum(
                math.exp(matrix[i][j] - max(matrix[i])) / sum(math.exp(x - max(matrix[i])) for x in matrix[i])
                for matrix in (tensor.tolist() for tensor in logits)
            )
            for j in range(12)
        ]
        for i in range(12)
    ]
    turned = [tensor.T.tolist() for tensor in logits]
    columns = [
        [
            sum(
                math.exp(matrix[j][i] - max(matrix[j])) / sum(math.exp(x - max(matrix[j])) for x in matrix[j])
                for matrix in turned
            )
            for j in range(12)
        ]
        for i in range(12)
    ]
    expected = [*shares(ranks_in_loops(rows, range(12))[0]), *shares(ranks_in_loops(columns, range(12))[1])]
    assert list(ensemble_retrieval(logits, answers).values()) == pytest.approx(expected)


def test_a_teacher_agrees_with_itself_and_not_with_its_opposite():
    logits = torch.eye(4) * 100
    assert agreement(logits, logits) == {"same_top1": 1, "js_divergence": pytest.approx(0, abs=1e-6)}
    measured = agreement(logits, logits.flip(0))
    assert measured == {"same_top1": 0, "js_divergence": pytest.approx(math.log(2))}


def test_the_sweep_is_the_closed_form_of_orthogonal_captions():
    measured = sweep(torch.eye(5), torch.arange(5), own_scale=2.5)
    assert [row["logit_scale"] for row in measured["sweep"]] == [2.5, *range(10, 101, 10)] and measured["own"] == 2.5
    for row in measured["sweep"][:3]:
        share = 1 / (1 + 4 * math.exp(-row["logit_scale"]))
        share_of_others = (1 - share) / 4
        assert row["nats"] == pytest.approx(-math.log(share), rel=1e-3, abs=1e-6)
        assert row["perplexity"] == pytest.approx(
            math.exp(-share * math.log(share) - 4 * share_of_others * math.log(share_of_others)), rel=1e-3
        )
    assert (
        sweep(torch.eye(4).flip(0), torch.arange(4), own_scale=1.0)["best"] == 1.0
    )  # wrong answers cost less with a smaller scale


def test_captions_of_the_same_words_are_one_answer_and_missing_ones_none():
    rows = F.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(2)), dim=1)
    rows[2] = rows[0]
    measured = measure(rows, ["a", "b", "a", ""], rows, teachers=TEACHERS)
    assert (measured["pictures"], measured["answers"]) == (3, 2)
    assert all(
        share == 1 for shares_of_teacher in measured["retrieval"].values() for share in shares_of_teacher.values()
    )
    assert list(measured["retrieval"]) == ["one", "two", "ensemble"] and measured["agreement"][0]["teachers"] == [
        "one",
        "two",
    ]


@pytest.fixture
def written(tmp_path, picture):
    """A set of six records whose first teacher knows every caption, and whose second knows nothing."""
    (tmp_path / "run.json").write_text('{"fingerprint": {"columns": {}}}')
    for shard in range(2):
        with ShardWriter(tmp_path, f"0000{shard}") as writer:
            for number in range(3):
                row = torch.eye(3)[number]
                image = torch.stack([torch.cat([row, torch.tensor([1.0, 0])])] * 2)
                text = torch.cat([row, torch.tensor([0, 1.0])])[None]
                members = {"npz": pack({"image_emb": image, "text_emb": text, "syn_text_a_emb": text}, "npz")}
                columns = {"syn_text_a": (f"caption {number}",)}
                writer.write(
                    Record(f"{shard}{number}", picture(), (f"original {number}",), columns=columns, members=members)
                )
            writer.write(Record(f"{shard}failed", None, error="it failed"))
    return tmp_path


def test_a_report_is_of_all_shards_and_every_kind_of_caption(written, capsys):
    report = write_report(written, TEACHERS)
    assert json.loads((written / "report.json").read_text()) == report
    assert report["records"] == 6 and list(report["captions"]) == ["txt", "syn_text_a"]
    for measured in report["captions"].values():
        assert (measured["pictures"], measured["answers"]) == (6, 3)
        assert set(measured["retrieval"]["one"].values()) == {1.0} and measured["logit_scale"]["one"]["own"] == 20
        assert [measured["retrieval"]["two"][f"{way}@1"] for way in ("image_to_text", "text_to_image")] == [0, 0]
    printed = capsys.readouterr().out
    assert "6 records compared" in printed and "ensemble" in printed and "Jensen-Shannon" in printed


def test_embeddings_of_other_teachers_are_an_error(written):
    with pytest.raises(ValueError, match="00: embeddings of 5 dimensions, its teachers have 3"):
        write_report(written, TEACHERS[:1])
