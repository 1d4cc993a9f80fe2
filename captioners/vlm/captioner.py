"""Vision-language models of transformers as captioners: caption, fine-tune with or without adapters, save.

Dimensions: H, W picture's sides, B pictures in a batch, K captions of each, L tokens of the longest, P tokens of the prompt,
T caption tokens to predict, V vocabulary, D width of the vision tower.
"""

import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from captioners.base import Captioned, Request, SamplingConfig, picture_of
from captioners.decoding.continuing import Continuing
from captioners.decoding.rows import Rules
from captioners.decoding.search import answered, evaluating, search, spoken
from captioners.decoding.special_tokens import SpecialTokens, Tokenizer
from captioners.names import check_name
from captioners.safe_reading import attempt
from captioners.vlm.decode import begin_rows
from captioners.vlm.families import FAMILIES, OwnAspect
from captioners.vlm.family import Llava, Prompt
from captioners.weights import folder_sha256
from imagetext.outputs import whole_files

CONTEXT = 256  # tokens of a caption, where the model has room for as many
ADAPTER, OURS = "adapter_config.json", "capsmith.json"


class VLMCaptioner:
    """A transformers image-text-to-text model with its processor, in eval mode; LoRA adapters, where it has any, are within it.

    The prompt (the family's chat template round an instruction, or that itself where the family does not chat) and the picture
    stand for the start token: captions, and the counts of their tokens, begin after it, and the processors of logits see
    nothing of it. What the model's generation config says of sampling is not looked at, but for the tokens that end.
    `instruction`, with which it was trained, and its `prompt` are those of requests that have no other. `context_length` counts
    a caption's tokens with start and end. `start_id` is a special token that no caption holds, and pads too. `batch_size`:
    pictures captioned at a time. `weights_sha256` is of the weights in float32, adapters included.
    `merges`: it is saved whole, with its adapters merged.
    """

    looks_at_pictures = needs_picture = takes_instruction = True
    needs_instruction = False
    family: Llava
    processor: Any  # a ProcessorMixin, whose parts transformers' types do not know
    tokenizer: Tokenizer

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        name: str,
        weights_sha256: str,
        source: str,
        instruction: str | None = None,
        adapter: PeftModel | None = None,
    ):
        self.model, self.processor, self.adapter, self.merges = model, processor, adapter, False
        self.batch_size, self.name, self.weights_sha256 = 16, name, weights_sha256
        self.family = attempt(
            f"{source}: its processor does not fit its model", FAMILIES[model.config.model_type], model, processor
        )
        self.tokenizer = processor.tokenizer
        self.instruction = self.family.instruction if instruction is None else instruction
        self.preprocess: Callable[[Image.Image], Tensor] = self.family.preprocess()
        wide, high = (
            attempt(
                f"{source}: its processor makes nothing of a picture", self.preprocess, Image.new("RGB", size)
            ).shape[1:]
            for size in ((64, 32), (32, 64))
        )
        self._prompts = functools.lru_cache(self.family.prompt)
        self.prompt = attempt(
            f"{source}: its processor makes no prompt of {self.instruction!r}",
            lambda: self.family.fit(self._prompts(self.instruction), self.preprocess(self.family.blank())),
        )
        self.end_ids = self.family.end_ids()
        self.special = SpecialTokens(self.tokenizer, self.end_ids)
        self.special_ids = self.special.ids
        text_config = model.config.get_text_config()
        # decoding keeps all tokens in sight, so it ends where a model would let the first ones out of its window
        window = getattr(text_config, "sliding_window", None) or text_config.max_position_embeddings
        self.positions = min(window, text_config.max_position_embeddings)
        room = self.positions - len(self.prompt.ids)
        spare = [id for id in self.special.not_ends if id != self.family.image_token_id()]
        problems = [] if self.end_ids else ["no eos_token_id in its generation config"]
        problems += [] if spare else ["its tokenizer has no special token but those for pictures and ends"]
        if wide != high and not isinstance(self.family, OwnAspect):
            problems.append(
                f"its processor keeps the shapes of pictures, and makes {tuple(wide)} and {tuple(high)} of two"
            )
        if room < 2:
            problems.append(
                f"the prompt leaves {room} of the {self.positions} positions (max_position_embeddings, sliding_window)"
            )
        if problems:
            raise ValueError(f"{source}: " + "; ".join(problems))
        self.end_id, self.start_id, self.pad_id = self.end_ids[0], spare[0], spare[0]
        self.context_length, self.vocabulary = min(room + 1, CONTEXT), text_config.vocab_size
        self.description = self._describe(source)

    def check(self, sampling: SamplingConfig, *, similarity: bool = False) -> None:
        """Raises ValueError where the sampling does not fit the captioner; similarity never does."""
        if similarity:
            raise ValueError(f"similarity: {self.name} has no embedding that its captions and pictures share")
        self._rules(sampling)

    def caption(
        self,
        requests: Iterable[Request],
        sampling: SamplingConfig,
        *,
        column: str = "",
        first_index: int = 0,
        similarity: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[Captioned]:
        """Captions the pictures (3, H, W) of requests, `batch_size` of them in flight; results in input order.

        batch_size: the captioner's own unless given.
        Caption i of a picture is number first_index + i of its key's draws in the column. Its text starts with sampling.prefix.
        Embeddings (D,) are the mean of the vision tower's states. A greedy caption is what transformers' greedy search gives.
        Raises ValueError as `check` does, before any picture is looked at.
        """
        self.check(sampling, similarity=similarity)
        rules = self._rules(sampling)

        def answer(requests: Iterable[Request]) -> Iterator[Captioned]:
            decoded = search(
                self._begin(sampling),
                requests,
                rules,
                batch_size=batch_size or self.batch_size,
                column=column,
                first_index=first_index,
            )
            return spoken(decoded, self.model, self.decode, stops=sampling.stops)

        return answered(requests, lambda request: self._problem(request, rules.max_length - 2), answer)

    def _problem(self, request: Request, limit: int) -> str:
        """Why a request cannot be answered in so many tokens; "" where it can."""
        if request.instruction is None:
            return ""
        try:
            prompt = attempt("no prompt can be made of the instruction", self._prompt, request)
        except ValueError as error:
            return str(error)
        if max(len(prompt.ids) + limit, len(prompt.asked)) <= self.positions:
            return ""
        taken = len(prompt.asked or prompt.ids)
        return f"picture and instruction take {taken} of {self.positions} positions: no room for a caption of {limit} tokens"

    def _prompt(self, request: Request) -> Prompt:
        """The prompt of a request; special tokens that its instruction names, as only the data's can, are left out."""
        given = request.instruction
        instruction = self.instruction if given is None else self.special.blanked(given)
        return self.family.fit(self._prompts(instruction), picture_of(request))

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        """About how much memory a picture in flight and its captions take at most, in bytes."""
        captions = sampling.num_beams if sampling.strategy == "beam" else sampling.num_captions
        with evaluating(self.model), torch.no_grad():
            _, rows = self._begin(sampling)([Request("", self.preprocess(self.family.blank()))])
        # twice: rows that leave or join are copied; the choice of a token holds about eight numbers for each of the vocabulary
        return 2 * rows.bytes_per_picture(captions) + 8 * 4 * captions * self.vocabulary

    def _begin(self, sampling: SamplingConfig) -> Callable[[Sequence[Request]], tuple[Tensor, Continuing]]:
        """How the rows of pictures (3, H, W) begin."""

        def begin(requests: Sequence[Request]) -> tuple[Tensor, Continuing]:
            return begin_rows(
                self.family,
                [picture_of(request).to(self.model.device) for request in requests],
                [self._prompt(request) for request in requests],
                ends=self.end_ids,
                greedy=sampling.strategy == "greedy",
                limit=self._rules(sampling).max_length - 2,
            )

        return begin

    def _rules(self, sampling: SamplingConfig) -> Rules:
        """The rules of this sampling; ValueError where it does not fit."""
        never = sorted({*self.special_ids, *range(len(self.tokenizer), self.vocabulary)} - {self.end_id})
        return Rules.of(self, sampling, never, self.model.device)

    def encode_text_ids(self, text: str) -> list[int]:
        """Token ids of a caption, from start to end token, never cut; special tokens that the text names are left out."""
        ids = self.tokenizer(self.prompt.lead + text, add_special_tokens=False)["input_ids"]
        return [self.start_id, *(id for id in ids if id not in self.special_ids), self.end_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a caption's token ids up to the first end token, without special tokens and outer blanks."""
        ids = itertools.takewhile(lambda id: id not in self.end_ids, ids)
        return self.tokenizer.decode([id for id in ids if id not in self.special_ids]).strip()

    # Training

    def caption_logits(self, pictures: Sequence[Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (T, V) and labels (T,) of the tokens of captions, the end included: not of the prompt, nor of padding.

        pictures (B), each of which is encoded once; tokens (B, K, L) or (B, L), from start token on, padded with `pad_id` at the
        end.
        """
        captions = tokens.shape[1] if tokens.ndim == 3 else 1
        prompts = [prompt for picture in pictures for prompt in [self.family.fit(self.prompt, picture)] * captions]
        fed = [
            row[1:][row[1:] != self.pad_id] for row in tokens.flatten(0, -2)
        ]  # the prompt stands for the start token
        rows = [torch.cat([row.new_tensor(prompt.ids), row]) for prompt, row in zip(prompts, fed, strict=True)]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_id)  # (B * K, longest)
        places = torch.arange(ids.shape[1], device=ids.device)
        begins = torch.tensor([len(prompt.ids) for prompt in prompts], device=ids.device)[:, None]
        ends = torch.tensor([len(row) for row in rows], device=ids.device)[:, None]
        inputs = self.family.inputs(pictures, prompts, ids, (places < ends).long())
        first = min(len(prompt.ids) for prompt in prompts) - 1
        with self.family.encoding_once(pictures, captions):
            logits = self.family.forward(inputs, logits_to_keep=ids.shape[1] - first, use_cache=False)[:, :-1]
        real = ((places >= begins) & (places < ends))[:, first + 1 :]  # (B * K, longest - first - 1)
        return logits[real], ids[:, first + 1 :][real]

    def add_lora(
        self,
        *,
        r: int = 16,
        alpha: float = 32,
        dropout: float = 0.05,
        target_modules: Sequence[str] | str | None = None,
    ) -> None:
        """Puts LoRA adapters (Hu et al. 2021, arXiv 2106.09685) into the model, of which they alone are trained from now on.

        target_modules as peft has it; None: all linear layers of the language model but the last, as QLoRA does.
        Raises ValueError where the model has adapters, or no module is a target.
        """
        if self.adapter is not None:
            raise ValueError(f"{self.name}: has adapters already")
        options: dict[str, Any] = {"lora_alpha": alpha, "target_modules": target_modules or self.language_layers()}
        self.adapter = get_peft_model(self.model, LoraConfig(r=r, lora_dropout=dropout, **options))

    def _merged(self) -> dict[str, Tensor]:
        """The weights with those of the adapters added, in their own dtype, by the names that they have without adapters.

        The model itself stays as it is: adding and subtracting would round what is frozen, more each time.
        """
        merged = {
            name.replace(".base_layer.", "."): weight
            for name, weight in self.model.state_dict().items()
            if ".lora_" not in name
        }
        adapted: list[tuple[str, Any]] = [
            (name, layer) for name, layer in self.model.named_modules() if isinstance(layer, LoraLayer)
        ]
        for name, layer in adapted:
            weight = layer.get_base_layer().weight
            delta: Any = sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
            merged[f"{name}.weight"] = (weight.float() + delta.float()).to(weight.dtype)
        return merged

    def language_layers(self, names: Sequence[str] = ()) -> str:
        """A pattern of the names of the language model's layers that are called so, or of all linear ones but the last."""
        if not names:
            decoder: Any = self.model.get_submodule(self.family.decoder)
            last = decoder.get_output_embeddings()
            language = self.model.get_submodule(self.family.language)
            linear = {
                name for name, layer in language.named_modules() if isinstance(layer, nn.Linear) and layer is not last
            }
            names = sorted({name.rpartition(".")[2] for name in linear})  # short enough for a config
        return rf"{re.escape(self.family.language)}\..*\.({'|'.join(map(re.escape, names))})"

    def save(self, folder: str | os.PathLike, name: str) -> None:
        """Writes the model as transformers does, or only its adapters as peft does, with the processor, name and instruction.

        Where it merges, adapters are written as part of the model, which then is as large as without them.
        `name` ([a-z0-9_]+) names the captioner's column in records. Each file is written under a temporary name and renamed,
        the config last. Raises ValueError for a bad name.
        """
        check_name(name)
        with whole_files(folder, last=("config.json", ADAPTER)) as staging:
            if self.adapter is None or self.merges:
                self.model.save_pretrained(staging, state_dict=self._merged() if self.merges else None)
            else:
                self.adapter.save_pretrained(str(staging), save_embedding_layers=False)  # "auto" asks the hub
                (staging / "README.md").unlink()  # a form that nobody has filled in
            self.processor.save_pretrained(staging)
            ours = {"name": name, "instruction": self.instruction}
            if self.adapter is not None and not self.merges and os.path.isdir(base := self.model.name_or_path or ""):
                ours["base_sha256"] = folder_sha256(Path(base))  # by which it is known again on this machine
            (staging / OURS).write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")

    def _describe(self, source: str) -> str:
        four_bit = ", in 4 bits" if self.model.config.to_dict().get("quantization_config") else ""
        shape = " x ".join(map(str, self.preprocess(self.family.blank()).shape[-2:]))
        pictures = "at their own aspect" if isinstance(self.family, OwnAspect) else f"{shape} px"
        return "\n".join(
            (
                f"architecture: {self.name}, {type(self.model).__name__} of {self.model.num_parameters() / 1e6:.1f} M parameters",
                f"context: {self.context_length} tokens after {len(self.prompt.ids)} of picture and prompt, {self.instruction!r}",
                f"pictures: {pictures}",
                f"weights: {source}{four_bit}{', LoRA adapters' if self.adapter is not None else ''}",
            )
        )
