"""Captions of people, and bad captions that fixed rules make from them, for comparisons of filters.

The rules were written down before any filter saw their captions, and are not fitted to one. Each kind has a caption
for each of COCO's pictures. A caption that is cut after a random number of words may still be a good one, so no filter
can find all of these.
"""

import json
import os
import random
import string
from collections.abc import Callable
from pathlib import Path

DATA = Path(os.environ.get("CAPSMITH_DATA", "../shared/data"))
ACCENTED = (
    "at a café",
    "with jalapeño peppers",
    "in São Paulo",
    "near a “no parking” sign",
    "beside the artist’s easel",
    "with crème brûlée",
    "– a view from above",
    "at 30° in the shade",
)
ECHOES = (
    "Describe this image in one sentence. {}",
    "USER: Describe this picture. ASSISTANT: {}",
    "Write a caption for the image. Caption: {}",
    "Question: What is in the photo? Answer: {}",
    "Here is a caption for the image: {}",
    "### Instruction: Describe the image. ### Response: {}",
    "Sure! Here is a detailed description of the picture you provided: {}",
    "Describe the image in detail.",
)
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot see any image. Please upload one.",
    "As an AI language model, I am unable to view images.",
    "I'm unable to describe this picture because it contains sensitive content.",
    "Sorry, I can't identify people in photos.",
    "There is no image attached to your message.",
    "I apologize, but I am not able to process this request.",
    "Unfortunately, I do not have access to the image.",
    "I can't assist with this request.",
    "It seems that the image did not load. Could you share it again?",
)


def word_loop(caption: str, draw: random.Random) -> str:
    """The caption up to a random word, which comes three to ten times more."""
    words = caption.split()
    end = draw.randrange(1, len(words))
    return " ".join([*words[:end], *[words[end]] * draw.randint(4, 11)])


def phrase_loop(caption: str, draw: random.Random) -> str:
    """The caption's last two to four words come two to six times more."""
    words = caption.rstrip(" .").split()
    phrase = words[-draw.randint(2, 4) :]
    return " ".join([*words, *phrase * draw.randint(2, 6)])


def repeated_sentence(caption: str, draw: random.Random) -> str:
    return " ".join([caption.rstrip(" .") + "."] * draw.randint(2, 4))


def cut_off(caption: str, draw: random.Random) -> str:
    """The caption's first four words or more, but never all."""
    words = caption.rstrip(" .").split()
    return " ".join(words[: draw.randrange(4, max(5, len(words)))])


def accented(caption: str, draw: random.Random) -> str:
    """The caption with a few words that are not ASCII; it is as good as before."""
    return f"{caption.rstrip(' .')} {draw.choice(ACCENTED)}"


def mojibake(caption: str, draw: random.Random) -> str:
    """What `accented` draws, in UTF-8 that was read as Windows-1252."""
    return accented(caption, draw).encode().decode("cp1252", errors="replace")


def gibberish(caption: str, draw: random.Random) -> str:
    """Random letters instead of each word."""
    return " ".join("".join(draw.choices(string.ascii_lowercase, k=len(word))) for word in caption.split())


def echo(caption: str, draw: random.Random) -> str:
    return draw.choice(ECHOES).format(caption)


def refusal(caption: str, draw: random.Random) -> str:
    return draw.choice(REFUSALS)


BAD: tuple[Callable[[str, random.Random], str], ...] = (
    word_loop,
    phrase_loop,
    repeated_sentence,
    cut_off,
    mojibake,
    gibberish,
    echo,
    refusal,
)


def captions_of_people() -> dict[str, list[str]]:
    """Captions of COCO, long descriptions of ImageInWords, and COCO's with a few words that are not ASCII."""
    pictures = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))
    files = sorted((DATA / "imageinwords").glob("*/data.jsonl"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {
        "coco": [caption.strip() for picture in pictures for caption in picture["references"]],
        "imageinwords": [json.loads(line)["IIW"] for line in lines],
        "accented": _changed(accented, pictures),
    }


def bad_captions() -> dict[str, list[str]]:
    """The captions of each kind, one for each picture of COCO."""
    pictures = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))
    return {change.__name__: _changed(change, pictures) for change in BAD}


def _changed(change: Callable[[str, random.Random], str], pictures: list[dict]) -> list[str]:
    draw = random.Random(0)
    return [change(picture["references"][0].strip(), draw) for picture in pictures]
