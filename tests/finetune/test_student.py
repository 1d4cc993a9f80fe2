"""A student's losses against slow float64 formulas, its gradients for any split of the batch, its folder."""

import os

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from finetune.student.config import StudentConfig
from finetune.student.model import StudentForward, load_student, negative_statistics, reinforced_losses
from finetune.student.teachers import Teachers
from finetune.trainer import Trainer
from imagetext.outputs import UNFINISHED

from .ranks import check_equal, gradients_of_a_student, in_two_processes
from .sets import RESNET, STUDENT, write_student

DIMENSIONS, SCALES = (6, 3), (70.0, 40.0)
TEACHERS = Teachers(("one", "two"), DIMENSIONS, SCALES)


def features(count: int, kinds: int = 2):
    """Draw features of a student and embeddings of two teachers, in float64, with captions near their pictures."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    image, text = F.normalize(draw(count, 5), dim=-1), F.normalize(draw(count, kinds, 5), dim=-1)
    image_emb = [draw(count, size) for size in DIMENSIONS]
    text_emb = [embedding[:, None] + draw(count, kinds, embedding.shape[1]) for embedding in image_emb]
    return (
        image,
        text,
        *(torch.cat([F.normalize(part, dim=-1) for part in embedding], -1) for embedding in (image_emb, text_emb)),
    )


def softmax(values):
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def slow_distillation(image, text, scale, image_emb, text_emb) -> float:
    """Return the cross-entropy of teachers and student, picture by picture and text by text."""
    total, count = 0.0, len(image)
    for ours, theirs, our_others, their_others in (
        (image, image_emb, text, text_emb),
        (text, text_emb, image, image_emb),
    ):
        for row in range(count):
            targets, start = np.zeros(count), 0
            for size, teacher_scale in zip(DIMENSIONS, SCALES):
                part = slice(start, start + size)
                targets += softmax(teacher_scale * (their_others[:, part] @ theirs[row, part])) / len(DIMENSIONS)
                start += size
            total -= (targets * np.log(softmax(scale * (our_others @ ours[row])))).sum() / count / 2
    return total


def slow_contrastive(image, text, scale) -> float:
    total, count = 0.0, len(image)
    for row in range(count):
        total -= np.log(softmax(scale * (text @ image[row]))[row]) / count / 2
        total -= np.log(softmax(scale * (image @ text[row]))[row]) / count / 2
    return total


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0), (3.0,)])
def test_losses_are_the_slow_formulas(weights):
    image, text, image_emb, text_emb = features(9, len(weights))
    losses = reinforced_losses(
        image,
        text,
        torch.tensor(20.0),
        pictures=torch.arange(9),
        teachers=TEACHERS,
        text_weights=weights,
        image_emb=image_emb,
        text_emb=text_emb,
    )
    distill = contrastive = 0.0
    for kind, weight in enumerate(weights):
        ours, theirs = (image.numpy(), text[:, kind].numpy()), (image_emb.numpy(), text_emb[:, kind].numpy())
        distill += weight * slow_distillation(*ours, 20.0, *theirs)
        contrastive += weight * slow_contrastive(*ours, 20.0)
    assert losses["distill"].item() == pytest.approx(distill, abs=1e-10)
    assert losses["contrastive"].item() == pytest.approx(contrastive, abs=1e-10)
    singles = reinforced_losses(
        image.float(),
        text.float(),
        torch.tensor(20.0),
        pictures=torch.arange(9),
        teachers=TEACHERS,
        text_weights=weights,
        image_emb=image_emb.float(),
        text_emb=text_emb.float(),
    )
    assert singles["distill"].item() == pytest.approx(distill, abs=1e-5)


def slow_negclip(image, text, scale, negatives) -> float:
    """Return the loss of Yuksekgonul et al. 2022, section 5: of N pictures by 2 N texts, N of them negatives."""
    total, count = 0.0, len(image)
    for row in range(count):
        total -= np.log(softmax(scale * (np.concatenate([text, negatives]) @ image[row]))[row]) / count / 2
        total -= np.log(softmax(scale * (image @ text[row]))[row]) / count / 2
    return total


def slow_distillation_with_negatives(image, text, scale, negatives, image_emb, text_emb) -> float:
    """Return `slow_distillation` with negatives as further texts, to which the teachers give probability 0."""
    total = slow_distillation(image, text, scale, image_emb, text_emb)
    for row in range(len(image)):
        plain = np.log(softmax(scale * (text @ image[row])))
        more = np.log(softmax(scale * (np.concatenate([text, negatives]) @ image[row])))[: len(text)]
        targets, start = np.zeros(len(image)), 0
        for size, teacher_scale in zip(DIMENSIONS, SCALES):
            part = slice(start, start + size)
            targets += softmax(teacher_scale * (text_emb[:, part] @ image_emb[row, part])) / len(DIMENSIONS)
            start += size
        total += (targets * (plain - more)).sum() / len(image) / 2
    return total


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 2.0)])
def test_negatives_make_of_clips_loss_negclips_and_of_distillation_one_with_teachers_who_refuse_them(weights):
    """Six of nine pictures have a negative; each kind of texts has its own softmax with the same negatives."""
    image, text, image_emb, text_emb = features(9, len(weights) + 1)
    has = torch.tensor([True, True, False] * 3)
    losses = reinforced_losses(
        image,
        text,
        torch.tensor(20.0, dtype=torch.float64),
        pictures=torch.arange(9),
        teachers=TEACHERS,
        text_weights=weights,
        names=("distill", "contrastive", "negative"),
        image_emb=image_emb,
        text_emb=text_emb[:, :-1],
        has_negative=has,
    )
    distill = contrastive = 0.0
    negatives = text[has, -1].numpy()
    for kind, weight in enumerate(weights):
        ours, theirs = (image.numpy(), text[:, kind].numpy()), (image_emb.numpy(), text_emb[:, kind].numpy())
        contrastive += weight * slow_negclip(*ours, 20.0, negatives)
        distill += weight * slow_distillation_with_negatives(*ours, 20.0, negatives, *theirs)
    assert (losses["contrastive"] + losses["negative"]).item() == pytest.approx(contrastive, abs=1e-10)
    assert (losses["distill"] + losses["negative"]).item() == pytest.approx(distill, abs=1e-10)
    assert losses["negative"].item() > 0.01


def test_what_is_told_of_negatives_is_the_slow_count():
    image, text, *_ = features(9, 3)
    has = torch.tensor([True, True, False] * 3)
    statistics = negative_statistics(image, text, has)
    won = [
        float(text[row, kind] @ image[row] > text[row, 2] @ image[row])
        for row in range(9)
        if has[row]
        for kind in (0, 1)
    ]
    assert statistics["with_negative"].item() == pytest.approx(6 / 9) and 0 < sum(won) < len(won)
    assert statistics["choice"].item() == pytest.approx(sum(won) / len(won))
    assert negative_statistics(image, text, ~has & has)["choice"].isnan()


def test_without_a_weight_a_loss_is_not_computed():
    image, text, *_ = features(4)
    losses = reinforced_losses(
        image,
        text,
        torch.tensor(20.0),
        pictures=torch.arange(4),
        teachers=None,
        text_weights=(1.0, 1.0),
        names=("contrastive",),
    )
    assert losses.keys() == {"contrastive"}


def test_a_student_that_says_what_one_teacher_says_has_its_entropy_for_a_loss():
    *_, image_emb, text_emb = features(8, 1)
    teacher = Teachers(("one",), DIMENSIONS[:1], (30.0,))
    image, text = image_emb[:, :6], text_emb[..., :6]
    losses = {
        scale: reinforced_losses(
            image,
            text,
            torch.tensor(scale),
            pictures=torch.arange(8),
            teachers=teacher,
            text_weights=(1.0,),
            names=("distill",),
            image_emb=image,
            text_emb=text,
        )
        for scale in (30.0, 20.0)
    }
    logits = 30 * image @ text[:, 0].T
    entropies = [
        torch.distributions.Categorical(logits=teacher_logits).entropy().mean().item()
        for teacher_logits in (logits, logits.T)
    ]
    assert losses[30.0]["distill"].item() == pytest.approx(sum(entropies) / 2)
    assert losses[20.0]["distill"] > losses[30.0]["distill"] + 1e-3


# However the batch is parted


WAYS = {
    "distillation": {},
    "all": {"contrastive_weight": 0.5, "text_weight": 0.5, "synthetic_weight": 2.0},
    "synthetic alone": {"text_weight": 0.0},
    "CLIP alone": {"distill_weight": 0.0, "contrastive_weight": 1.0},
    "NegCLIP": {"distill_weight": 0.0, "contrastive_weight": 1.0, "negatives": "^neg_text"},
    "all and negatives of one text": {
        "contrastive_weight": 0.5,
        "negatives": "^neg_text",
        "negative_weight": 3.0,
        "single_text": 0.5,
    },
}


@pytest.mark.parametrize("which", WAYS)
def test_a_step_is_the_whole_batchs(which):
    """Gradients of the whole batch in one graph, without the trainer, are those of the trainer's parts."""
    expected = gradients_of_a_student(**WAYS[which], whole=True)
    assert sum(gradient.abs().sum() for gradient in expected["gradients"].values()) > 1
    for size in (8, 4, 1):
        check_equal(gradients_of_a_student(**WAYS[which], device_batch_size=size), expected)


