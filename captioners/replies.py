"""Extract the caption from a language model's reply: remove thoughts, special tokens, Markdown and greetings."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

# The parts that are removed from a reply, in the order of their removal, and what each is.
CUTS: Mapping[str, str] = {
    "thinking": "thoughts before the answer, such as <think>…</think>",
    "tokens": "special tokens of templates, and everything after an end token",
    "fence": "a fence of three backticks, and the text outside it",
    "json": "the braces and field name of a JSON object with one string, or the brackets of such a list",
    "list": "bullets and numbers at the start of lines",
    "markdown": "headings, ruled lines and emphasis",
    "preamble": "a greeting, or words such as “Here is a caption:”",
    "rest": "text after the caption: further lines where one is requested, notes, offers to do more",
    "quotes": "quotation marks around the whole caption",
}


class Reply(NamedTuple):
    """The caption in a reply, and the names from `CUTS` of the parts that were removed, in the order of `CUTS`."""

    text: str
    cut: tuple[str, ...] = ()


# Special tokens of chat templates, tokenizers and old captioners, and tags, written as text: <|im_start|>, </s>,
# <0x0A>, <br/>, [UNK]. Addresses (<me@example.org>) do not match. Directly after a letter (List<string>) only names
# match that models use.
SPECIAL_TOKEN = re.compile(
    r"<[/\\|｜][a-z0][^<>\s]{0,60}>|<</?sys>>|(?<![a-z0-9_<])<(?:[a-z]|0x)[^<>\s@:.]{0,60}>(?!>)"
    r"|<(?:s|[be]os|pad|unk|mask|sep|cls|br/?|eo[dt]|start|end|unused\d+|0x\w\w|[a-z][a-z0-9-]{0,20}_\w{0,40})>"
    r"|\[/?(?:unk|pad|bos|eos|sos|cls|sep|mask|inst|think|image|img)\]"
    r"|(?<![a-z])(?:start|end)(?-i:seq|SEQ|Seq)\b|(?<![\w▁])▁+(?=\w)",
    re.IGNORECASE,
)
# The blanks of GPT-2's tokenizer. A single Ġ is a letter, as in the Maltese word Ġgantija.
_SPACES = re.compile(r"(?<=[a-z])Ġ|(?<!\w)Ġ\w+(?:\s+Ġ\w+){2}")

_MARKS = ("<", "[", "seq", "SEQ", "Seq", "▁", "Ġ")  # every match of SPECIAL_TOKEN or _SPACES contains one of these
_THINK = "(?:think|thinking|thought|reasoning)"
_OPEN_THOUGHTS = re.compile(rf"<({_THINK})>\s*\Z")
# "analysis…assistantfinal…" is what is left of the template of gpt-oss without its special tokens.
_THOUGHTS_END = re.compile(
    rf"</{_THINK}>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>"
    r"|assistantfinal(?=\W|(?-i:[A-Z]))|\n[\s*_#]{0,9}final answer[*_]*\s*[:：][*_]*",
    re.IGNORECASE,
)
_THOUGHTS_START = re.compile(
    rf"\s*(?:<{_THINK}>|\[THINK\]|◁think▷|<\|channel\|>analysis|(?-i:analysis[A-Z]))", re.IGNORECASE
)
# The token for an unknown word. It is not removed, or a caption that lost a word would look complete.
_UNKNOWN = re.compile(r"[<\[]unk[>\]]", re.IGNORECASE)
_END = re.compile(
    r"<[|｜](?:im_end|endoftext|eot_id|end|end[▁_]of[▁_]sentence)[|｜]>|</s>|<eos>|<end_of_turn>", re.IGNORECASE
)
_ROLE = re.compile(r"\s*(?:assistant\s*(?::|\n)|model\s*\n)", re.IGNORECASE)
_HEADING = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|(?:-{3,}|\*{3,}|_{3,})[ \t]*$)", re.MULTILINE)  # or a ruled line
# "1." counts as a bullet only if an English sentence follows it, or "2." stands on a later line: "1. FC Köln" and
# "1. Mai" are names.
_BULLET = re.compile(
    r"^[ \t]*(?:[-*+•>][ \t]+|(?:[-=]>|⇒|→)[ \t]*|\(?\d{1,2}\)[ \t]+"
    r"|1\.[ \t]+"
    r"(?=(?:An?|The|This|There|Two|Three|Four|Several|Some|Many|People|Person|Man|Woman)\b|[^\n]*\n\s*2\.))"
    r"|(?<=\n)[ \t]*\d{1,2}\.[ \t]+",
    re.MULTILINE,
)
# A letter or digit of a language that puts blanks between words. Asterisks beside one are no emphasis: f**k, 2**3.
_JOINED = r"[^\W\u3040-\u9fff\uac00-\ud7a3]"
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
# Words that may stand between "here is" and "caption". With them, the caption of this picture is meant, and not the
# text of a sign in it.
_ARTICLE = "an?|the|your|my|eine?n?|die|das|une?|la|le|una|uno?|el|il|uma?|o|एक|इस"
_KIND = (
    "one|two|three|some|few|short|brief|possible|potential|detailed|concise|simple|single|suitable|suggested|clear"
    "|vivid|descriptive|good|better|accurate|revised|final|english|alt|sentence|rewritten|rephrased|paraphrased"
    "|reworded|corrected|improved|combined|fused|new|updated|alternative|alternate|another|more|given"
    "|original|kurze|mögliche|passende|detaillierte|prägnante"
    "|brève|courte|détaillée|breve|corta|posible|detallada|concisa|possibile|dettagliata|curta|possível|detalhada"
    "|krátký|stručný|možný|краткое|короткое|возможное|подробное|का|संक्षिप्त|छोटा"
)
_OF = (
    r"(?:of|for|in|about|describing|(?:that|which) describes|based on|für|von|zum|zu|der|des|dieses|de|du|pour"
    r"|décrivant|que describe|para|d[ao]|della?|dell['’]|per|pro|k)\b"
)
_OF_PICTURE = (
    rf"(?: (?:{_OF}[^.:：!?\n]{{0,40}}?)?(?:{_PICTURE}|{_CAPTION})"
    rf"(?: (?:you|that|provided|shown|above)\b[^.:：!?\n]{{0,30}})?)"
)
_END_OF_LEAD = r"(?:\s*[:：](?!\d)\s*|[ \t]*\n\s*)"
_HERE = (
    r"(?:here(?:['’]s| is| are)|below is|the following is|hier ist|voici|aquí (?:tienes|está|hay)|ecco|aqui está"
    r"|tady je|zde je|вот|यहाँ)(?!\w)"
)
_IN_CHINESE = (
    r"(?:(?:以下是|这是|這是)(?:(?:对|對|为|為)?(?:这张|這張|该|該|此)?(?:图片|圖片|图像|圖像|照片)的)?"
    r"(?:简短|簡短|简洁|簡潔|详细|詳細)?的?(?:一句话)?|(?:图片|圖片|图像|圖像|照片)?的?)(?:描述|说明|說明|标题|標題)"
)
_IN_JAPANESE = (
    r"(?:(?:以下は|こちらが)(?:この)?)?(?:(?:画像|写真)の)?(?:短い|簡潔な)?(?:キャプション|説明)文?(?:です)?"
)
# What models call several captions of which one is to be chosen.
_CHOICE = r"(?:options|variations|alternatives|suggestions)"
_PREAMBLE = re.compile(
    rf"(?:{_HERE} (?:(?:{_ARTICLE}|{_KIND}|{_PICTURE})(?:-|,? )(?:and (?!an? |the ))?){{0,6}}{_CAPTION}"
    rf"(?: (?:{_KIND}))?{_OF_PICTURE}?"
    rf"|{_HERE} (?:(?:an?|the|your|one|my) )?(?:(?:{_KIND}) ){{0,3}}versions?{_OF_PICTURE}"
    rf"|this is (?:an?|the) {_CAPTION}{_OF_PICTURE}"
    rf"|(?:(?:the|an?|one|your|my) )?(?:(?:{_KIND}) ){{0,3}}{_CAPTION}{_OF_PICTURE}? (?:is|would be|could be|might be)"
    rf"|here are (?:(?:an?|the|your|my|four|five|several|multiple|different|other|\d) |(?:{_KIND}) ){{0,4}}{_CHOICE}"
    rf"(?:{_OF_PICTURE}|,? (?:ranging|varying|depending) [^.:：!?\n]{{1,60}})?"
    r"|(?:option|version) 1(?: ?\([^()\n]{1,40}\))?|(?:the )?final answer(?: is)?"
    r"|here (?:you go|you are|it is)|answer|output|response|target|(?:rewritten|revised|paraphrased) (?:version|text)"
    rf"|(?:(?:{_KIND}|{_PICTURE})[- ]){{0,3}}{_CAPTION}(?: \d)?{_OF_PICTURE}?"
    rf"|{_IN_CHINESE}|{_IN_JAPANESE}){_END_OF_LEAD}",
    re.IGNORECASE,
)
# The label of the second caption, after one with the label of the first.
_FIRST = re.compile(r" 1\b")
_SECOND = re.compile(r"\b(?:option|version|caption|description) 2(?: ?\([^()\n]{1,40}\))?\s*[:：\n]", re.IGNORECASE)
_YES = (
    "sure|certainly|of course|absolutely|okay|ok|great|yes|natürlich|gerne|bien sûr|claro|por supuesto|certo|jistě"
    "|конечно|当然(?:可以)?|好的|はい"
)
_GREETING = re.compile(
    rf"(?:{_YES})(?: thing)?\s*[,.!，。！、](?:[ \t]*\n\s*|\s*(?={_HERE}|{_PREAMBLE.pattern}))"
    r"|(?:certainly|of course|natürlich|bien sûr|por supuesto|jistě|конечно|当然(?:可以)?)\s*[!！]\s*"
    r"|(?:sure|certainly|of course|absolutely|okay|ok)(?: thing)?[!,.] "
    r"(?=(?-i:An?|The|This|There|Two|Three|Several|Some)\b)",
    re.IGNORECASE,
)
_ANNOUNCES = re.compile(
    rf"{_HERE}|this is\b|以下|这是|這是|こちら|.* (?:is|would be|could be|might be)\s*[:：]", re.IGNORECASE
)
_SEVERAL = re.compile(
    rf"\b(?:captions|descriptions|sentences|versions|paraphrases|rewrites|{_CHOICE})\b", re.IGNORECASE
)
_OFFER = re.compile(
    r"hope (?:this|that) helps\W*"
    r"|i hope (?:this|that|it) (?:helps|works|is helpful|is what you|meets|captures|fits|suits)\b"
    r"[^.!?\n]{0,200}[.!?]?"
    r"|(?:let me know|feel free|would you like|if you(?:['’]d| would| need| want)|is there anything)[^.!?\n]{0,200}?"
    r"\b(?:another one|anything else|captions?|descriptions?|images?|pictures?|photos?|versions?|adjust\w*|revis\w+"
    r"|changes|(?:short|long)er|more details?|tone|questions?|(?:this|that|it) (?:works|helps))\b"
    r"[^.!?\n]{0,200}[.!?]?",
    re.IGNORECASE,
)
OFFERS = 3  # sentences or lines of offers that are removed
# The start of a note on the caption, on a new line or, where it is surely a note, after a sentence, or a word count at
# the end; everything from there on is removed.
_NOTE = re.compile(
    r"(?<=[.!?\"”]) \(?(?:please )?note(?:\s*[:：]| that)\s*(?:that )?"
    r"(?:i|this|the (?:original )?(?:captions?|images?|picture|photo|rewrit\w+|description))\b"
    r"| ?\((?:\d{1,3} words|word count\s*:\s*\d{1,3})\)[.*_\s]*\Z"
    r"|\n\s*[(*_]*(?:(?:please )?note(?:\s*[:：]| that (?:i|this|the (?:caption|rewrit|original|description))\b)"
    r"|explanation\s*:|word count\s*:|\d{1,3} words[).*_\s]*\Z|reason(?:ing)?\s*:|changes(?: made)?\s*:"
    r"|this (?:caption|version|rewrite|sentence|paraphrase)\b|i(?:['’]ve| have)? "
    r"(?:changed|replaced|rewrote|rewritten|rephrased|kept|used|made|tried|combined|added|removed)\b)",
    re.IGNORECASE,
)
# A text that begins with a letter and contains no character that marks thoughts, a fence, emphasis or the end of a
# preamble. Special tokens are recognised by `_MARKS`.
_PLAIN = re.compile(r"[^\W\d_][^◁`*_:：]*")
_QUOTED_CAPTIONS = re.compile(r'(["“][^"“”]+[.!?]["”])(?:\s+(?:or\s+)?["“][^"“”]+[.!?]["”])+')
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "「": "」", "'": "'", "‘": "’"}


def clean_reply(text: str) -> str:
    """Return the caption in a language model's reply, on one line, as `read_reply` extracts it."""
    return read_reply(text).text


