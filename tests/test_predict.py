import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import benchmarks.predict.figures
import benchmarks.predict.ranking
import benchmarks.predict.sets
from benchmarks.evidence.students import ARMS, result_file
from benchmarks.evidence.tau import kendall_tau
from benchmarks.predict.__main__ import arms
from benchmarks.predict.design import FIRST, POOL, PRIMARY, SECOND, THIRD, WORLDS, Column
from benchmarks.predict.figures import BASELINES, COMPETITORS, INDEX, read_figures, turned, write_figures
from benchmarks.predict.lengths import candidates, draw_to_length
from benchmarks.predict.page import competitors_of, write_page
from benchmarks.predict.ranking import holm, permutation_p, rank
from benchmarks.predict.sets import draw, make_columns
from diversity.words.tokens import words
from imagetext.sample import Record
from imagetext.shards import ShardWriter
from imagetext.sources import read_records

buffer = io.BytesIO()
Image.new("RGB", (2, 2)).save(buffer, "PNG")
PNG = buffer.getvalue()

# Captions of a given length


def test_candidates_of_one_sentence_are_those_of_the_pool_as_often_as_they_stand_there():
    assert candidates(["A star. It is red.", "a star", "a star"], 1, "x") == [
        "A star.",
        "It is red.",
        "a star",
        "a star",
    ]
    assert candidates([], 2, "x") == candidates(["", " "], 2, "x") == []


def test_candidates_of_several_sentences_join_different_ones_by_the_name_alone():
    pool = ["one", "two.", "three", "three"]
    texts = candidates(pool, 2, "x")
    assert len(texts) == 4 and texts == candidates(pool, 2, "x") != candidates(pool, 2, "y")
    assert all(len({*text.split()}) == 2 and {*text.split()} <= {"one.", "two.", "three."} for text in texts)
    assert sorted(candidates(["a b", "c"], 3, "x")[0].split()) == [
        "a",
        "b.",
        "c.",
    ]  # joins all sentences if there are fewer


def pools(pictures=100, seed=0):
    random = np.random.default_rng(seed)
    return [[" ".join(["word"] * n) for n in random.integers(3, 12, size=8)] for _ in range(pictures)]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("length", [5.0, 7.25, 9.5])
def test_a_column_has_the_length_that_is_asked_for(k, length):
    pool = pools()
    groups = draw_to_length(pool, [str(index) for index in range(len(pool))], k, length, "x")
    assert np.mean([len(words(text)) for group in groups for text in group]) == pytest.approx(length, abs=0.05)
    assert all(len(group) == k for group in groups)
    for group, texts in zip(groups, pool):
        remaining = [*texts]
        for text in group:
            remaining.remove(text)  # raises if a text is used more often than it occurs in the pool


def test_captions_are_drawn_by_names_and_a_picture_may_have_fewer():
    pool = [*pools()[:-1], ["just one here"]]
    keys = [str(index) for index in range(len(pool))]
    first, again, other_name = (draw_to_length(pool, keys, 2, 7.0, name) for name in ("x", "x", "y"))
    assert first == again != other_name and first[-1] == ["just one here"]


def test_of_all_ways_to_draw_that_have_the_length_the_tilted_one_is_taken():
    """Shares of 2, 4 and 6 words with a mean of 4.8 are 1 : r : r², 1.2 r² - 0.8 r - 2.8 = 0."""
    pool = [["a b", "a b c d", "a b c d e f"]] * 2000
    lengths = [
        len(words(group[0])) for group in draw_to_length(pool, [str(index) for index in range(2000)], 1, 4.8, "x")
    ]
    r = (0.8 + np.sqrt(0.64 + 4 * 1.2 * 2.8)) / 2.4
    expected = np.array([1, r, r**2]) / (1 + r + r**2)
    assert [lengths.count(n) / 2000 for n in (2, 4, 6)] == pytest.approx(expected, abs=0.03)


def test_lengths_out_of_reach_and_pictures_without_captions_are_told():
    with pytest.raises(ValueError, match=r"short: 2\.00 to 3\.00 words can be had of its pools, not 5"):
        draw_to_length([["a b", "a b c"]], ["k"], 1, 5.0, "short")
    with pytest.raises(ValueError, match="short: 1 pictures without a caption, such as b"):
        draw_to_length([["a"], []], ["a", "b"], 1, 1.0, "short")


# The design


