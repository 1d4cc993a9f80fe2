"""The caption in a language model's reply, without thoughts, tokens of its template, Markdown and greetings."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

CUTS: Mapping[str, str] = {  # what is cut off a reply, in the order in which it is
    "thinking": "thoughts before the answer, such as <think>…</think>",
    "tokens": "tokens of templates, and what follows an end token",
    "fence": "a fence of three backticks, and what stands round it",
    "json": "the braces of a JSON object with one string",
    "list": "bullets and numbers before lines",
    "markdown": "headings and emphasis",
    "preamble": "a greeting, or words such as “Here is a caption:”",
    "rest": "what follows the caption: other lines where one is asked for, notes, offers to do more",
    "quotes": "quotation marks round all of it",
}


class Reply(NamedTuple):
    """The caption of a reply, and which of `CUTS` were cut off, in their order."""

    text: str
    cut: tuple[str, ...] = ()


# Tokens of chat templates, tokenizers and old captioners, and tags, as text: <|im_start|>, </s>, <0x0A>, <br/>, [UNK]. No
# addresses (<me@example.org>), and after a letter (List<string>) only those that models have.
SPECIAL_TOKEN = re.compile(
    r"<[/\\|｜][a-z0][^<>\s]{0,60}>|<</?sys>>|(?<![a-z0-9_<])<(?:[a-z]|0x)[^<>\s@:.]{0,60}>(?!>)"
    r"|<(?:s|[be]os|pad|unk|mask|sep|cls|br/?|eo[dt]|start|end|unused\d+|0x\w\w|[a-z][a-z0-9-]{0,20}_\w{0,40})>"
    r"|\[/?(?:unk|pad|bos|eos|sos|cls|sep|mask|inst|think|image|img)\]"
    r"|(?<![a-z])(?:start|end)(?-i:seq|SEQ|Seq)\b|(?<![\w▁])▁+(?=\w)",
    re.IGNORECASE,
)
_SPACES = re.compile(r"(?<=[a-z])Ġ|(?<!\w)Ġ\w+(?:\s+Ġ\w+){2}")  # of GPT-2's tokenizer; one alone is a letter: Ġgantija

_MARKS = ("<", "[", "seq", "SEQ", "Seq", "▁", "Ġ")  # one of which each of them has
_THINK = "(?:think|thinking|thought|reasoning)"
_THOUGHT = re.compile(rf"</{_THINK}>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_THINKING = re.compile(rf"\s*(?:<{_THINK}>|\[THINK\]|◁think▷|<\|channel\|>analysis)", re.IGNORECASE)
# stands for a word: a caption that lost one is not made to look whole
_UNKNOWN = re.compile(r"[<\[]unk[>\]]", re.IGNORECASE)
_END = re.compile(
    r"<[|｜](?:im_end|endoftext|eot_id|end|end[▁_]of[▁_]sentence)[|｜]>|</s>|<eos>|<end_of_turn>", re.IGNORECASE
)
_ROLE = re.compile(r"\s*(?:assistant\s*(?::|\n)|model\s*\n)", re.IGNORECASE)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+", re.MULTILINE)
# A number with a full stop is one where an English sentence follows, or on the next lines: "1. FC Köln", "1. Mai" are names.
_BULLET = re.compile(
    r"^[ \t]*(?:[-*+•>][ \t]+|(?:[-=]>|⇒|→)[ \t]*|\(?\d{1,2}\)[ \t]+"
    r"|1\.[ \t]+(?=(?:An?|The|This|There|Two|Three|Four|Several|Some|Many|People|Person|Man|Woman)\b|[^\n]*\n\s*2\.))"
    r"|(?<=\n)[ \t]*\d{1,2}\.[ \t]+",
    re.MULTILINE,
)
_JOINED = (
    r"[^\W\u3040-\u9fff\uac00-\ud7a3]"  # a letter or digit of a language that puts blanks between words: f**k, 2**3
)
_EMPHASIS = re.compile(
    rf"(?<![*`])(?<!{_JOINED})(\*{{1,3}}|`)(?=\S)([^*`\n]+)(?<=\S)\1(?![*`])(?!{_JOINED})"
    rf"|(?<!{_JOINED})__(?=\S)([^_ \n]+ [^_\n]+)(?<=\S)__(?!{_JOINED})"
)

_CAPTION = (
    r"(?:captions?|descriptions?|sentences?|paraphrases?|rewrites?|rewording|rewritten|rephrased|alt[- ]texts?"
    r"|(?:bild)?beschreibung|bildunterschrift|satz|légende|phrase|descripción"
    r"|leyenda|frase|didascalia|descrizione|legenda|descrição|popis(?:ek)?|titulek|věta|описание|подпись"
    r"|विवरण|कैप्शन)\b"
)
_PICTURE = (
    r"\b(?:images?|pictures?|photos?|photographs?|bild(?:e?s)?|fotos?|imagen|imagem|immagine|obráz(?:ek|ku)|fotografie"
    r"|изображени[ея]|картинк[аи]|фото(?:графии)?|चित्र|छवि|तस्वीर)\b"
)
# What may stand between "here is" and "caption", by which it is the caption of this picture, and no sign's in it.
_ARTICLE = "an?|the|your|my|eine?n?|die|das|une?|la|le|una|uno?|el|il|uma?|o|एक|इस"
_KIND = (
    "one|two|three|some|few|short|brief|possible|potential|detailed|concise|simple|single|suitable|suggested|clear|vivid"
    "|descriptive|good|better|accurate|revised|final|english|alt|sentence|rewritten|rephrased|paraphrased|reworded|corrected"
    "|improved|combined|fused|new|updated|alternative|alternate|another|possible|more|given|original|kurze|mögliche|passende|detaillierte|prägnante"
    "|brève|courte|détaillée|breve|corta|posible|detallada|concisa|possibile|dettagliata|curta|possível|detalhada"
    "|krátký|stručný|možný|краткое|короткое|возможное|подробное|का|संक्षिप्त|छोटा"
)
_OF = (
    r"(?:of|for|in|about|describing|(?:that|which) describes|based on|für|von|zum|zu|der|des|dieses|de|du|pour|décrivant"
    r"|que describe|para|d[ao]|della?|dell['’]|per|pro|k)\b"
)
_OF_PICTURE = (
    rf"(?: (?:{_OF}[^.:：!?\n]{{0,40}}?)?(?:{_PICTURE}|{_CAPTION})"
    rf"(?: (?:you|that|provided|shown|above)\b[^.:：!?\n]{{0,30}})?)"
)
_END_OF_LEAD = r"(?:\s*[:：](?!\d)\s*|[ \t]*\n\s*)"
_HERE = (
    r"(?:here(?:['’]s| is| are)|below is|the following is|hier ist|voici|aquí (?:tienes|está|hay)|ecco|aqui está|tady je"
    r"|zde je|вот|यहाँ)(?!\w)"
)
_IN_CHINESE = (
    r"(?:(?:以下是|这是|這是)(?:(?:对|對|为|為)?(?:这张|這張|该|該|此)?(?:图片|圖片|图像|圖像|照片)的)?"
    r"(?:简短|簡短|简洁|簡潔|详细|詳細)?的?(?:一句话)?|(?:图片|圖片|图像|圖像|照片)?的?)(?:描述|说明|說明|标题|標題)"
)
_IN_JAPANESE = (
    r"(?:(?:以下は|こちらが)(?:この)?)?(?:(?:画像|写真)の)?(?:短い|簡潔な)?(?:キャプション|説明)文?(?:です)?"
)
_PREAMBLE = re.compile(
    rf"(?:{_HERE} (?:(?:{_ARTICLE}|{_KIND}|{_PICTURE})(?:-|,? )(?:and (?!an? |the ))?){{0,6}}{_CAPTION}"
    rf"(?: (?:{_KIND}))?{_OF_PICTURE}?"
    rf"|{_HERE} (?:(?:an?|the|your|one|my) )?(?:(?:{_KIND}) ){{0,3}}versions?{_OF_PICTURE}"
    rf"|this is (?:an?|the) {_CAPTION}{_OF_PICTURE}"
    rf"|(?:(?:the|an?|one|your|my) )?(?:(?:{_KIND}) ){{0,3}}{_CAPTION}{_OF_PICTURE}? (?:is|would be|could be|might be)"
    r"|here (?:you go|you are|it is)|answer|output|response|target|(?:rewritten|revised|paraphrased) (?:version|text)"
    rf"|(?:(?:{_KIND}|{_PICTURE})[- ]){{0,3}}{_CAPTION}(?: \d)?{_OF_PICTURE}?"
    rf"|{_IN_CHINESE}|{_IN_JAPANESE}){_END_OF_LEAD}",
    re.IGNORECASE,
)
_YES = (
    "sure|certainly|of course|absolutely|okay|ok|great|yes|natürlich|gerne|bien sûr|claro|por supuesto|certo|jistě|конечно"
    "|当然|好的|はい"
)
_GREETING = re.compile(
    rf"(?:{_YES})(?: thing)?\s*[,.!，。！、](?:[ \t]*\n\s*|\s*(?={_HERE}|{_PREAMBLE.pattern}))"
    r"|(?:certainly|of course|natürlich|bien sûr|por supuesto|jistě|конечно|当然)\s*[!！]\s*"
    r"|(?:sure|certainly|of course|absolutely|okay|ok)(?: thing)?[!,.] (?=(?-i:An?|The|This|There|Two|Three|Several|Some)\b)",
    re.IGNORECASE,
)
_SEVERAL = re.compile(r"\b(?:captions|descriptions|sentences|versions|paraphrases|rewrites)\b", re.IGNORECASE)
_OFFER = re.compile(
    r"i hope (?:this|that|it) (?:helps|works|is helpful|is what you|meets|captures|fits|suits)\b[^.!?\n]{0,200}[.!?]?"
    r"|(?:let me know|feel free|would you like|if you(?:['’]d| would| need| want)|is there anything)[^.!?\n]{0,200}?"
    r"\b(?:another one|anything else|captions?|descriptions?|images?|pictures?|photos?|versions?|adjust\w*|revis\w+|changes"
    r"|(?:short|long)er|more details?)\b[^.!?\n]{0,200}[.!?]?",
    re.IGNORECASE,
)
# Notes on what was done, from a line of their own on.
_NOTE = re.compile(
    r"\n\s*[(*_]*(?:(?:please )?note(?:\s*[:：]| that (?:i|this|the (?:caption|rewrit|original|description))\b)|explanation\s*:|reason(?:ing)?\s*:|changes(?: made)?\s*:|this (?:caption|version|rewrite|sentence"
    r"|paraphrase)\b|i(?:['’]ve| have)? (?:changed|replaced|rewrote|rewritten|rephrased|kept|used|made|tried|combined|added|removed)\b)",
    re.IGNORECASE,
)
# A letter first, and none of what thoughts, a fence, emphasis or the end of a preamble need; tokens have `_MARKS`.
_PLAIN = re.compile(r"[^\W\d_][^◁`*_:：]*")
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "「": "」", "'": "'", "‘": "’"}


def clean_reply(text: str) -> str:
    """The caption in a language model's reply, on one line, as `read_reply` finds it."""
    return read_reply(text).text


