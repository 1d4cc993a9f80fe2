"""Embeddings in files: nothing is lost, and nothing in them is run."""

import gzip
import io
import os
import pickle

import numpy as np
import pytest
import torch

from imagetext.reinforced.embeddings import pack, to_newer_layout, unpack


def test_embeddings_are_read_back_as_they_were_written():
    embeddings = {"image_emb": torch.randn(3, 5), "text_emb": torch.zeros(0, 5)}
    assert all(torch.equal(rows, embeddings[name]) for name, rows in unpack({"npz": pack(embeddings, "npz")}).items())
    rounded = unpack({"pth.gz": pack(embeddings, "pth.gz")})
    assert all(torch.equal(rows, embeddings[name].bfloat16().float()) for name, rows in rounded.items())
    # and not of the whole tensor of which it is a slice
    assert len(pack({"image_emb": torch.randn(1000, 5)[:1]}, "pth.gz")) < 3000
    assert unpack({}) == {}


def test_nothing_in_a_members_embeddings_can_run_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    array = io.BytesIO()
    np.savez(array, image_emb=np.array([Attack()], dtype=object))
    tensors = io.BytesIO()
    torch.save({"image_emb": Attack()}, tensors)
    bare = pickle.dumps(Attack(), protocol=2)
    for members in (
        {"npz": array.getvalue()},
        {"npz": bare},
        {"pth.gz": gzip.compress(tensors.getvalue())},
        {"pth.gz": gzip.compress(bare)},
        {"pth.gz": b"no gzip"},
        {"npz": b""},
    ):
        with pytest.raises(ValueError, match="that can be read safely"):
            unpack(members)
    assert not (tmp_path / "attacked").exists()


def test_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match="npz: text_emb: not a table"):
        unpack({"npz": pack({"image_emb": torch.ones(2, 3), "text_emb": torch.ones(3)}, "npz")})


def test_originals_of_the_older_layout_come_first_and_columns_in_their_order():
    rows = torch.arange(7.0)[:, None].expand(7, 3)
    texts = {
        "text_emb": ["o1"],
        "captions_emb": ["o1", "o2"],
        "syn_text_b_emb": ["b1", "b2"],
        "syn_text_a_emb": ["a1", "a2", "a3"],
    }
    converted = to_newer_layout({"image_emb": torch.ones(4, 3), "text_emb": rows}, 4, texts)
    assert {name: rows_of_name[:, 0].tolist() for name, rows_of_name in converted.items()} == {
        "image_emb": [1] * 4,
        "text_emb": [0],
        "captions_emb": [0, 1],
        "syn_text_b_emb": [2, 3],
        "syn_text_a_emb": [4, 5, 6],
    }
