"""The figures of a run as Markdown: a table for each part, with one row per case."""

from typing import Any

HEADINGS = {
    "ceilings": "Ceilings",
    "decoding": "Decoding",
    "paper": "The paper's loop",
    "gpu_tests": "The tests marked `gpu`",
    "parity": "The same captions as on a CPU",
    "whole_runs": "Whole runs",
    "shared_card": "Whole runs of two processes that share the card",
    "profile": "A profile of sixteen steps",
    "other_flights": "Decoding, other numbers of pictures in flight",
    "small": "Decoding, the smaller model",
    "training": "Training",
    "smolvlm": "A model of SmolVLM-500M's shape, against transformers",
    "qwen": "A model of Qwen2.5-VL-3B's shape, against transformers",
    "embeddings": "Embeddings of `reinforce`",
}


def table(lines: list[dict]) -> str:
    """The content of RESULTS.md for the lines of a run."""
    ends = {line["part"]: line for line in lines if "status" in line}
    device = next((line["device"] for line in ends.values() if line.get("device")), "unknown device")
    text = [f"## On a GPU: {device}", "", "`python -m benchmarks.gpu --output FOLDER`", ""]
    if compared := against_the_paper(lines):
        text += [compared, ""]
    for part, heading in HEADINGS.items():
        rows = [line for line in lines if line["part"] == part and "status" not in line]
        if part not in ends and not rows:
            continue
        text += [f"### {heading}", "", *rows_of(rows), ""] if rows else [f"### {heading}", ""]
        ended = ends.get(part, {"status": "not ended"})
        if ended["status"] != "done":
            text += [f"{ended['status']}: {ended.get('why') or ' / '.join(ended.get('last_lines', ())[-2:])}", ""]
    return "\n".join(text)


def rows_of(rows: list[dict]) -> list[str]:
    """A table with a column for each figure; lists and objects are only in parts.jsonl."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if plain(name, value)))
    return [
        "| " + " | ".join(name.replace("_", " ") for name in ["case", *names]) + " |",
        "|---|" + "---:|" * len(names),
        *("| " + " | ".join(shown(row.get(name)) for name in ["case", *names]) + " |" for row in rows),
    ]


def plain(name: str, value: Any) -> bool:
    return name not in ("part", "case") and not isinstance(value, (list, dict))


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value).replace("|", "/")


def against_the_paper(lines: list[dict]) -> str:
    """A sentence that compares us with the paper's loop; "" if one of the two was not measured."""
    ours = [
        line["captions_per_s"]
        for line in lines
        if line["part"] == "decoding" and line.get("case", "").endswith("warm")
    ]
    theirs = {
        line["case"].partition(":")[0]: line["captions_per_s"]
        for line in lines
        if line["part"] == "paper" and "captions_per_s" in line
    }
    if not ours or not theirs:
        return ""
    return (
        "Decoding, warm, against the paper's loop: "
        + "; ".join(f"{ours[0] / rate:.1f} times {name}" for name, rate in theirs.items())
        + "."
    )