def read_reply(text: str, *, line: bool = False) -> Reply:
    """The caption in a language model's reply, on one line; "" where the reply ended before its thoughts did.

    Cut off is what `CUTS` names; line: the first line alone is the caption, as it is where a model offers several. What a
    caption itself says is left as it is: so are refusals and `<unk>`, which the gate refuses.
    """
    if _is_plain(text):
        return Reply(" ".join(text.split()))
    text, already = bare_reply(text)
    cut = dict.fromkeys(already)

    def without(name: str, left: str, before: str) -> str:
        if left != before:
            cut[name] = None
        return left

    text = without("fence", _unfenced(text), text)
    text = without("json", _of_json(text), text).strip()
    text = without("markdown", _HEADING.sub("", text), text)
    text = without("list", _BULLET.sub("", text), text)
    text = without("markdown", _EMPHASIS.sub(lambda match: match[2] or match[3], text), text).strip()
    for lead in (_GREETING, _PREAMBLE):
        if (match := lead.match(text)) and text[match.end() :].strip():
            text = without("preamble", text[match.end() :], text)
            line = line or _SEVERAL.search(match[0]) is not None
    text = text.strip()
    left = _without_offer(text).rstrip()
    if line:
        left = left.partition("\n")[0].rstrip()
    text = " ".join(without("rest", left, text).split())
    text = without("quotes", _unquoted(text), text)
    return Reply(text, tuple(name for name in CUTS if name in cut))


