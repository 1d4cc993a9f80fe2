"""Cached logits, compared with those of open_clip's own forward."""

import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.factory import get_model_config

from captioners.coca.decode import Decoding
from captioners.coca.forward import initialise_decoder

from .coca_inputs import PAD, images_of, tokens_of


def test_cached_logits_equal_open_clips_forward(model):
    images, tokens = images_of(3), tokens_of(6, 16)
    with torch.no_grad():
        expected = model(images.repeat_interleave(2, 0), tokens, output_labels=False)["logits"]
        decoding = Decoding(model, model._encode_image(images)[1], limit=16)
        decoding.keep(torch.arange(3).repeat_interleave(2))
        cuts = [0, 4, 5, 6, 9, *range(10, 17)]
        logits = [decoding.extend(tokens[:, a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert expected.std() > 0.5
    assert (torch.cat(logits, dim=1) - expected).abs().max() <= 1e-4


def test_rows_may_leave_and_be_repeated(model):
    images, tokens = images_of(3), tokens_of(6, 12)
    with torch.no_grad():
        decoding = Decoding(model, model._encode_image(images)[1], limit=16)
        decoding.extend(tokens[:1, :4].expand(3, -1))
        decoding.keep(torch.tensor([0, 0, 1, 2, 2, 2]))  # 2, 1 and 3 captions
        tokens[:, :4] = tokens[0, :4]
        decoding.extend(tokens[:, 4:8])
        remaining = torch.tensor([1, 4, 3, 5])  # the middle picture leaves, two rows change places
        decoding.keep(remaining)
        logits = decoding.extend(tokens[remaining, 8:])
        expected = model(images[[0, 2, 2, 2]], tokens[remaining], output_labels=False)["logits"][:, 8:]
    assert len(decoding.cross[0][0]) == 2
    assert (logits - expected).abs().max() <= 1e-4


def test_rows_of_unequal_length_go_on_together(model):
    """Pictures join twice, rows leave in between, a finished row is fed past its end.

    None of this may change the other rows.
    """
    images, tokens = images_of(4), tokens_of(5, 16)
    row_pictures = torch.tensor([0, 0, 1, 2, 3])
    with torch.no_grad():
        expected = model(images[row_pictures], tokens, output_labels=False)["logits"]
        rows, fed = None, torch.zeros(5, dtype=torch.long)
        for start, pictures in ((0, [0, 1]), (3, [2]), (4, [3])):  # row numbers before, pictures that join
            joining = Decoding(model, model._encode_image(images[pictures])[1], limit=16)
            if start == 0:
                joining.keep(torch.tensor([0, 0, 1]))
                rows, live = joining, torch.tensor([0, 1, 2])
            else:
                joining.extend(tokens[start : start + 1, :2])
                fed[start] = 2
                rows.join(joining)
                live = torch.cat([live, torch.tensor([start])])
            for _ in range(5):
                logits = rows.extend(torch.stack([tokens[row, fed[row]] for row in live])[:, None])
                for row, line in zip(live, logits, strict=True):
                    if fed[row] < 16:
                        assert (line[0] - expected[row, fed[row]]).abs().max() <= 1e-4, (row, fed[row])
                fed[live] += 1
            if start == 3:
                rows.keep(torch.tensor([0, 2, 3]))
                live = live[[0, 2, 3]]
    assert fed.tolist() == [15, 10, 15, 12, 7]


def test_slots_are_begun_anew_in_place(model):
    """Another picture replaces the middle one: its rows restart, the others continue, and no memory moves."""
    images, tokens = images_of(4), tokens_of(6, 14)
    with torch.no_grad():
        decoding = Decoding(model, model._encode_image(images[:3])[1], limit=16)
        decoding.keep(torch.arange(3).repeat_interleave(2))
        for i in range(5):
            decoding.step(tokens[:, i : i + 1], 16)
        places = [tensor.data_ptr() for keys_values in decoding.cross for tensor in keys_values]
        decoding.restart(torch.tensor([1]), model._encode_image(images[3:])[1])
        fed = torch.tensor([5, 5, 0, 0, 5, 5])
        actual = torch.stack(
            [decoding.step(tokens[torch.arange(6), fed + i][:, None], 16)[:, 0] for i in range(9)], dim=1
        )
        expected = model(images[[0, 0, 3, 3, 2, 2]], tokens, output_labels=False)["logits"]
    assert [tensor.data_ptr() for keys_values in decoding.cross for tensor in keys_values] == places
    for row, first in enumerate(fed.tolist()):
        assert (actual[row] - expected[row, first : first + 9]).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "architecture, context", [("coca_ViT-B-32", 76), ("coca_ViT-B-32", 255), ("coca_ViT-L-14", 76)]
)
def test_cached_logits_of_real_sizes_equal_open_clips_forward(architecture, context, scramble):
    """Two pictures with two captions each, fed in pieces; all parameters are scrambled.

    Two layers of the image tower suffice here.
    """
    config = get_model_config(architecture)
    config["vision_cfg"]["layers"] = 2
    config["text_cfg"]["context_length"] = config["multimodal_cfg"]["context_length"] = context
    config.pop("custom_text")
    torch.manual_seed(0)
    model = CoCa(**config).eval()
    initialise_decoder(model)
    scramble(model, 0.01)
    images = torch.randn(2, 3, 224, 224)
    tokens = torch.randint(0, 49408, (4, context))
    tokens[:, 3] = PAD
    with torch.no_grad():
        image_features, image_tokens = model._encode_image(images)
        repeated = {
            "image_latent": image_features.repeat_interleave(2, 0),
            "image_embs": image_tokens.repeat_interleave(2, 0),
        }
        expected = model(None, tokens, output_labels=False, **repeated)["logits"]
        decoding = Decoding(model, image_tokens, limit=context)
        decoding.keep(torch.arange(2).repeat_interleave(2))
        cuts = [0, 1, 2, 20, 21, context - 1, context]
        logits = torch.cat([decoding.extend(tokens[:, a:b]) for a, b in zip(cuts, cuts[1:])], dim=1)
    assert expected.std() > 0.5
    assert (logits - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(make_captioner, dtype):
    """An error in mask or positions changes logits by more than 1; half precision does by a few hundredths."""
    model = make_captioner().model
    images, tokens = images_of(2), tokens_of(2, 12)
    with torch.no_grad():
        expected = model(images, tokens, output_labels=False)["logits"]
        model.to(dtype)
        decoding = Decoding(model, model._encode_image(images.to(dtype))[1], limit=16)
        logits = torch.cat([decoding.extend(tokens[:, i : i + 1]) for i in range(12)], dim=1)
    assert logits.dtype == dtype
    assert (logits.float() - expected).abs().mean() < 0.05 * expected.std()