def read_reply(text: str, *, line: bool = False) -> Reply:
    """Return the caption in a language model's reply, on one line; "" if the reply ended within its thoughts.

    The parts in `CUTS` are removed; the words of the caption are not changed. Refusals and `<unk>` stay in the text,
    so that the gate can refuse them.

    line: whether only the first line is the caption. It also is if the reply announces several captions.
    """
    if _is_plain(text):
        return Reply(" ".join(text.split()))
    text, cut_already = bare_reply(text)
    cut = set(cut_already)

    def replace(name: str, before: str, after: str) -> str:
        """Return the text after a step; record the step's name if it changed the text."""
        if after != before:
            cut.add(name)
        return after

    text = replace("fence", text, _unfenced(text))
    text = replace("json", text, _string_in_json(text)).strip()
    text = replace("markdown", text, _HEADING.sub("", text))
    text = replace("list", text, _BULLET.sub("", text))
    text = replace("markdown", text, _EMPHASIS.sub(lambda match: match[2] or match[3], text)).strip()
    for opening in (_GREETING, _PREAMBLE, _PREAMBLE):  # "Here are two captions: Option 1: A dog."
        if (match := opening.match(text)) and text[match.end() :].strip():
            text = replace("preamble", text, text[match.end() :])
            line = line or _SEVERAL.search(match[0]) is not None
            if _FIRST.search(match[0]) and (second := _SECOND.search(text)):
                text = replace("rest", text, text[: second.start()])
    text = text.strip()
    if captions := _QUOTED_CAPTIONS.fullmatch(text):
        text = replace("rest", text, captions[1])
    caption = _without_offer(text).rstrip()
    if line:
        caption = caption.partition("\n")[0].rstrip()
    text = " ".join(replace("rest", text, caption).split())
    text = replace("quotes", text, _unquoted(_unquoted(text)))  # "'A dog.'"
    return Reply(text, tuple(name for name in CUTS if name in cut))