@pytest.mark.parametrize("world", WORLDS)
def test_every_column_has_its_pools_and_every_pool_its_captioner(world):
    assert {pool for column in world.columns.values() for pool in column.pools} == world.pools.keys()
    assert {pool.captioner for pool in world.pools.values()} <= {*world.captioners, "pretrained"}
    assert all(column.captions <= POOL for column in world.columns.values())
    assert len(world.columns) == sum(map(len, world.groups.values()))


def test_students_of_all_worlds_and_of_the_evidence_page_have_names_of_their_own():
    names = [*ARMS, *(name for world in WORLDS for name in arms(world))]
    assert len({*names}) == len(names)
    assert [len(world.columns) for world in WORLDS] == [30, 10, 21]
    settings = arms(SECOND)["four_long"].settings
    assert (
        settings["columns"] == "^syn_text_(four_long)$"
        and arms(SECOND)["level4_none"].settings["synthetic_weight"] == 0
    )


def test_a_mix_draws_from_all_its_pools():
    records = [
        Record(str(index), None, columns={"syn_text_a": ("a b c",) * 4, "syn_text_b": ("d e f",) * 4})
        for index in range(50)
    ]
    groups = draw(records, "mix", column=Column(("a", "b"), 3), length=3.0)
    assert {text for group in groups for text in group} == {"a b c", "d e f"}


def test_columns_are_made_once_beside_what_the_records_have(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks.predict.sets, "make_views", lambda output, name: None)
    world = FIRST._replace(groups={2.0: {"x_one": Column(("much",), 1)}, 4.0: {"x_two": Column(("much",), 2, 2)}})
    (folder := tmp_path / "level2_pools").mkdir()
    with ShardWriter(folder, "a", columns=("syn_text_much",)) as shard:
        for index in range(4):
            shard.write(
                Record(f"k{index}", PNG, ("alt",), {"syn_text_much": ("a b", "c d", "e f")}, meta={"scene": {}})
            )
    make_columns(tmp_path, world)
    records = [*read_records(str(tmp_path / "level2_captioned" / "*.tar"))]
    assert [record.key for record in records] == ["k0", "k1", "k2", "k3"] and records[0].captions == ("alt",)
    assert {*records[0].columns} == {"syn_text_x_one", "syn_text_x_two"}
    assert all(len(words(text)) == 4 for record in records for text in record.columns["syn_text_x_two"])
    monkeypatch.setattr(benchmarks.predict.sets, "read_records", None)
    make_columns(tmp_path, world)  # does not read the pools again


# Ranks


def test_tau_within_groups_compares_columns_of_a_group_alone():
    figure, scores, groups = [1, 2, 3, 10, 20, 30], [3, 2, 1, 30, 20, 10], [0, 0, 0, 1, 1, 1]
    assert kendall_tau(figure, scores, groups) == -1 and kendall_tau(figure, scores) > 0
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 12))
    taus = [stats.kendalltau(one[part], other[part]).statistic for part in (slice(0, 6), slice(6, 12))]
    assert kendall_tau(one, other, [0] * 6 + [1] * 6) == pytest.approx(np.mean(taus))


@pytest.fixture
def quick(monkeypatch):
    """Use few resamples and permutations."""
    monkeypatch.setattr(benchmarks.predict.ranking, "RESAMPLES", 50)
    monkeypatch.setattr(benchmarks.predict.ranking, "PERMUTATIONS", 200)


def test_a_figure_is_ranked_beside_length(quick):
    groups = np.repeat([0, 1, 2], 6)
    quality = np.tile(np.arange(6.0), 3)
    scores = (quality + 0.5 * groups)[:, None] + np.zeros(3)
    rough = np.tile([0, 2, 1, 5, 4, 3], 3)
    ranks = rank({"good": quality, "rough": rough, "noise": quality * 0, "length": groups}, scores, groups)
    assert (
        ranks["rough"].within.low < ranks["rough"].within.value < ranks["rough"].within.high < 1
    )  # the interval comes from resampling columns alone
    good = ranks["good"]
    assert good.within == (1, 1, 1) and good.p_within < 0.01 and good.above.low > 0 and good.p_above < 0.05
    assert np.isnan(ranks["noise"].within.value) and ranks["noise"].p_within == 1
    assert ranks["length"].above == (0, 0, 0) and ranks["length"].p_above == 1
    assert ranks["length"].overall.value == pytest.approx(kendall_tau(groups, scores[:, 0]))


