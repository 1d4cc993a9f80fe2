"""Find answers of an assistant that are no captions, in the languages in which assistants answer, and its thoughts.

Each rule is a hint and a pattern, for text in lower case with straight apostrophes. Every text that matches the
pattern has a chunk that matches the hint, so the pattern is tried on few texts. No rule may match what people say
about a picture.
"""

import re
import unicodedata
from functools import lru_cache

from diversity.words.sentences import sentences
from diversity.words.tokens import LONG_CHUNK, folded, words

ENDS = 3  # sentences at the beginning and at the end of a text that are examined, where an assistant speaks of itself
SAYING = 3  # words that must be before a quotation that is not examined, as in 'a sign says "sorry"'
SAID = 2  # or words after it, as in '"sorry" on a sign'
SAYS = 80  # characters in which these words are looked for
_QUOTED = re.compile('"[^"]*+"|“[^„“”]*+”|„[^„“”]*+[“”]|«[^«»]*+»|「[^「」]*+」|『[^『』]*+』')
# Names of things with words on them, which follow these words in titles, as in "Sorry for the late reply meme". An
# assistant's sentence does not end so: it has a mark at its end, or an article or a preposition before a thing.
_THING = (
    r"(?:meme|gif|sign|poster|print|quotes?|lyrics|sheet music|song|album|cover|book|card|stickers?|decal|label|badge"
    r"|banner|stamp|mug|(?:t-?)?shirt|tee|hoodie|tote|bag|hat|pillow|necklace|bracelet|worksheet|flash ?cards?|puzzle"
    r"|game|quiz|lesson(?: plan)?|contest|template|icon|logo|clip ?art|vector|illustration|infographic|drawing"
    r"|painting|cartoon|comic(?: strip)?|calligraphy|wallpaper|background|placeholder|slide|screenshot|thumbnail|video"
    r"|movie|trailer|concept|certificate|letter|invitation|note|notebook|tattoo|graffiti|error|message)"
)
_NO_TITLE = frozenset("a an the this that any your its no of in on for with from at to".split())
_BEFORE_NAME = frozenset("a an this that any your".split())  # also with another word before the thing
_ON_A_THING = re.compile(rf"\b{_THING}(?: (?:for|by|on|in|with|from) [^.!?]{{1,60}})?\Z")
_SIGN = re.compile(r"(?:\b(?:reads|reading|says|saying|asks|asking)\b|写着|寫著)[^.!?。！？]*+")
_PICTURE = "(?:image|picture|photo|photograph|file|attachment)s?"
# After "missing": excludes pictures that lack something, and pictures that are missing from a wall or a page.
_NOT_MISSING = (
    r"(?! (?:an?|its|the|their|some)\b)"
    r"(?! (?:from|in|on) (?:an?|the|its|their) (?:wall|album|frame|book|page|museum)\b)"
)
# Excludes parts of a picture, such as "the back of the image".
_WHOLE = "".join(f"(?<!{word} )(?<!{word} the )" for word in "of in on from to across".split())
_GIVEN = "(?:provided|attached|uploaded|available|visible|load|displayed|found|processed|opened)"
_NOT = "(?:can ?not|can't|could ?n[o']t|won't|will not|do not|don't|did ?n[o']t)"
_VERBS = (
    "(?:assist|help|describe|identify|see|view|access|provide|comply|generate|create|fulfill?|process|analy[sz]e"
    "|recogni[sz]e|caption|determine|comment|discuss|engage|answer|do (?:that|this)|have (?:access|the|enough|any)"
    r"|support|interpret|open|display|read|continue|complete|produce|respond|share|tell|make out|look at|reveal"
    r"|re-?write|rephrase|paraphrase|reword|translate|summari[sz]e|write|offer|understand|combine|merge|infer"
    r"|proceed|fix|correct"
    r"|be able)\b"
)
# The beginning of a clause; it excludes "a text that I can't read".
_START = (
    r"(?:^\W*|[.!?,;:–—\"] |\b(?:but|and|so|because|however|ai"
    r"|(?:regret|means?|afraid|unfortunate|say|note|know|fact|you|is|seems|appears) that) )"
)
_WORDS = (
    "(?:captions?|(?:alt[- ])?texts?|sentences?|descriptions?|inputs?|prompts?|information|contexts?|details?"
    "|requests?)"
)
_WRITE = "(?:re-?write|rephrase|paraphrase|reword|generate|combine|merge|fuse)"
_ASK = "(?:provide|upload|share|attach|send)"
_ASKED_FOR = rf"(?: [\w'-]+){{0,5}}? (?:{_PICTURE}|{_WORDS}|content|subject|example|link|it|them|again)\b"
# What follows "an AI" where it is the speaker; it excludes "an AI robot" and "an assistant coach".
_SPEAKS = (
    r"(?:[,.;:]|\W*$| (?:i|and|so|but|that|which|who|(?:text|language|vision)\S*|model|assistant|system|trained"
    r"|designed|created|developed)\b)"
)
_SO = r"^\W*(?:(?:okay|ok|alright|all right|hmm+|so|well|now|first|got it|right)\W+){0,3}"  # how thoughts begin

