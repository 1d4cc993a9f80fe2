"""Find what is left of a conversation with a model: its prompt, its turns, and what it wraps round a caption."""

import re
from functools import lru_cache

from captioners.replies import holds_token, opens_reply
from diversity.words.tokens import LONG_CHUNK

_PICTURE = "(?:image|picture|photo|photograph)"
# After a picture in a prompt: the end, a mark or words that go on, but no noun, as in "Caption this picture contest".
_GOES_ON = (
    r"(?:\W*\Z|[.,:;?!]|(?= (?:in|with|using|for|to|and|as|at|of|on|from|by|that|which|so|if|you|your|it|this|how|like"
    r"|without|below|above|here|shown|given|provided|attached|based|focusing|describing|\w+ly)\b))"
)
# What holds numbers in brackets that are no box.
_NO_BOX = "".join(f"(?<!{word} )" for word in "matrix vector array list row numbers interval sequence".split())
_REMAINS = re.compile(
    # a fence around the whole, and the first field of a JSON object
    r"\A```|\A[\[\s]*\{\s*(?:\"[^\"{}]{1,40}\"|'[^'{}]{1,40}')\s*:"
    # turns
    r"|\A\W*(?:assistant|gpt)\s?:|(?-i:\bASSISTANT:)|\A\W*(?:user|human)\s?:.*\bassistant\s?:"
    r"|\A\W*(?:question|q)\s?:.*\b(?:answer|a)\s?:|[.!?]\s(?:user|human)\s?:|[.!?]\squestion\s?:[^:]*\banswer\s?:"
    r"|##\s?(?:instruction|response|human|user|assistant)\s?:|\bim_(?:start|end)\b"
    # the unknown word of old captioners, a word of Qwen's that means nothing, and text that only fills a page
    r"|(?-i:\bunk\b)|\baddCriterion\b|\A\W*lorem ipsum\b"
    r"|\byou are an? (?:\w+ ){0,2}assistant\b"
    # boxes of things in the picture, as [12, 34, 56, 78]
    rf"|{_NO_BOX}\[\s?\d+(?:\.\d+)?(?:,\s?\d+(?:\.\d+)?){{3}}\s?\]"
    # the first words of an answer, after others than `opens_reply` knows; a label or heading in Markdown
    r"|\A\W*(?:sure|certainly|absolutely|of course|okay|ok)[,.!] i(?:'d| would|(?:'ll| will| can)"
    r" (?:help|describe|provide|do (?:that|this)))\b"
    rf"|\A#{{2,6}}\s(?:(?:{_PICTURE} )?(?:caption|description|answer|response|alt[- ]text)\b|.*[.!?:](?:\s|\Z))"
    r"|\A\*\*[^*:]{1,60}(?::\*\*|\*\*:)"
    rf"|\b{_PICTURE} you(?:'ve| have)? (?:provided|uploaded|sent|shared|attached|gave)\b"
    r"|\A[^.:]{0,60}\bhere(?:'s| is) (?:an?|the|your) (?:[\w-]+ ){0,4}(?:caption|description)\b[^.:]{0,60}:"
    # prompts
    rf"|\A\W*(?:please )?(?:describe|caption) (?:this|the) {_PICTURE}(?! of\b){_GOES_ON}"
    rf"|\A\W*(?:please )?(?:write|generate)(?: me)? an? (?:\w+ ){{0,3}}(?:caption|description){_GOES_ON}"
    rf"|\A\W*what (?:(?:is|do you see)(?: shown)? in|does) (?:this|the) {_PICTURE}\b",
    re.IGNORECASE,
)
# Every text in which something is left has a chunk that matches this.
_HINT = re.compile(
    r"```|(?<!\d)[:：](?!\d)|im_|assistant|(?-i:\bunk\b)|addCriterion|\A\W*lorem\Z|\[(?:\d|\Z)|\A##|\Ayou(?:'ve)?\Z"
    r"|\A\W*(?:describe|caption|please|write|generate|(?-i:What))\Z"
    r"|\A\W*(?:sure|certainly|absolutely|okay|ok|thing|natürlich|sûr|supuesto|jistě|конечно|当然(?:可以)?)[,.!，。！]|course[,.!！]",
    re.IGNORECASE,
)


def is_conversation(text: str) -> bool:
    """Return whether a text has special tokens, turns, a prompt, the first words of an answer, a fence or JSON."""
    if holds_token(text):
        return True
    chunks = text.split()
    if not any(map(_may_converse_short if max(map(len, chunks), default=0) <= LONG_CHUNK else may_converse, chunks)):
        return False
    text = " ".join(chunks)
    return _REMAINS.search(text) is not None or opens_reply(text)


def may_converse(chunk: str) -> bool:
    """Return whether a text with this chunk, a stretch between white space, may be left of a conversation.

    Every such text has such a chunk, or one that holds a special token or "Ġ".
    """
    return _HINT.search(chunk) is not None


_may_converse_short = lru_cache(maxsize=1 << 16)(may_converse)
