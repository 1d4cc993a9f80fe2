"""The page in headless Chromium, wide and narrow, light and dark: no errors, and no requests to anywhere else."""

import json
import re
import shutil
import subprocess
from html import escape
from typing import NamedTuple

import pytest

from diversity.page.page import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")

WIDE, NARROW = (1280, 900), (500, 900)  # no window is narrower than 500
WIDTHS = (320, 390, 600, 800, 1000, 1280)
LIGHT, DARK = 1, 0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
    "--dump-dom",
)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


class Visit(NamedTuple):
    """Return a page's elements after its scripts ran, its console messages, its requests, and a screenshot."""

    dom: str
    console: list[str]
    requests: list[str]


def visit(page: str, folder, size=WIDE, scheme=LIGHT) -> Visit:
    (folder / "page.html").write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={size[0]},{size[1]}",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--log-net-log={folder / 'net.json'}",
            (folder / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "</html>" in done.stdout, done.stderr
    return Visit(
        done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line], requests(folder / "net.json")
    )


def requests(path) -> list[str]:
    """Addresses that the page asked for; what the browser asks for itself, such as updates, has no origin."""
    log = json.loads(path.read_text(encoding="utf-8"))
    started = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    return [
        event["params"]["url"]
        for event in log["events"]
        if event["type"] == started and event.get("params", {}).get("initiator", "not an origin") != "not an origin"
    ]


def run_in(page: str, script: str) -> str:
    """The page with a script of the test's at its end, which the page's own policy would not let run."""
    return POLICY.sub("", page).replace("</body>", f"<script>{script}</script></body>")


@pytest.fixture(scope="module")
def page(made_up_report):
    columns = (
        "syn_text_one",
        "syn_text_a_captioner_of_a_name_much_longer_than_any_telephone_is_wide",
        "syn_text_three",
    )
    return render(made_up_report(columns, caption="a dog & <b>" + "verylongword" * 12))


@pytest.mark.parametrize(
    ("size", "scheme"),
    [(WIDE, LIGHT), (WIDE, DARK), (NARROW, LIGHT), (NARROW, DARK)],
    ids=["wide-light", "wide-dark", "narrow-light", "narrow-dark"],
)
def test_no_error_and_no_request(page, tmp_path, size, scheme):
    result = visit(page, tmp_path, size, scheme)
    assert result.console == []
    assert result.requests == []
    assert (
        '<div class="filters" role="group" aria-label="What is shown">' in result.dom
    )  # the script took `hidden` away


def test_errors_and_requests_are_seen(page, tmp_path):
    script = "fetch('http://example.invalid/fetched').catch(() => 0); throw new Error('thrown here')"
    result = visit(run_in(page, script), tmp_path)
    assert any("thrown here" in line for line in result.console)
    assert "http://example.invalid/fetched" in result.requests


def test_the_policy_of_the_page_forbids_requests_and_other_scripts(page, tmp_path):
    evil = '<img src="http://example.invalid/seen"><script>document.title = "ran"</script></body>'
    result = visit(page.replace("</body>", evil), tmp_path)
    assert result.requests == []
    assert "<title>ran</title>" not in result.dom
    assert len(result.console) == 2


def test_colours_follow_the_scheme(page, tmp_path):
    script = "document.title = getComputedStyle(document.body).backgroundColor"
    brightest = {}
    for scheme in (LIGHT, DARK):
        title = re.search(
            r"<title>rgb\((.*)\)</title>", visit(run_in(page, script), tmp_path, WIDE, scheme).dom
        ).group(1)
        brightest[scheme] = max(map(int, title.split(", ")))
    assert brightest[LIGHT] > 200 and brightest[DARK] < 60


def test_nothing_is_wider_than_the_screen(page, tmp_path):
    inner = escape(run_in(page, "parent.document.title += ` ${innerWidth}:${document.documentElement.scrollWidth}`"))
    frames = "".join(f'<iframe style="width: {width}px; border: 0" srcdoc="{inner}"></iframe>' for width in WIDTHS)
    dom = visit(f"<!doctype html><html><head><title></title></head><body>{frames}</body></html>", tmp_path).dom
    result = sorted(
        tuple(map(int, pair.split(":"))) for pair in re.search(r"<title>(.*)</title>", dom).group(1).split()
    )
    assert result == [(width, width) for width in WIDTHS]


def test_buttons_show_and_hide_pictures_and_columns(page, tmp_path):
    script = """
        const press = value => document.querySelector(`button[value="${value}"]`).click();
        const shown = () => [...document.querySelectorAll(".pictures article, .pictures article section")]
            .filter(element => element.checkVisibility()).map(element => element.dataset.of);
        const counted = [shown()];
        for (const value of ["worst", "column-1", "worst", "column-1"]) { press(value); counted.push(shown()); }
        document.title = JSON.stringify(counted.map(of => ["best", "worst", "column-1", "column-2"]
            .map(name => of.filter(other => other === name).length)));"""
    counted = json.loads(re.search(r"<title>(.*)</title>", visit(run_in(page, script), tmp_path).dom).group(1))
    assert counted == [[2, 2, 6, 6], [2, 0, 4, 4], [2, 0, 0, 4], [2, 2, 0, 6], [2, 2, 6, 6]]