_RULES = {
    "sorry": (
        r"sorry|apolog",
        r"\b(?:i'm|i am) (?:\w+ )?sorry\b|^\W*sorry\b(?! (?:we|to|not|for your)\b|, we(?:'re| are) closed)"
        r"|\bsorry[,.]? (?:but|i)\b|\bi apologi[sz]e|\bapologies\b",
    ),
    "cannot": (
        r"\b(?:i|we)\b|unanswerable",
        rf"{_START}i {_NOT}(?: \w+ly)? {_VERBS}"
        r"|\b(?:i'm|i am|we are) (?:\w+ )?(?:unable|not able|not allowed|afraid (?:i|that))\b"
        r"|\bwe (?:can ?not|can't) (?:process|assist|help|provide|describe|display)"
        rf"|\b(?:i'm|i am) not going to {_VERBS}|^\W*unanswerable\W*$"
        r"|\bi (?:must|have to|need to|will|would)(?: \w+ly)? (?:decline|prefer not|rather not|refuse)",
    ),
    "model": (
        r"\bai\b|\bi\b|assistant",
        rf"\bas an? (?:text-based |virtual |large )?(?:ai|language model|assistant){_SPEAKS}"
        rf"|\b(?:i'm|i am) (?:just |only )?an? (?:text-based |large )?(?:ai|language model){_SPEAKS}",
    ),
    "no picture": (
        r"\bno\b|\bnot\b|(?:did|could|ca|have|has|is)n't\b|cannot|unavailable|failed|missing"
        r"|violat|policy|policies|quality|describe",
        rf"(?:{_WHOLE}\b(?:an|the|this|your|no) |^\W*(?:error\W+)?){_PICTURE} (?:\w+ ){{0,3}}"
        rf"(?:not (?:been )?|could ?n[o']t be |can(?: ?not|'t) be |failed to ){_GIVEN}"
        rf"|\bno {_PICTURE} (?:\w+ ){{0,3}}{_GIVEN}\b(?! (?:on|in|at|by)\b)|\b{_PICTURE} did ?n[o']t load"
        rf"|{_WHOLE}\b{_PICTURE} (?:currently )?(?:is |are |(?:appears?|seems?) to be )?(?:currently )?"
        rf"(?:not (?:available|found)|unavailable|missing{_NOT_MISSING})\b"
        rf"|(?:\b(?:not|no)|n't) (?:\w+ ){{0,4}}{_PICTURE} (?:attached|provided|uploaded)"
        rf"|\bno {_PICTURE} to (?:describe|caption)\b"
        rf"|\bno (?:{_PICTURE} )?(?:description|caption|alt[- ]text) available\b|^\W*no alternative text\b"
        rf"|^\W*(?:the|this) {_PICTURE} (?:is|seems|appears) (?:to be )?(?:\w+ ){{0,2}}(?:too|not|un\w+|hard|difficult"
        rf"|impossible)\b(?: \w+){{0,3}} to (?:describe|caption)\b"
        r"|\b(?:image|content|request)\b.{0,80} violat\w+ |\bcontent polic(?:y|ies)|quality issues are too severe",
    ),
    "asks": (
        r"please|kindly|\byou\b|\byour\b",
        rf"\b(?:please|kindly|(?:can|could|would) you)(?: please)? (?:re-?)?{_ASK}{_ASKED_FOR}"
        r"|\byou (?:have not|haven't|did not|didn't) (?:given?|provided?|includ\w+|attach\w*|upload\w*|sen[dt])\b"
        rf"|\b(?:you|message)\b.{{0,80}}\bno {_PICTURE}|\bno {_PICTURE}\b.{{0,80}}\byour?\b"
        r"|\bhow (?:can|may) i (?:help|assist) you\b[^.!?]{0,80}\W*$"
        r"|what would you like (?:me|to know|help|assistance)\b",
    ),
    "no words": (
        r"\b(?:provided|gave|given|sent|supplied|entered|input|re-?write|rephrase|paraphrase|reword|generate|combine"
        r"|merge|fuse"
        r"|describe|context|inappropriate|offensive|harmful)\b",
        rf"\bno (?:\w+ )?{_WORDS} (?:(?:was|were|is|are|has been|have been) )?"
        rf"(?:provided|given|supplied|to {_WRITE})\b"
        rf"|\b(?:the|your|this|these) (?:provided|given|supplied|input) {_WORDS} (?:\w+ ){{0,3}}"
        r"(?:not|unclear|incomplete|empty"
        r"|missing|insufficient|too|lacks?|nonsens\w+|(?:do|does|is|are)n't)\b"
        rf"|\b{_WORDS} you(?:'ve| have)? (?:provided|gave|given|sent|supplied|entered)\b"
        r"|\b(?:not enough|insufficient|too little) (?:information|context)"
        rf" (?:(?:was |is )?(?:provided|given)|to (?:describe|{_WRITE}))\b"
        r"|\bwithout (?:more|additional|further|any) context\b.{0,80}\b(?:i|it is|it's) "
        r"|\bthis (?:caption|text|content|request|prompt) (?:\w+ ){0,3}(?:inappropriate|offensive|harmful)\b",
    ),
    "not possible": (
        rf"\bi\b|impossible|unable|clarify|specify|\bknow\b|\b{_WRITE}\b",
        rf"\b(?:not |im)possible to {_WRITE}\b|^\W*unable to {_WRITE}\b|\bplease (?:let me know|clarify|specify)\b"
        r"|\b(?:could|can|would) you (?:please )?(?:clarify|specify)\b|\b(?:i'm|i am) not comfortable\b"
        r"|\bi(?: would|'d)? need (?:more|additional|further|the)"
        r" (?:information|context|detail|caption|text|image|picture)"
        r"|\bi (?:can ?not|can't|could ?n[o']t) find (?:any|the|an?) ",
    ),
    "rules": (
        r"\bmy\b|\bi\b|\bknow\b",
        r"\bmy (?:guidelines|programming|policy|policies|training)\b(?! (?:on|for|log|day|session|journey|partner)\b)"
        rf"|\bi(?:'d| would) be (?:happy|glad) to (?:\w+ )?(?:try|take|{_VERBS})"
        r"|\bi hope (?:this|that|it) helps\b(?! you\b)|\blet me know (?:if|whether)\b",
    ),
    "thinks": (
        r"\buser\b|\bi\b|\bwe\b|\blet\b",
        rf"{_SO}the user (?:wants|asks|asked|is asking|has (?:asked|given|provided)|needs|gave|provided|would like)\b"
        rf"|{_SO}let(?:'s| me| us) (?:(?:see|think)\b(?:[.,:;]| about| how| what)|(?:start|begin) (?:by|with)\b"
        rf"|tackle\b|break (?:it|this|that) down|look at (?:the|this) {_PICTURE})"
        rf"|{_SO}(?:i|we)(?:'ll| will| should| must| (?:need|have|am asked|are asked) to) (?:\w+ )?"
        rf"(?:(?:{_WRITE}|describe|caption) (?:\w+ ){{0,3}}(?:{_PICTURE}|{_WORDS})"
        r"|(?:write|create|produce|provide|come up with) (?:\w+ ){0,4}(?:captions?|descriptions?|sentences?))\b",
    ),
    "german": (
        r"leid\b|kann\b|\blage\b|darf\b|entschuldig|bitte\b|\bkein|\bki\b|sprachmodell",
        r"\btut mir (?:sehr )?leid|^entschuldig(?:ung|en sie)\b|\bich (?:kann|darf) [^.]{0,80}\b(?:nicht|kein)"
        r"|\bleider (?:kann|darf) ich|\bals (?:ki|sprachmodell)\b|\bbitte (?:laden|lade|stell|send|schick)"
        r"|\bich bin (?:leider )?nicht in der lage\b|\bkein bild (?:hochgeladen|angehängt|erhalten)",
    ),
    "french": (
        r"désolé|\bje\b|qu'ia|modèle|malheureusement|veuillez|pourriez",
        r"\bje suis (?:vraiment )?désolé|^désolé|\bje suis (?:incapable|dans l'impossibilité)"
        r"|\bje ne (?:peux|suis|vois|parviens|dispose)|\bmalheureusement, je"
        r"|\ben tant qu(?:'ia|e modèle)|\b(?:veuillez|pourriez-vous) (?:fournir|télécharg|partag|envoy)",
    ),
    "spanish, portuguese, italian": (
        r"siento|puedo|modell?o|\bia\b|\bpor\b|desculp|muito|posso|consigo|dispiace|grado",
        r"\blo siento|\bno puedo\b|\b(?:como|come)(?: una?| uma?)? (?:ia|modell?o)\b|\bin quanto ia"
        r"|\bpor favor, (?:sub|proporcion|compart|envi)|\bdesculpe|\bsinto muito|\bnão (?:posso|consigo)\b"
        r"|\bmi dispiace"
        r"|\bnon (?:posso|sono in grado)",
    ),
    "czech": (
        r"omlouvám|líto|nemohu|\bai\b|jazykový",
        r"\bomlouvám se|\bje mi líto|\bnemohu\b|\bjako (?:ai|jazykový model)",
    ),
    "russian": (
        r"извините|сожалению|могу|вижу|языковая|пожалуйста",
        r"извините|к сожалению|\bя не (?:могу|вижу)|как языковая модель|пожалуйста, (?:загруз|предостав)",
    ),
    "chinese": (
        r"对不起|對不起|抱歉|遗憾|无法|無法|不能|收到|看到|看不到|提供|上传|发送|人工智能|语言模型|失败",
        r"对不起|對不起|抱歉|很遗憾|我(?:无法|無法|不能|看不到|没有看到)|(?:未|没有)(?:收到|提供)"
        r"|(?:作为|我(?:只)?是)[^。，]{0,6}(?:人工智能|语言模型)"
        r"|请(?:重新)?(?:提供|上传|发送)|(?:无法|不能)(?:识别|描述|查看|显示|提供|协助|处理|完成|生成)|图片(?:无法|加载失败|未上传)",
    ),
    "japanese": (
        r"申し訳|すみません|ごめん|できません|アップロード|ai[とな]|言語モデル|画像",
        r"申し訳|すみません|ごめんなさい|言語モデル|ai(?:として|なので)|画像を(?:提供|アップロード|添付)|画像が(?:見え|表示)"
        r"|(?:説明|表示|提供|認識|特定|お答え|お手伝い)(?:することは?が?)?できません",
    ),
    "hindi": (
        r"खेद|क्षमा|माफ|मैं|एआई|कृपया",
        unicodedata.normalize(
            "NFC",
            r"मुझे खेद|क्षमा करें|माफ़? करें|मैं .{0,80}(?:नहीं (?:कर|दे|देख|बता)|असमर्थ)|एक एआई"
            r"|कृपया .{0,80}(?:अपलोड|प्रदान|साझा)",
        ),
    ),
    "korean": (
        r"죄송|없|업로드|제공",
        r"죄송(?!\w*라고)|(?:볼|설명할|제공할|도와드릴) 수 없|이미지를 (?:업로드|제공)",
    ),
    # Only the first words: "I'm sorry", "Unfortunately" or "I cannot" in Dutch, Swedish, Norwegian, Danish, Finnish,
    # Polish, Slovak, Ukrainian, Hungarian, Romanian, Greek, Turkish, Indonesian, Vietnamese, Thai, Arabic, Persian,
    # Urdu, Hebrew, Bengali and Tamil.
    "other languages": (
        r"spijt|\bkan\b|ledsen|beklager|undskyld|valitettavasti|pahoittelen|przepraszam|przykro|mogę|prepáčte|nemôžem"
        r"|вибачте|жаль|можу|sajnálom|sajnos|\bpare\b|\bnu\b|λυπάμαι|δυστυχώς|üzgünüm|özür|maalesef|maaf|saya|\bxin\b"
        r"|tôi|tiếc|ขออภัย|ขอโทษ|ไม่สามารถ|عذر|آسف|أعتذر|أستطيع|يمكنني|للأسف|متأسف|متاسف|מצטער|יכול|দুঃখিত|மன்னிக்க",
        unicodedata.normalize(
            "NFC",
            r"^\W*(?:het spijt me\b|helaas kan ik|ik kan .{0,60}\b(?:niet|geen)\b"
            r"|jag är ledsen|jag kan (?:tyvärr )?inte\b|beklager|undskyld|jeg kan (?:\w+ )?ikke\b"
            r"|valitettavasti (?:en|minä)\b|pahoittelen"
            r"|przepraszam|przykro mi|(?:niestety,? )?nie mogę|prepáčte|nemôžem|вибачте|на жаль,? я|я не можу"
            r"|sajnálom|sajnos nem|îmi pare rău|nu pot\b|λυπάμαι|δυστυχώς|üzgünüm|özür dilerim|maalesef"
            r"|maaf,? (?:saya|tetapi|kami)|saya (?:minta maaf|tidak (?:dapat|bisa))"
            r"|xin lỗi|(?:tôi )?rất tiếc|tôi không thể"
            r"|ขออภัย|ขอโทษ|(?:ฉัน|ผม|ดิฉัน)ไม่สามารถ|عذر|(?:أنا )?آسف|أعتذر|لا (?:أستطيع|يمكنني)|للأسف"
            r"|متأسف|متاسف|معذرت|(?:אני )?מצטער|אני לא יכול|দুঃখিত|மன்னிக்க)",
        ),
    ),
}
_COMPILED = tuple((re.compile(hint), re.compile(pattern)) for hint, pattern in _RULES.values())
_HINT = re.compile("|".join(hint for hint, _ in _RULES.values()))