IN_TWO = [
    ("distillation", None),
    ("all", 2),
    ("CLIP alone", 1),
    ("NegCLIP", 2),
    ("all and negatives of one text", None),
]


@pytest.fixture(scope="module")
def found_in_two(tmp_path_factory):
    """Return the results of two processes for each item of IN_TWO."""
    file = tmp_path_factory.mktemp("ranks") / "found.pt"
    in_two_processes(file, students=[WAYS[which] | {"device_batch_size": size} for which, size in IN_TWO])
    return dict(zip(IN_TWO, torch.load(file, weights_only=True), strict=True))


@pytest.mark.parametrize("case", IN_TWO, ids=str)
def test_two_processes_are_exact(case, found_in_two):
    check_equal(found_in_two[case], gradients_of_a_student(**WAYS[case[0]], whole=True))


def test_parts_drop_the_same_in_both_passes():
    """With random patch dropout, gradients are those of one graph over the parts in their order."""
    dropping = STUDENT | {"vision_cfg": STUDENT["vision_cfg"] | {"patch_dropout": 0.5}}
    expected = gradients_of_a_student(model_cfg=dropping, device_batch_size=2, whole=True)
    check_equal(gradients_of_a_student(model_cfg=dropping, device_batch_size=2), expected)


def test_parts_count_once_in_batch_statistics():
    """The first of a part's two forward passes leaves no trace in them."""
    model_cfg = RESNET | {"vision_cfg": RESNET["vision_cfg"] | {"image_size": 64}}
    expected = gradients_of_a_student(model_cfg=model_cfg, device_batch_size=4, whole=True)
    found = gradients_of_a_student(model_cfg=model_cfg, device_batch_size=4)
    assert found["buffers"]["visual.bn1.num_batches_tracked"] == 2
    for name, buffer in expected["buffers"].items():
        torch.testing.assert_close(found["buffers"][name], buffer, msg=name)


