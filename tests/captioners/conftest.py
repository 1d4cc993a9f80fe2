"""Tiny random captioners: every parameter scrambled, so that a missing bias, scale or mask shows."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from captioners.base import Request
from captioners.load import load_captioner
from captioners.server import load

from .fake_server import FakeServer

WORDS = ["a red circle left of a blue square", "two green stars on a dotted background", "the large triangle!"] * 3

TINY = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 48,
        "head_width": 16,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_queries": 8,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 300,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "embed_cls": True,
        "output_tokens": True,
        "hf_tokenizer_name": "tiny",
    },
    "multimodal_cfg": {"context_length": 16, "vocab_size": 300, "width": 32, "heads": 4, "layers": 2},
    "custom_text": True,
}
CONFIGS = {
    "plain": {},
    "layer scale": {
        "text_cfg__ls_init_value": 0.5,
        "multimodal_cfg__ls_init_value": 0.5,
        "vision_cfg__ls_init_value": 0.5,
    },
    "quick gelu": {"quick_gelu": True},
    "no attentional pool": {"vision_cfg__attentional_pool": None, "vision_cfg__width": 32},
    "a longer decoder context": {"multimodal_cfg__context_length": 20},
    "projection with bias": {"text_cfg__proj_bias": True},
}


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 290 tokens: <pad> 0, <start> 1, <end> 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<start>", "<end>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=290, special_tokens=specials, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        "<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<start>",
        "eos_token": "<end>",
        "pad_token": "<pad>",
        "model_max_length": 16,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def edited(config: dict, **changes) -> dict:
    """A copy of a config with `section__key` or `key` set; None removes."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        *section, key = name.split("__")
        target = config[section[0]] if section else config
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value
    return config


def scramble_parameters(model: torch.nn.Module, size: float = 0.3, seed: int = 0) -> None:
    """Random values in every parameter, of a size that gives logits of real spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator) / max(1, parameter.ndim - 1)


def write_hub_cache(cache: Path, repository: str, folder: Path) -> None:
    """Copies a folder to where huggingface_hub caches the main branch of a repository."""
    commit, home = "0" * 40, cache / f"models--{repository.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (home / part).mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, home / "blobs" / str(number))
        (home / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{number}")


@pytest.fixture(scope="session")
def make_captioner(tmp_path_factory):
    """make_captioner(section__key=value, ...): a scrambled captioner of the tiny config with these changes."""

    def make(seed: int = 0, **changes):
        folder = tmp_path_factory.mktemp("tiny")
        config = edited(TINY, **changes)
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        write_tokenizer(folder)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            captioner = load_captioner(str(folder), from_scratch=True)
        scramble_parameters(captioner.model, seed=seed)
        return captioner

    return make


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def model(request, make_captioner):
    """A tiny CoCa in each form that open_clip supports."""
    return make_captioner(**CONFIGS[request.param]).model


@pytest.fixture(scope="session")
def captioner(make_captioner):
    return make_captioner()


@pytest.fixture
def pictures():
    """Four random pictures with their keys, as requests."""
    generator = torch.Generator().manual_seed(7)
    return [Request(f"picture/{i}", torch.randn(3, 32, 32, generator=generator)) for i in range(4)]


@pytest.fixture
def tiny_config():
    return copy.deepcopy(TINY)


@pytest.fixture
def edit():
    return edited


@pytest.fixture
def tokenizer_files():
    return write_tokenizer


@pytest.fixture
def fill_hub_cache():
    return write_hub_cache


@pytest.fixture
def scramble():
    return scramble_parameters


@pytest.fixture
def serve():
    """serve(takes_n=…): starts a fake server."""
    servers = []

    def start(**options):
        servers.append(FakeServer(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def at_once(monkeypatch):
    """Removes the waits between tries."""
    monkeypatch.setattr(load, "FIRST_WAIT", 0)