def _is_plain(text: str) -> bool:
    """Whether a quick test shows that nothing has to be removed from the text, as for nearly all captions."""
    return (
        text.isprintable()  # a line feed is not printable
        and _PLAIN.fullmatch(text) is not None
        and not any(mark in text for mark in _MARKS)
        and "assistantfinal" not in text
        and not _THOUGHTS_START.match(text)
        and not _GREETING.match(text)
        and _without_offer(text) == text.rstrip()
    )


def bare_reply(text: str) -> Reply:
    """Return the reply without thoughts and special tokens; "" if it ended within its thoughts."""
    text = sound(text)
    cut: tuple[str, ...] = ()
    ends_of_thoughts = list(_THOUGHTS_END.finditer(text))
    if ends_of_thoughts:
        text = text[ends_of_thoughts[-1].end() :]
        cut += ("thinking",)
    elif _THOUGHTS_START.match(text):
        return Reply("", ("thinking",))
    bare = _without_tokens(text)
    if bare != text:
        cut += ("tokens",)
    return Reply(bare, cut)


def with_closed_thoughts(prompt: str) -> str:
    """Return the prompt; if it ends where thoughts begin, they are closed, so that the reply is the answer itself."""
    return _OPEN_THOUGHTS.sub(r"<\1>\n\n</\1>\n\n", prompt)