def refuses(text: str) -> bool:
    """Return whether a text is an assistant's answer instead of a caption, by its first and last sentences."""
    chunks = text.split()
    if not any(map(_may_refuse_short if max(map(len, chunks), default=0) <= LONG_CHUNK else may_refuse, chunks)):
        return False
    parts = sentences(" ".join(chunks))
    text = folded(" ".join(parts if len(parts) <= 2 * ENDS else (*parts[:ENDS], *parts[-ENDS:])))
    if _names_a_thing(text):
        return False
    text = _QUOTED.sub(lambda quoted: '""' if _is_on_a_thing(quoted) else quoted[0], text)
    text = _SIGN.sub(lambda sign: "" if len(words(sign.string[: min(sign.start(), SAYS)])) >= SAID else sign[0], text)
    return any(hint.search(text) and pattern.search(text) for hint, pattern in _COMPILED)


def _names_a_thing(text: str) -> bool:
    """Return whether a text ends in the name of a thing with words on it, as a title does and a sentence does not."""
    thing = _ON_A_THING.search(text)
    if thing is None:
        return False
    *_, before, last = "", "", *words(text[max(thing.start() - SAYS, 0) : thing.start()])
    return last not in _NO_TITLE and before not in _BEFORE_NAME


def _is_on_a_thing(quoted: re.Match[str]) -> bool:
    """Return whether a quotation is a text on a thing, by the words before or after it, and not the answer itself."""
    text, start, end = quoted.string, quoted.start(), quoted.end()
    return len(words(text[: min(start, SAYS)])) >= SAYING or len(words(text[end : end + SAYS])) >= SAID


def may_refuse(chunk: str) -> bool:
    """Return whether a text with this chunk, a stretch between white space, may be a refusal.

    Every refusal has such a chunk.
    """
    return _HINT.search(folded(chunk)) is not None


_may_refuse_short = lru_cache(maxsize=1 << 16)(may_refuse)