def _is_plain(text: str) -> bool:
    """Whether nothing can be cut off the text, which few looks at it tell of nearly all captions."""
    return (
        text.isprintable()  # which a line feed is not
        and _PLAIN.fullmatch(text) is not None
        and not any(mark in text for mark in _MARKS)
        and not _GREETING.match(text)
        and _without_offer(text) == text.rstrip()
    )


def bare_reply(text: str) -> Reply:
    """The reply as it was written, without its thoughts and tokens: "" where it ended before its thoughts did."""
    text = sound(text)
    thoughts = list(_THOUGHT.finditer(text))
    if thoughts:
        text = text[thoughts[-1].end() :]
    elif _THINKING.match(text):
        return Reply("", ("thinking",))
    bare = _without_tokens(text)
    return Reply(bare, ("thinking",) * bool(thoughts) + ("tokens",) * (bare != text))


def sound(text: str) -> str:
    """The text without halves of characters, and with blanks for control characters but tabs and line feeds."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", re.sub(r"[\ud800-\udfff]", "", text))


def holds_token(text: str) -> bool:
    """Whether the text holds a special token, or a tag."""
    return any(mark in text for mark in _MARKS) and bool(SPECIAL_TOKEN.search(text) or _SPACES.search(text))


def _without_tokens(text: str) -> str:
    """The first turn of the text without special tokens and the role before it."""
    text = SPECIAL_TOKEN.sub(lambda token: token[0] if _UNKNOWN.fullmatch(token[0]) else " ", _first_turn(text))
    text = text.replace("Ġ", " ") if _SPACES.search(text) else text
    return _ROLE.sub("", text, count=1) if _ROLE.match(text) else text


def _first_turn(text: str) -> str:
    """The text up to the first end token that something stands before."""
    start = 0
    for end in _END.finditer(text):
        if SPECIAL_TOKEN.sub("", text[start : end.start()]).strip():
            return text[: end.start()]
        start = end.end()
    return text


def _unfenced(text: str) -> str:
    """The text within the first fence of three backticks, without the fence's language; all of it where there is no fence."""
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
    """The text without notes on it, and without a last sentence, or line, that offers to do more."""
    text = text.rstrip()
    if note := _NOTE.search(text):
        text = text[: note.start()].rstrip()
    last = max(text.rfind(mark, 0, len(text) - 1) for mark in ("\n", ". ", "! ", ".\n"))
    tail = text[last + 1 :].strip() if last >= 0 else ""
    return text[: last + 1] if tail and _OFFER.fullmatch(tail) else text


def _unquoted(text: str) -> str:
    """The text without quotation marks round all of it."""
    close = _QUOTES.get(text[:1])
    if not close or len(text) < 3 or not text.endswith(close):
        return text
    inside = text[1:-1]
    return text if text[0] in inside or close in inside and close != "’" else inside.strip()