def test_the_permutation_test_of_three_columns_is_exact_to_chance():
    p = permutation_p([1, 2, 3], np.array([1.0, 2.0, 3.0]), np.zeros(3, int))
    assert p == pytest.approx(1 / 6, abs=0.02)


def test_holm_corrects_each_test_for_those_that_are_left():
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
    assert corrected == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.9})


# Figures and page


def test_figures_are_measured_once_a_column(tmp_path, monkeypatch):
    measured = []

    class Stub:
        def __init__(self, records, references, clip):
            assert len(records) == len(references) == 3 and all(len(group) == 5 for group in references)

        def figures(self, captions):
            measured.append(captions)
            return {"length": 2.0}

    monkeypatch.setattr(benchmarks.predict.figures, "Sample", Stub)
    keys = [f"scenes-train2-{index:06}" for index in range(3)]
    records = [Record(key, PNG, ("alt",), {"syn_text_x": ("a b",), "syn_text_y": ("c d",)}) for key in keys]
    monkeypatch.setattr(benchmarks.predict.figures, "read_records", lambda spec: iter(records))
    monkeypatch.setattr(benchmarks.predict.figures, "curated", lambda pictures, records: [("a",) * 5 for _ in records])
    for _ in range(2):
        write_figures(tmp_path / "figures", tmp_path, FIRST.pictures, ["x", "y"], tmp_path)
    assert measured == [[("a b",)] * 3, [("c d",)] * 3]
    assert read_figures(tmp_path / "figures", ["y"]) == [{"length": 2.0}]


def test_figures_of_which_less_is_better_are_turned_and_the_index_is_a_mean_of_ranks():
    values = {name: [0.0, 0.0, 0.0, 0.0] for name in (PRIMARY, *COMPETITORS, *BASELINES) if name != "index"}
    first, second, third = INDEX
    values |= {first: [1, 2, 3, 4], second: [5, 5, 5, 9], third: [0.3, 0.2, 0.1, 0.0]}
    figures = turned([{name: column[index] for name, column in values.items()} for index in range(4)])
    assert third == "degenerate" and [*figures["degenerate"]] == [-0.3, -0.2, -0.1, 0]
    assert [*figures["index"]] == pytest.approx([1 / 3, 1, 5 / 3, 3])


def test_the_primary_figure_of_a_world_is_one_of_those_that_were_fixed_at_first():
    assert [world.primary for world in WORLDS] == [PRIMARY, PRIMARY, "found_clip"]
    assert THIRD.primary in COMPETITORS and competitors_of(THIRD.primary).count(THIRD.primary) == 0
    assert sorted([THIRD.primary, *competitors_of(THIRD.primary)]) == sorted([PRIMARY, *COMPETITORS])


@pytest.mark.parametrize("worlds", [WORLDS, (FIRST, SECOND)])
def test_a_page_has_tables_of_the_worlds_that_have_results(tmp_path, quick, worlds):
    random = np.random.default_rng(0)
    for world in worlds:
        for length, group in world.groups.items():
            for name in group:
                row = dict.fromkeys((PRIMARY, *COMPETITORS, *BASELINES), float(random.normal())) | {"length": length}
                (folder := tmp_path / f"{world.name}_figures").mkdir(exist_ok=True)
                (folder / f"{name}.json").write_text(json.dumps(row))
        for name in arms(world):
            score = dict.fromkeys(("score", "classification", "retrieval"), float(random.normal()))
            (file := result_file(tmp_path, name, 0)).parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(score))
    parts = [f"{world.name}-{part}" for world in WORLDS for part in ("columns", "within", "seeds", "picture")]
    parts += ["level2-overall", "level3-overall"]
    (page := tmp_path / "page.md").write_text("\n".join(f"<!-- {of} -->\nold\n<!-- /{of} -->" for of in parts))
    write_page(page, tmp_path)
    text = page.read_text()
    assert text.count("\nold\n") == 5 * (len(WORLDS) - len(worlds))
    assert text.count("| primary |") == 3 + 2 * (len(worlds) - 2)
    assert [(tmp_path / f"page-{world.name}.png").exists() for world in WORLDS] == [
        world in worlds for world in WORLDS
    ]
    with pytest.raises(ValueError, match="no seed yet that every column of a world has"):
        write_page(page, tmp_path / "nothing")
