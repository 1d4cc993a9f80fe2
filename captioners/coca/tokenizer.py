"""One interface for CLIP's tokenizer and for the tokenizer in a captioner's folder, both through open_clip."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from tokenizers import Tokenizer

from captioners.safe_reading import attempt, read_object

# The files of a tokenizer. They are copied byte for byte, because older releases of transformers may be unable to read
# what a newer one writes.
FILES = (
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
# What the config of a plain tokenizer may set: it is all in tokenizer.json, which needs no transformers then.
PLAIN = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "add_prefix_space": True,
    "clean_up_tokenization_spaces": False,
}
SPECIAL = ("bos_token", "eos_token", "pad_token")


class CaptionTokenizer:
    """Turns text into token ids and back.

    Uses CLIP's tokenizer, or the one whose files are in `folder` if text_cfg.hf_tokenizer_name is set.
    Raises ValueError if those files are missing, or do not fit the model's config.
    """

    _tokenizer: Any  # open_clip's SimpleTokenizer, its HFTokenizer, which wraps `_hf_tokenizer`, or a PlainTokenizer

    def __init__(self, model_cfg: Mapping[str, Any], folder: Path | None):
        text_cfg = model_cfg["text_cfg"]
        options = text_cfg.get("tokenizer_kwargs") or {}
        self.folder = folder if text_cfg.get("hf_tokenizer_name") else None
        # kept in memory, because the folder may be gone when the captioner is saved
        self._files: dict[str, bytes] = {}
        if text_cfg.get("hf_tokenizer_name"):
            self._tokenizer, self._files = _from_folder(folder, text_cfg, options)
            inner = self._hf_tokenizer = self._tokenizer.tokenizer
            self.start_id = inner.bos_token_id if inner.bos_token_id is not None else inner.cls_token_id
            self.end_id = inner.eos_token_id if inner.eos_token_id is not None else inner.sep_token_id
            self.pad_id, self.special_ids, self.size = inner.pad_token_id, set(inner.all_special_ids), len(inner)
        else:
            self._hf_tokenizer = None
            self._tokenizer = attempt("CLIP's tokenizer cannot be made", SimpleTokenizer, **options)
            self.start_id, self.end_id = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
            self.special_ids, self.size = set(self._tokenizer.all_special_ids), self._tokenizer.vocab_size
            self.pad_id = 0  # open_clip pads with 0, which is "!" in CLIP's vocabulary: it has no pad token
        self._check(model_cfg)

    def encode(self, text: str) -> list[int]:
        """All token ids of a text, cleaned as open_clip cleans it, from start to end token, without truncation."""
        if self._hf_tokenizer is None:
            return [self.start_id, *self._tokenizer.encode(text), self.end_id]
        return list(self._hf_tokenizer(self._tokenizer.clean_fn(text), truncation=False, verbose=False).input_ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids up to the first end token, without special tokens and outer white space."""
        ids = list(ids)
        ids = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
        ids = [id for id in ids if id not in self.special_ids]
        if self._hf_tokenizer is None:
            return self._tokenizer.decode(ids).strip()
        return self._hf_tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()

    def banned_ids(self, vocabulary: int) -> list[int]:
        """The ids that no caption may contain: special tokens except the end token, padding, and ids without a token.

        They include CLIP's pad id, a "!" within a longer word: the caption loss skips it, so no model learns it.
        """
        banned = {*self.special_ids, self.start_id, self.pad_id, *range(self.size, vocabulary)}
        return sorted(banned - {self.end_id})

    def copy_files(self, folder: Path) -> None:
        """Write the files of the folder's tokenizer, if there is one, to another folder."""
        for name, data in self._files.items():
            (folder / name).write_bytes(data)

    def _check(self, model_cfg: Mapping[str, Any]) -> None:
        """Raise ValueError with everything in which the tokenizer does not fit the model's config."""
        text_cfg = model_cfg["text_cfg"]
        where = f"tokenizer in {self.folder}" if self.folder else "CLIP's tokenizer"
        problems = [
            f"it has no {token} token"
            for token, value in (("start", self.start_id), ("end", self.end_id), ("pad", self.pad_id))
            if value is None
        ]
        if not problems:
            ids = attempt(f"{where} does not read a text", self.encode, "a")
            if ids[:1] != [self.start_id] or ids[-1:] != [self.end_id]:
                problems.append("it does not put the start and end tokens around a text")
            for key, pad in (("text_cfg.pad_id", text_cfg.get("pad_id", 0)), ("pad_id", model_cfg.get("pad_id", 0))):
                if pad != self.pad_id:
                    problems.append(f"its pad id is {self.pad_id}, but {key} is {pad}")
        vocabulary = text_cfg.get("vocab_size", 49408)
        if self.size > vocabulary:
            problems.append(f"it has {self.size} tokens, but text_cfg.vocab_size is {vocabulary}")
        if problems:
            raise ValueError(f"{where} does not fit the model: " + "; ".join(problems))


class PlainTokenizer:
    """The tokenizer of `coca_tiny` and of captioners trained from it, read without transformers, whose import is slow.

    It has the parts of open_clip's HFTokenizer that captioners use, and gives the same token ids.
    """

    clean_fn: Callable[[str], str]

    def __init__(self, folder: Path, clean: str = "whitespace"):
        config = read_object(folder / "tokenizer_config.json")
        self.tokenizer, self.clean_fn = self, get_clean_fn(clean)
        self._model = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._model.no_truncation()
        self._model.no_padding()
        ids = [self._model.token_to_id(config[name]) for name in SPECIAL]
        self.bos_token_id, self.eos_token_id, self.pad_token_id = ids
        self.all_special_ids = ids

    def __len__(self) -> int:
        return self._model.get_vocab_size()

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=self._model.encode(text).ids)

    def decode(self, ids: list[int], **_: Any) -> str:
        return self._model.decode(ids, skip_special_tokens=False)


def _from_folder(
    folder: Path | None, text_cfg: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[HFTokenizer | PlainTokenizer, dict[str, bytes]]:
    """The tokenizer in a folder, and the bytes of its files by name."""
    if folder is None or not any((folder / name).is_file() for name in FILES):
        raise ValueError(
            f"text_cfg.hf_tokenizer_name is set, but {folder or 'open_clip'} contains no files of a tokenizer"
        )
    failure = f"{folder}: the tokenizer cannot be read"
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    if options.keys() <= {"clean"} and not text_cfg.get("tokenizer_mode") and _is_plain(folder, files):
        return attempt(failure, PlainTokenizer, folder, **options), files
    tokenizer = attempt(
        failure,
        HFTokenizer,
        str(folder),
        tokenizer_mode=text_cfg.get("tokenizer_mode"),
        local_files_only=True,
        trust_remote_code=False,  # a user's file must not run code
        **options,
    )
    return tokenizer, files


def _is_plain(folder: Path, names: Collection[str]) -> bool:
    """Whether a tokenizer with these files can be a PlainTokenizer, because transformers would change nothing."""
    if set(names) != {"tokenizer.json", "tokenizer_config.json"}:
        return False
    try:
        config, written = read_object(folder / "tokenizer_config.json"), read_object(folder / "tokenizer.json")
        special = {token["content"] for token in written["added_tokens"] if token["special"]}
        fits = written["pre_tokenizer"]["add_prefix_space"] is True
        fits = fits and special == {config.get(name) for name in SPECIAL}
    except (ValueError, LookupError, TypeError):  # open_clip's HFTokenizer will say what is wrong
        return False
    settings = {name: value for name, value in config.items() if name not in (*SPECIAL, "model_max_length")}
    return fits and settings == PLAIN