# Its folder


def settings(**changes) -> StudentConfig:
    return StudentConfig(
        **{"input": ["x"], "student": "x", "output": "unused", "device": "cpu", "batch_size": 8} | changes
    )


@pytest.mark.parametrize("model_cfg", [STUDENT, RESNET], ids=["transformer", "convolutions"])
def test_what_is_saved_loads_in_open_clip(model_cfg, tmp_path):
    torch.manual_seed(3)
    student = load_student(write_student(tmp_path / "a", model_cfg))
    (tmp_path / "b").mkdir()
    student.save(tmp_path / "b")
    model, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{tmp_path / 'b'}", require_pretrained=True
    )
    state = student.model.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    again = load_student(str(tmp_path / "b"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.state_dict().items())
    assert (again.side, list(again.mean)) == (32, list(student.mean))


def test_random_weights_are_the_seeds(tmp_path):
    folder = write_student(tmp_path / "a")
    weights_drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights_drawn.append(load_student(folder).model.visual.conv1.weight)
    assert torch.equal(weights_drawn[0], weights_drawn[1]) and not torch.equal(weights_drawn[0], weights_drawn[2])


def test_its_weights_are_on_the_disk_before_its_config_has_its_name(tmp_path, monkeypatch):
    done, named = [], os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: done.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
    )
    monkeypatch.setattr(
        os, "replace", lambda source, target: (done.append(f"-> {os.path.basename(target)}"), named(source, target))
    )
    load_student(write_student(tmp_path / "a")).save(tmp_path / "b")
    weights, config = "open_clip_model.safetensors", "open_clip_config.json"
    steps = [step for step in done if not step.startswith("-> ") or not step.endswith(UNFINISHED)]
    assert steps == [f"{weights}{UNFINISHED}", f"-> {weights}", "b", f"{config}{UNFINISHED}", f"-> {config}", "b"]


