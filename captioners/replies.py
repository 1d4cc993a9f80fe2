"""What a language model wraps round a caption: its thoughts, its template's tokens, Markdown, a word of greeting."""

import json
import re

# Tokens of chat templates, tokenizers and old captioners, and tags, as text: <|im_start|>, </s>, <0x0A>, <br/>, [UNK].
SPECIAL_TOKEN = re.compile(
    r"<{1,2}[/\\|｜]?[a-z0][^<>\s]{0,60}>{1,2}|\[/?(?:unk|pad|bos|eos|sos|cls|sep|mask|inst|think|image|img)\]"
    r"|(?:start|end)(?-i:seq|SEQ|Seq)\b|(?<!\w)[▁Ġ]+(?=\w)", re.IGNORECASE)

_MARKS = ("<", "[", "seq", "SEQ", "Seq", "▁", "Ġ")  # one of which each of them has
_THINK = "(?:think|thinking|thought|reasoning)"
_THOUGHT = re.compile(rf"</{_THINK}>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_THINKING = re.compile(rf"\s*(?:<{_THINK}>|\[THINK\]|◁think▷|<\|channel\|>analysis)", re.IGNORECASE)
_UNKNOWN = re.compile(r"[<\[]unk[>\]]", re.IGNORECASE)  # stands for a word: a caption that lost one is not made to look whole
_END = re.compile(r"<[|｜](?:im_end|endoftext|eot_id|end|end[▁_]of[▁_]sentence)[|｜]>|</s>|<eos>|<end_of_turn>",
                  re.IGNORECASE)
_ROLE = re.compile(r"\s*(?:assistant\s*(?::|\n)|model\s*\n)", re.IGNORECASE)
_LINE_START = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|[-*+•>][ \t]+)", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*\*|__|`)(?=\S)([^*_`\n]+)\1|(?<![\w*])\*(?=\S)([^*\n]+)\*(?![\w*])")

_CAPTION = ("captions?|descriptions?|sentences?|beschreibung|bildunterschrift|satz|légende|phrase|descripción|leyenda|frase"
            "|didascalia|descrizione|legenda|descrição|popis(?:ek)?|titulek|věta|описание|подпись|描述|说明|說明|标题|標題"
            "|キャプション|説明|विवरण|कैप्शन")
_HERE = ("here(?:['’]s| is| are)|below is|the following is|this is|hier ist|voici|aquí (?:tienes|está|hay)|ecco|aqui está"
         "|tady je|zde je|вот|以下是|这是|這是|以下は|こちらが|यहाँ|यह")
_YES = ("sure|certainly|of course|absolutely|okay|ok|great|yes|natürlich|gerne|bien sûr|claro|por supuesto|certo|jistě|конечно"
        "|当然|好的|はい")
_GREETING = re.compile(rf"(?:{_YES})(?: thing)?\s*[,.!，。！、]\s*", re.IGNORECASE)
_PREAMBLE = re.compile(rf"(?:(?:{_HERE})[^.:：!?\n]{{0,80}}?(?:{_CAPTION})|(?:[^\W\d_]+ ){{0,2}}(?:{_CAPTION}))"
                       r"(?:[^.:：!?\n]{0,60}[:：]\s*|[ \t]*\n\s*)", re.IGNORECASE)
_OFFER = re.compile(r"(?:let me know|feel free|i hope (?:this|that)|would you like|if you(?:['’]d| would| need| want)"
                    r"|is there anything)[^.!?\n]*[.!?]?", re.IGNORECASE)
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "「": "」", "'": "'", "‘": "’"}


def clean_reply(text: str) -> str:
    """The caption in a language model's reply, on one line; "" where the reply ended before its thoughts did.

    Taken away are thoughts (`<think>…</think>`), tokens of templates and what follows an end token, Markdown, a fence round
    the caption or JSON with one string, "Sure! Here is a caption:" in some languages, offers to do more, and quotation marks
    round all of it. What a caption itself says is left as it is: so are refusals and `<unk>`, which the gate refuses.
    """
    thoughts = list(_THOUGHT.finditer(text))
    if thoughts:
        text = text[thoughts[-1].end():]
    elif _THINKING.match(text):
        return ""
    text = SPECIAL_TOKEN.sub(lambda token: token[0] if _UNKNOWN.fullmatch(token[0]) else " ", _first_turn(text))
    text = _ROLE.sub("", text, count=1) if _ROLE.match(text) else text
    text = _of_json(_unfenced(text)).strip()
    text = _EMPHASIS.sub(lambda found: found[2] or found[3], _LINE_START.sub("", text)).strip()
    for lead in (_GREETING, _PREAMBLE):
        if (found := lead.match(text)) and text[found.end():].strip():
            text = text[found.end():]
    return _unquoted(" ".join(_without_offer(text).split()))


def holds_token(text: str) -> bool:
    """Whether the text holds a special token, or a tag."""
    return any(mark in text for mark in _MARKS) and SPECIAL_TOKEN.search(text) is not None


def _first_turn(text: str) -> str:
    """The text up to the first end token that something stands before."""
    start = 0
    for end in _END.finditer(text):
        if SPECIAL_TOKEN.sub("", text[start:end.start()]).strip():
            return text[:end.start()]
        start = end.end()
    return text


def _unfenced(text: str) -> str:
    """What stands within the first fence of three backticks, where there is one, without the fence's language."""
    before, fence, rest = text.partition("```")
    if not fence:
        return text
    inside = rest.partition("```")[0]
    first, line, others = inside.partition("\n")
    return others if line and " " not in first.strip() else inside


def _of_json(text: str) -> str:
    """The one string of a JSON object, such as {"caption": "a dog"}; any other text as it is."""
    if not text.strip().startswith("{"):
        return text
    try:
        strings = [value for value in json.loads(text).values() if isinstance(value, str)]
    except (ValueError, RecursionError):
        return text
    return strings[0] if len(strings) == 1 else text


def _without_offer(text: str) -> str:
    """The text without a last sentence, or line, that offers to do more."""
    text = text.rstrip()
    last = max(text.rfind(mark, 0, len(text) - 1) for mark in ("\n", ". ", "! ", ".\n"))
    tail = text[last + 1:].strip() if last >= 0 else ""
    return text[:last + 1] if tail and _OFFER.fullmatch(tail) else text


def _unquoted(text: str) -> str:
    """The text without quotation marks round all of it."""
    close = _QUOTES.get(text[:1])
    if not close or len(text) < 3 or not text.endswith(close):
        return text
    inside = text[1:-1]
    return text if text[0] in inside or close in inside and close != "’" else inside.strip()
