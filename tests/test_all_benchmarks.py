"""`benchmarks.all`: each case has its ratio in RESULTS.md, and one that became worse, or failed, is named."""

import pytest

from benchmarks import all as everything
from benchmarks.all import CASES, RESULTS, Case, is_worse, known_ratio


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.module}-{case.name}")
def test_results_have_the_ratio_of_each_case(case):
    assert known_ratio(case, RESULTS.read_text(encoding="utf-8")) > 0


def test_a_ratio_is_that_of_its_own_benchmark_and_case():
    results = (
        "| benchmark | case | ratio |\n|---|---|---:|\n| b | x | 3 | |\n| a | x-long | 7 | |\n| a | x | 2.5 | |\n"
    )
    assert known_ratio(Case("a", "x"), results) == 2.5
    with pytest.raises(ValueError, match="no row has benchmark a and case y"):
        known_ratio(Case("a", "y"), results)


@pytest.mark.parametrize(
    "small_is_good, ratio, worse",
    [
        (False, 1.9, False),
        (False, 1.8, True),
        (False, 5, False),
        (True, 2.1, False),
        (True, 2.3, True),
        (True, 1, False),
    ],
)
def test_worse_is_more_than_a_tenth(small_is_good, ratio, worse):
    assert is_worse(Case("a", "x", small_is_good=small_is_good), ratio, known=2.0) is worse


def test_what_became_worse_or_failed_is_named(monkeypatch, capsys):
    cases = (Case("decoding", "b32-t30"), Case("decoding", "b32-t77"), Case("generate", "b32-coco", peer_python=True))
    monkeypatch.setattr(everything, "CASES", cases)
    monkeypatch.setattr(everything, "measure", lambda case, _: {"b32-t30": 0.5}.get(case.name))
    monkeypatch.setattr("sys.argv", ["all"])
    assert everything.main() == 1
    table, _, named = capsys.readouterr().out.partition("Worse than")
    assert "| generate | b32-coco | not run" in table and "| decoding | b32-t77 | failed" in table
    assert "decoding b32-t30: 0.5, and RESULTS.md has" in named and "decoding b32-t77 failed" in named
    monkeypatch.setattr(everything, "measure", lambda case, _: 1000.0)
    assert everything.main() == 0
