"""Signals, readers that go away, and closed standard files: commands clean up and return an exit code."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import capsmith
from imagetext import stops
from imagetext.lock import LOCK, FolderLock

ROOT = Path(capsmith.__file__).parent


@pytest.fixture(autouse=True)
def handlers():
    """Restore the signal handlers of this process afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *stops.STOPPED)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_command_in_order(monkeypatch, capsys, tmp_path, number, code):
    def command(argv):
        with FolderLock(tmp_path / "out"):
            (tmp_path / "out/x").touch()
            os.kill(os.getpid(), number)

    monkeypatch.setitem(capsmith.COMMANDS, "verify", command)
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    assert capsmith.main(["verify"]) == code
    assert capsys.readouterr().err == "capsmith verify: interrupted; the same command resumes\n"
    assert os.listdir(tmp_path / "out") == ["x"]
    if number != signal.SIGINT:
        os.kill(os.getpid(), number)  # again, while it ends: ignored


@pytest.mark.parametrize("kind", [ImportError, ValueError])
def test_an_error_that_a_library_makes_of_an_interrupt_is_an_interrupt(monkeypatch, capsys, kind):
    def command(argv):
        try:
            raise KeyboardInterrupt(signal.SIGTERM)
        except KeyboardInterrupt as stop:
            raise kind("initialization failed") from stop

    monkeypatch.setitem(capsmith.COMMANDS, "verify", command)
    assert capsmith.main(["verify"]) == 143
    assert capsys.readouterr().err == "capsmith verify: interrupted; the same command resumes\n"


def test_what_nohup_ignores_stays_ignored_and_another_thread_sets_nothing():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    calls = []

    def look():
        with stops.signals_as_interrupts():
            calls.append((signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    look()
    assert calls == [(signal.SIG_IGN, signal.SIG_DFL), (signal.SIG_IGN, stops.interrupt_once)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


COMMAND = """
import os, sys, capsmith
def command(argv):
    with open({path!r}, "wb") as file:
        os.write(2, b"of a library\\n")
        for line in range(20_000):
            print(line, file={stream})
    return 0
capsmith.COMMANDS["verify"] = command
code = capsmith.main(["verify"])
open({path!r} + ".code", "w").write(str(code))
sys.exit(code)
"""


def started(path: Path, shell: str, stream: str = "sys.stdout") -> tuple[str, str]:
    """Return what the shell's line printed, and the exit code of the command."""
    code = COMMAND.format(path=str(path), stream=stream)
    done = subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done.stderr, Path(f"{path}.code").read_text()


def test_where_nobody_reads_on_it_stops_and_says_so(tmp_path):
    message, code = started(tmp_path / "x", '"$1" -c "$2" | head -1')
    assert code == "141" and message.endswith(
        "capsmith verify: stopped, because nobody reads what it prints; the same command resumes\n"
    )
    assert started(tmp_path / "y", '"$1" -c "$2" 2>&1 | head -1', "sys.stderr")[1] == "141"


@pytest.mark.parametrize("shell", ['"$1" -c "$2" >&-', '"$1" -c "$2" 2>&-', '"$1" -c "$2" <&- >&- 2>&-'])
def test_what_is_printed_where_nothing_is_open_goes_into_no_file(tmp_path, shell):
    assert started(tmp_path / "x", shell)[1] == "0" and (tmp_path / "x").read_bytes() == b""


def test_the_lock_of_a_command_that_was_ended_is_gone(tmp_path):
    with pytest.raises(KeyboardInterrupt), FolderLock(tmp_path):
        assert (tmp_path / LOCK).exists()
        raise KeyboardInterrupt(signal.SIGTERM)
    assert not os.listdir(tmp_path)


def test_a_terminal_of_another_encoding_shows_the_help(tmp_path):
    command = [sys.executable, "-m", "capsmith", "verify", "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "usage: capsmith verify" in done.stdout
