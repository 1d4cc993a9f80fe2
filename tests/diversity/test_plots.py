import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from diversity.page import plots
from diversity.page.plots import INK, columns_of, plot, svg
from diversity.verdict.compare import Estimate


@pytest.fixture
def axes_by_title(monkeypatch):
    """Of a report its figures by title, before they are written."""

    def draw(report):
        monkeypatch.setattr(plots, "svg", lambda figure, label: figure)
        return {result.title: result.svg.axes[0] for result in plots.plots(report, columns_of(report))}

    return draw


def marks(axes):
    """Where the mark of each column stands."""
    return {text.get_text(): text.xy for text in axes.texts}


def test_columns_keep_their_number_and_colour(made_up_report):
    columns = columns_of(made_up_report(tuple("abcdefghij")))
    assert [column.mark for column in columns] == [*map(str, range(1, 11)), "H"]
    assert len({column.colour for column in columns[:8]}) == 8
    assert [column.human for column in columns] == [False] * 10 + [True]
    assert columns[-1].colour not in plots.COLOURS


def test_a_point_is_the_two_means_and_its_cross_their_intervals(made_up_report, axes_by_title):
    report = made_up_report()
    axes = axes_by_title(report)["Spread against fidelity"]
    x, y = report.intervals["syn_text_one"]["div_2"], report.intervals["syn_text_one"]["clip_score"]
    assert marks(axes)["1"] == pytest.approx((x.mean, y.mean))
    lines = [line.get_xydata() for line in axes.lines]
    for cross in ([[x.low, y.mean], [x.high, y.mean]], [[x.mean, y.low], [x.mean, y.high]]):
        assert any(np.shape(line) == (2, 2) and np.allclose(line, cross) for line in lines)


def test_the_best_has_a_ring_and_a_suspect_a_cross(made_up_report, axes_by_title):
    report = made_up_report()
    axes = axes_by_title(replace(report, verdict=report.verdict._replace(winner="syn_text_other")))[
        "Spread against fidelity"
    ]
    rings = [
        line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o" and line.get_markersize() == plots.RING
    ]
    crosses = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "x"]
    assert np.allclose(rings, [marks(axes)["2"]]) and np.allclose(crosses, [marks(axes)["3"]])


def test_better_is_up_and_right_also_where_lower_is_better(made_up_report, axes_by_title):
    report = made_up_report(fidelity="degenerate", spread="mbleu_4")
    axes = axes_by_title(report)["Spread against fidelity"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1] and axes.get_xlim()[0] > axes.get_xlim()[1]
    assert marks(axes)["1"][1] == pytest.approx(100 * report.intervals["syn_text_one"]["degenerate"].mean)


def test_axes_end_at_the_bounds_of_a_share(made_up_report, axes_by_title):
    report = made_up_report(fidelity="precision")
    for estimates in report.intervals.values():
        estimates["precision"] = Estimate(1.0, 0.99, 1.0)
    axes = axes_by_title(report)["Spread against fidelity"]
    assert axes.get_ylim()[1] == 100


def test_one_caption_a_picture_has_no_spread_to_draw(made_up_report, axes_by_title):
    result = axes_by_title(made_up_report(spread=None))
    assert "Spread against fidelity" not in result
    assert "CLIPScore" in result["Picture by picture"].get_xlabel()


def test_a_distribution_is_high_where_its_pictures_are(made_up_report, axes_by_title):
    report = made_up_report(("a", "b"), human=False)
    report.distributions["a"]["div_2"] = np.linspace(0.2, 0.4, 41)  # as many pictures at any value between
    report.distributions["b"]["div_2"] = np.full(41, 0.7)  # all at one
    even, single = [
        line for line in axes_by_title(report)["Picture by picture"].lines if len(line.get_xdata()) == plots.GRID
    ]
    x, y = even.get_data()
    inside, outside = y[(x > 0.25) & (x < 0.35)], y[(x < 0.15) | (x > 0.45)]
    assert np.ptp(inside) < 0.01 and outside.max() < 0.02 < inside.min()
    x, y = single.get_data()
    assert x[y.argmax()] == pytest.approx(0.7, abs=0.01)


def test_a_constant_score_can_be_drawn(made_up_report, axes_by_title):
    report = made_up_report(("a",), human=False)
    report.distributions["a"]["div_2"] = np.zeros(41)
    line = next(
        line for line in axes_by_title(report)["Picture by picture"].lines if len(line.get_xdata()) == plots.GRID
    )
    assert np.isfinite(line.get_ydata()).all()


def test_lengths_are_shares_of_the_captions(made_up_report, axes_by_title):
    report = made_up_report(("a",), human=False)
    report.rows["a"]["length_histogram"] = {2: 1, 4: 3}
    line = axes_by_title(report)["Length"].lines[0]
    assert line.get_xdata().tolist() == [0, 1, 2, 3, 4]
    assert line.get_ydata().tolist() == [0, 0, 25, 0, 75]


def test_no_words_no_lengths(made_up_report, axes_by_title):
    report = made_up_report(("a",), human=False)
    report.rows["a"] |= {"length_histogram": {0: 5}, "rank_frequency": []}
    assert list(axes_by_title(report)) == ["Spread against fidelity", "Picture by picture"]


def test_frequencies_are_shares_of_the_words(made_up_report, axes_by_title):
    report = made_up_report(("a",), human=False)
    report.rows["a"] |= {"words": 50, "rank_frequency": [[1, 20], [2, 5]]}
    axes = axes_by_title(report)["Rank and frequency"]
    assert axes.lines[0].get_xydata().tolist() == [[1, 40], [2, 10]]
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_marks_of_curves_stand_apart_on_their_curves(made_up_report, axes_by_title):
    for title in ("Length", "Rank and frequency"):
        axes = axes_by_title(made_up_report())[title]
        places = np.array(list(marks(axes).values()))
        assert len(np.unique(places, axis=0)) == 4
        curves = [line.get_xydata() for line in axes.lines if len(line.get_xdata()) > 1]
        assert all(any(np.isclose(curve, place).all(axis=1).any() for curve in curves) for place in places)


def test_no_mark_covers_another_where_a_dozen_curves_lie_together(made_up_report, axes_by_title):
    report = made_up_report(tuple("abcdefghijkl"))
    for number, row in enumerate(report.rows.values()):
        row |= {"words": 4000, "rank_frequency": [[rank, 500 // rank + number % 2] for rank in range(1, 300)]}
        row["length_histogram"] = {length: 100 - abs(length - 30) + number % 3 for length in range(60)}
    for title in ("Length", "Rank and frequency"):
        axes = axes_by_title(report)[title]
        axes.figure.canvas.draw()
        places = 72 / axes.figure.dpi * axes.transData.transform(list(marks(axes).values()))
        distances = [np.hypot(*(one - other)) for one, other in itertools.combinations(places, 2)]
        assert min(distances) > 0.8 * plots.BADGE  # the room for the numbers of the axes is not known before


def test_the_ink_is_the_page_s_and_ids_are_only_those_used(made_up_report):
    for result in plots.plots(report := made_up_report(), columns_of(report)):
        assert "currentColor" in result.svg and INK not in result.svg
        assert all(f"#{name}" in result.svg for name in re.findall(r'\bid="([^"]*)"', result.svg))
        assert result.svg.startswith(f'<svg role="img" aria-label="{result.title}"')


def test_a_label_is_escaped():
    figure, _ = plot()
    assert 'aria-label="&#34;&lt;"' in svg(figure, '"<')