def test_a_captioner_is_a_student_too_with_its_own_tokenizer(tmp_path):
    from captioners.resolve import SHIPPED

    student = load_student(str(SHIPPED / "coca_tiny"))
    student.save(tmp_path)
    saved = (tmp_path / "tokenizer_config.json").read_text()
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in saved  # a class that transformers 4 has, too
    again = load_student(str(tmp_path))
    assert torch.equal(again.tokenizer(["a red circle"]), student.tokenizer(["a red circle"]))
    forward = StudentForward(again, settings(), TEACHERS)
    output = forward(torch.zeros(2, 3, 56, 56), again.tokenizer(["a red circle", "a blue square"] * 3).view(2, 3, -1))
    assert output["image_features"].shape == (2, 128) and output["text_features"].shape == (2, 3, 128)


@pytest.mark.parametrize(
    "name, more, why",
    [
        ("nowhere", {}, "--student nowhere: is neither an architecture of open_clip nor a folder"),
        ("ViT-B-32", {"pretrained": "nobody"}, "--student ViT-B-32: open_clip cannot load it: .*nobody"),
        ("{folder}", {"pretrained": "openai"}, "--pretrained openai: is only for an architecture"),
        ("{empty}", {}, "no open_clip_config.json of a CLIP model"),
        ("{code}", {}, "its tokenizer_kwargs ask for code to be run"),
        ("{oblong}", {}, r"takes pictures of \(32, 48\) pixels, but views are square"),
    ],
)
def test_what_is_no_student_is_refused(name, more, why, tmp_path):
    code = STUDENT | {"text_cfg": STUDENT["text_cfg"] | {"tokenizer_kwargs": {"trust_remote_code": True}}}
    oblong = STUDENT | {"vision_cfg": STUDENT["vision_cfg"] | {"image_size": [32, 48]}}
    (tmp_path / "empty").mkdir()
    places = {
        "folder": write_student(tmp_path / "folder"),
        "empty": tmp_path / "empty",
        "code": write_student(tmp_path / "code", code),
        "oblong": write_student(tmp_path / "oblong", oblong),
    }
    with pytest.raises(ValueError, match=why):
        load_student(name.format(**places), **more)


def test_it_trains_in_training_mode_and_its_logit_scale_stays_within_bounds(tmp_path):
    student = load_student(write_student(tmp_path))
    student.model.eval()
    trainer = Trainer(settings(output=tmp_path), StudentForward(student, settings(), TEACHERS), range(8))
    with torch.no_grad():
        student.model.logit_scale.fill_(9.0)
    trainer.learner.clamp()
    assert student.model.training and student.model.logit_scale.exp().item() == pytest.approx(100)