def sound(text: str) -> str:
    """Remove lone surrogates, and replace control characters except tabs and line feeds by blanks."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", re.sub(r"[\ud800-\udfff]", "", text))


def holds_token(text: str) -> bool:
    """Whether the text contains a special token or a tag."""
    return any(mark in text for mark in _MARKS) and bool(SPECIAL_TOKEN.search(text) or _SPACES.search(text))


def opens_reply(text: str) -> bool:
    """Whether a text begins with a greeting or words such as “Here is a caption:”; a label alone does not count."""
    preamble = _PREAMBLE.match(text)
    return _GREETING.match(text) is not None or preamble is not None and _ANNOUNCES.match(preamble[0]) is not None


def _without_tokens(text: str) -> str:
    """The first turn of the conversation, without special tokens and the name of the role."""
    text = SPECIAL_TOKEN.sub(lambda token: token[0] if _UNKNOWN.fullmatch(token[0]) else " ", _first_turn(text))
    text = text.replace("Ġ", " ") if _SPACES.search(text) else text
    return _ROLE.sub("", text, count=1) if _ROLE.match(text) else text


def _first_turn(text: str) -> str:
    """The text up to the first end token that has other text before it."""
    start = 0
    for end in _END.finditer(text):
        if SPECIAL_TOKEN.sub("", text[start : end.start()]).strip():
            return text[: end.start()]
        start = end.end()
    return text


def _unfenced(text: str) -> str:
    """The text within the first fence of three backticks, without the fence's language; without a fence, the text."""
    _, fence, after = text.partition("```")
    if not fence:
        return text
    inside = after.partition("```")[0]
    first_line, line_feed, other_lines = inside.partition("\n")
    is_language = line_feed and " " not in first_line.strip()
    return other_lines if is_language else inside


