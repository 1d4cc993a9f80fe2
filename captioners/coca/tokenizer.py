"""One face for CLIP's tokenizer and a folder's own, both through open_clip."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from captioners.safe_reading import attempt

FILES = (  # kept as they are: another release of transformers may write them so that older ones cannot read them
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)


class CaptionTokenizer:
    """Text to token ids and back; start, end and pad ids are the tokenizer's own.

    CLIP's tokenizer, unless text_cfg.hf_tokenizer_name asks for the one whose files lie in `folder`.
    Raises ValueError where those files are missing, or do not fit the model's config.
    """

    _tokenizer: Any  # open_clip's SimpleTokenizer, or its HFTokenizer, which wraps `_own`

    def __init__(self, model_cfg: Mapping[str, Any], folder: Path | None):
        text_cfg = model_cfg["text_cfg"]
        options = text_cfg.get("tokenizer_kwargs") or {}
        self.folder = folder if text_cfg.get("hf_tokenizer_name") else None
        self._files: dict[str, bytes] = {}  # their bytes: what is loaded may be moved before it is saved again
        if text_cfg.get("hf_tokenizer_name"):
            self._tokenizer, self._files = _from_folder(folder, text_cfg, options)
            own = self._own = self._tokenizer.tokenizer
            self.start_id = own.bos_token_id if own.bos_token_id is not None else own.cls_token_id
            self.end_id = own.eos_token_id if own.eos_token_id is not None else own.sep_token_id
            self.pad_id, self.special_ids, self.size = own.pad_token_id, set(own.all_special_ids), len(own)
        else:
            self._tokenizer, self._own = attempt("CLIP's tokenizer cannot be made", SimpleTokenizer, **options), None
            self.start_id, self.end_id = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
            self.special_ids, self.size = set(self._tokenizer.all_special_ids), self._tokenizer.vocab_size
            self.pad_id = 0  # open_clip pads with zeros; CLIP's vocabulary has no pad token, 0 is a "!" in it
        self._check(model_cfg)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, cleaned as open_clip cleans it, from start to end token, never cut."""
        if self._own is None:
            return [self.start_id, *self._tokenizer.encode(text), self.end_id]
        return list(self._own(self._tokenizer.clean_fn(text), truncation=False, verbose=False).input_ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first end token, without special tokens and outer blanks."""
        ids = list(ids)
        ids = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
        ids = [i for i in ids if i not in self.special_ids]
        if self._own is None:
            return self._tokenizer.decode(ids).strip()
        return self._own.decode(ids, clean_up_tokenization_spaces=False).strip()

    def never_ids(self, vocabulary: int) -> list[int]:
        """Ids that no caption may hold: special tokens but the end token, padding, and ids that are no token's.

        CLIP's pad id, a "!" within a longer word, is among them: the caption loss skips it, so it was never learnt.
        """
        never = {*self.special_ids, self.start_id, self.pad_id, *range(self.size, vocabulary)}
        return sorted(never - {self.end_id})

    def copy_files(self, folder: Path) -> None:
        """Writes the tokenizer's own files, if it has any, into a folder."""
        for name, data in self._files.items():
            (folder / name).write_bytes(data)

    def _check(self, model_cfg: Mapping[str, Any]) -> None:
        text_cfg, where = model_cfg["text_cfg"], f"tokenizer in {self.folder}" if self.folder else "CLIP's tokenizer"
        problems = [
            f"it has no {token} token"
            for token, value in (("start", self.start_id), ("end", self.end_id), ("pad", self.pad_id))
            if value is None
        ]
        if not problems:
            ids = attempt(f"{where} does not read a text", self.encode, "a")
            if ids[:1] != [self.start_id] or ids[-1:] != [self.end_id]:
                problems.append("it does not put the start and end tokens round a text")
            for key, pad in (("text_cfg.pad_id", text_cfg.get("pad_id", 0)), ("pad_id", model_cfg.get("pad_id", 0))):
                if pad != self.pad_id:
                    problems.append(f"its pad id is {self.pad_id}, {key} is {pad}")
        if self.size > text_cfg.get("vocab_size", 49408):
            problems.append(f"it has {self.size} tokens, text_cfg.vocab_size is {text_cfg.get('vocab_size', 49408)}")
        if problems:
            raise ValueError(f"{where} does not fit the model: " + "; ".join(problems))


def _from_folder(
    folder: Path | None, text_cfg: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[HFTokenizer, dict[str, bytes]]:
    """A folder's tokenizer, and its files by their names."""
    if folder is None or not any((folder / name).is_file() for name in FILES):
        raise ValueError(f"text_cfg.hf_tokenizer_name is set, but no tokenizer's files are in {folder or 'open_clip'}")
    tokenizer = attempt(
        f"{folder}: the tokenizer cannot be read",
        HFTokenizer,
        str(folder),
        tokenizer_mode=text_cfg.get("tokenizer_mode"),
        local_files_only=True,
        trust_remote_code=False,  # a user's file never runs code
        **options,
    )
    return tokenizer, {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
