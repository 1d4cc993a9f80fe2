"""What an assistant says in place of a caption, in the languages that assistants answer in.

Each rule has a hint, which some chunk of every text that it holds for has, so that few texts are looked at; and its pattern. Both
read lower case with straight apostrophes. None may hold for what people say of a picture.
"""

import re
import unicodedata
from functools import lru_cache

from diversity.tokens import LONG_CHUNK, folded

_PICTURE = "(?:image|picture|photo|photograph|file|attachment)s?"
_VERBS = ("assist|help|describe|identify|see|view|access|provide|comply|generate|create|fulfill?|process|analy[sz]e|recogni[sz]e"
          "|caption|determine|comment|discuss|engage|answer|do (?:that|this)|have (?:access|the|enough|any)|support|interpret|open"
          "|display|read|continue|complete|produce|respond|share|tell|make out|look at|reveal|be able")

_RULES = {
    "sorry": (r"sorry|apolog", r"\b(?:i'm|i am) (?:\w+ )?sorry\b|^\W*sorry\b|\bsorry[,.]? (?:but|i)\b|\bi apologi[sz]e|\bapologies\b"),
    "cannot": (r"\b(?:i|we)\b", r"(?:^\W*|[.!?,;:–—\"] |\b(?:but|that|and|so|because|however|ai) )i (?:can ?not|can't|could ?n[o']t|won't|will not|do not|don't|did ?n[o']t)(?: \w+ly)? "
               rf"(?:{_VERBS})\b|\b(?:i'm|i am|we are) (?:\w+ )?(?:unable|not able|not allowed|afraid (?:i|that))\b"
               r"|\bwe (?:can ?not|can't) (?:process|assist|help|provide|describe|display)|\bi (?:must|have to|need to|will|would)(?: \w+ly)? (?:decline|prefer not|rather not|refuse)"),
    "model": (r"\bai\b|language|assistant|text-based", r"\bas an? (?:text-based |virtual |large )?(?:ai|language model|assistant)\b"
              r"|\b(?:i'm|i am) (?:just |only )?an? (?:text-based |large )?(?:ai|language model)\b"),
    "no picture": (r"provided|attached|uploaded|available|load|missing|displayed|found|processed|opened|violat|policy|policies|quality",
                   rf"\b(?:an|the|this|your|no) {_PICTURE} (?:that |which |you )?(?:\w+ ){{0,3}}(?:not |un|could ?n[o']t be |can ?not be |can't be "
                   rf"|failed to |be )(?:provided|attached|uploaded|available|load|displayed|found|processed|opened)"
                   rf"|\b(?:no|an) {_PICTURE} (?:\w+ ){{0,3}}(?:provided|attached|uploaded|available|found)\b"
                   rf"|\b{_PICTURE} (?:currently )?(?:is |are )?(?:not (?:available|found)|unavailable|missing)\b|\b{_PICTURE} did ?n[o']t load"
                   rf"|\b(?:image|content|request)\b.{0,80} violat\w+ |\bcontent polic(?:y|ies)|quality issues are too severe"),
    "asks": (r"please|kindly|\byou\b", rf"\b(?:please|kindly|(?:can|could|would) you)(?: please)? (?:re-?)?(?:provide|upload|share|attach|send)\b"
             rf"|\b(?:you|message)\b.{0,80}\bno {_PICTURE}|\bno {_PICTURE}\b.{0,80}\byour?\b|\bhow (?:can|may) i (?:help|assist)|what would you like"),
    "rules": (r"\b(?:my|i'd|i)\b", r"\bmy (?:guidelines|programming|policy|policies|training)\b|\bi(?:'d| would) be (?:happy|glad) to"),
    "german": (r"leid\b|kann\b|darf\b|entschuldig|bitte\b|\bkein|\bleider\b|\bki\b", r"\btut mir (?:sehr )?leid|^entschuldig(?:ung|en sie)\b|\bich (?:kann|darf) [^.]{0,80}\b(?:nicht|kein)"
               r"|\bleider (?:kann|darf) ich|\bals (?:ki|sprachmodell)\b|\bbitte (?:laden|lade|stell|send|schick)|\bkein bild (?:hochgeladen|angehängt|erhalten)"),
    "french": (r"désolé|\bje\b|malheureusement|qu'ia|veuillez|pourriez|modèle", r"\bje suis (?:vraiment )?désolé|^désolé|\bje ne (?:peux|suis|vois|parviens|dispose)"
               r"|\bmalheureusement, je|\ben tant qu(?:'ia|e modèle)|\bveuillez (?:fournir|télécharg|partag|envoy)|\bpourriez-vous (?:fournir|télécharg|partag|envoy)"),
    "spanish, portuguese, italian": (
        r"siento|puedo|modell?o|\bia\b|\bpor\b|desculp|muito|posso|consigo|dispiace|grado",
        r"\blo siento|\bno puedo\b|\b(?:como|come)(?: una?| uma?)? (?:ia|modello|modelo)\b|\bin quanto ia|\bpor favor, (?:sub|proporcion|compart|envi)"
        r"|\bdesculpe|\bsinto muito|\bnão (?:posso|consigo)\b|\bmi dispiace|\bnon (?:posso|sono in grado)"),
    "czech": (r"omlouvám|líto|nemohu|jazykový", r"\bomlouvám se|\bje mi líto|\bnemohu\b|\bjako (?:ai|jazykový model)"),
    "russian": (r"извините|сожалению|могу|вижу|языковая|пожалуйста", r"извините|к сожалению|\bя не (?:могу|вижу)|как языковая модель|пожалуйста, (?:загруз|предостав)"),
    "chinese": (r"对不起|對不起|抱歉|遗憾|无法|無法|不能|收到|看到|提供|上传|人工智能|语言模型|失败",
                r"对不起|對不起|抱歉|很遗憾|我(?:无法|無法|不能|看不到|没有看到)|(?:未|没有)(?:收到|提供)|人工智能|语言模型|请(?:重新)?(?:提供|上传|发送)"
                r"|(?:无法|不能)(?:识别|描述|查看|显示|提供|协助|处理|完成|生成)|图片(?:无法|加载失败|未上传)"),
    "japanese": (r"申し訳|すみません|ごめん|できません|アップロード|ai[とな]|言語モデル|画像", r"申し訳|すみません|ごめんなさい|言語モデル|ai(?:として|なので)"
                 r"|(?:説明|表示|提供|認識|特定|お答え|お手伝い)(?:することは?が?)?できません|画像を(?:提供|アップロード|添付)|画像が(?:見え|表示)"),
    "hindi": (r"खेद|क्षमा|माफ|मैं|एआई|कृपया", unicodedata.normalize(
        "NFC", r"मुझे खेद|क्षमा करें|माफ़? करें|मैं .{0,80}(?:नहीं (?:कर|दे|देख|बता)|असमर्थ)|एक एआई|कृपया .{0,80}(?:अपलोड|प्रदान|साझा)")),
    "korean": (r"죄송|없습니다|업로드", r"죄송|(?:볼|설명할|제공할|도와드릴) 수 없|이미지를 (?:업로드|제공)"),
}
_COMPILED = tuple((re.compile(hint), re.compile(pattern)) for hint, pattern in _RULES.values())
_HINT = re.compile("|".join(hint for hint, _ in _RULES.values()))


def refuses(text: str) -> bool:
    """Whether the text is an assistant's answer in place of a caption."""
    chunks = text.split()
    if not any(_may_refuse_short(chunk) if len(chunk) <= LONG_CHUNK else may_refuse(chunk) for chunk in chunks):
        return False
    text = folded(" ".join(chunks))
    return any(hint.search(text) and pattern.search(text) for hint, pattern in _COMPILED)


def may_refuse(chunk: str) -> bool:
    """Whether a text with this chunk, a stretch between white space, may be one that `refuses`; some chunk of such a text has this."""
    return _HINT.search(folded(chunk)) is not None


_may_refuse_short = lru_cache(maxsize=1 << 16)(may_refuse)