def _string_in_json(text: str) -> str:
    """The only string in a JSON object or list, such as {"caption": "a dog"}; any other text unchanged."""
    if not text.strip().startswith(("{", "[")):
        return text
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    values = parsed.values() if isinstance(parsed, dict) else parsed
    strings = [value for value in values if isinstance(value, str)]
    return strings[0] if len(strings) == 1 else text


def _without_offer(text: str) -> str:
    """The text without notes on the caption, and without last sentences or lines that offer to do more."""
    text = text.rstrip()
    if note := _NOTE.search(text):
        text = text[: note.start()].rstrip()
    for _ in range(OFFERS):
        last = max(text.rfind(mark, 0, len(text) - 1) for mark in ("\n", ". ", "! ", ".\n"))
        if last < 0 or not _OFFER.fullmatch(text[last + 1 :].strip()):
            break
        text = text[: last + 1].rstrip()
    return text


def _unquoted(text: str) -> str:
    """The text without quotation marks around the whole of it."""
    close = _QUOTES.get(text[:1])
    if not close or len(text) < 3 or not text.endswith(close):
        return text
    inside = text[1:-1]
    if inside[0] == text[0] and inside[-1] == close:  # doubled
        inside = inside[1:-1]
    return text if text[0] in inside or close in inside and close != "’" else inside.strip()
