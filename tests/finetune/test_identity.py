"""No picture is both trained on and held out: by the same bytes, or by the same key and appearance."""

import io

import pytest
from PIL import Image
from pydantic import ValidationError

from captioners.load import load_captioner
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.held_out import eval_pictures, held_out_pictures
from finetune.captioner.pictures import CaptionedPictures
from finetune.identity import HeldOutRecords, find_duplicates, look_alike
from finetune.student.config import StudentConfig
from imagetext.sample import Record, Shard
from imagetext.scenes.draw import SceneSpec, scene_sample


def scene(index: int, key: str = "") -> Record:
    sample = scene_sample(SceneSpec("train", size=64), index)
    return Record(key or sample.key, sample.image, ("a circle",))


def again(record: Record, key: str = "", size: int = 50, quality: int = 40) -> Record:
    """Return the picture in another size and encoding."""
    file = io.BytesIO()
    Image.open(io.BytesIO(record.image)).convert("RGB").resize((size, size)).save(file, "JPEG", quality=quality)
    return Record(key or record.key, file.getvalue(), record.captions)


@pytest.fixture(scope="module")
def captioner():
    return load_captioner("coca_tiny", from_scratch=True)


def test_the_same_bytes_and_the_same_key_and_look_are_the_same_picture():
    held_out = HeldOutRecords([scene(0), scene(1), scene(2, "000001"), scene(3)])
    pictures = HeldOutRecords(
        [scene(0, "other"), again(scene(1)), scene(4, "000001"), again(scene(3), "other"), scene(5), scene(3)]
    )
    assert find_duplicates(pictures, held_out, range(4)) == {
        0,
        1,
        5,
    }  # a key is no proof without the look, and other bytes are no proof of another picture
    assert find_duplicates(pictures, held_out, [3]) == {5}


def test_pictures_of_two_held_out_sets_may_have_the_same_key():
    held_out = HeldOutRecords([scene(0, "000000"), scene(1, "000000"), scene(2, "000000")])
    pictures = HeldOutRecords([again(scene(index, "000000")) for index in (0, 1, 2, 3)])
    assert find_duplicates(pictures, held_out, range(3)) == {0, 1, 2}
    assert find_duplicates(pictures, held_out, [1]) == {1}


def test_a_picture_encoded_again_looks_alike_and_another_does_not():
    assert look_alike(scene(0).image, again(scene(0)).image) and not look_alike(scene(0).image, scene(1).image)


def test_what_is_held_out_of_the_input_stays_nowhere_in_it(captioner):
    """The set has each picture twice, under two keys."""
    records = [scene(index, f"{name}{index}") for index in range(20) for name in "ab"]
    pictures = CaptionedPictures([records], captioner, quiet=True)
    config, messages = FinetuneConfig(input=["x"], model="coca_tiny", output="run", hold_out=2), []
    held_out = held_out_pictures(config, captioner, pictures, evaluation=None, tell=messages.append)
    assert len(held_out) == 2 and len(pictures) == 36
    assert not {identity.hash for identity in pictures.identities} & {
        identity.hash for identity in held_out.identities
    }
    assert messages == ["2 pictures are held out; 2 duplicates of them are not trained on, either"]


def test_too_few_pictures_to_hold_any_out_are_told_unless_none_was_asked_for(captioner):
    messages = []
    for hold_out in (0, 500):
        config = FinetuneConfig(input=["x"], model="coca_tiny", output="run", hold_out=hold_out)
        pictures = CaptionedPictures([[scene(index) for index in range(19)]], captioner, quiet=True)
        assert held_out_pictures(config, captioner, pictures, evaluation=None, tell=messages.append) is None
        assert len(pictures) == 19
    assert messages == [
        "no validation: --input has only 19 pictures, and at most a twentieth of them is held out; name pictures to "
        "validate on with --eval-input"
    ]


def test_what_is_held_out_by_the_user_is_not_trained_on(captioner):
    pictures = CaptionedPictures([[scene(index) for index in range(9)]], captioner, quiet=True)
    config, messages = FinetuneConfig(input=["x"], eval_input=["y"], model="coca_tiny", output="run"), []
    evaluation = eval_pictures(
        [Shard("y", "y.tar", {}, [again(scene(index)) for index in range(7, 12)])], captioner, config
    )
    assert (
        held_out_pictures(config, captioner, pictures, evaluation=evaluation, tell=messages.append) is evaluation
        and len(evaluation) == 5
    )
    assert [sample.key for sample in pictures.samples] == [scene(index).key for index in range(7)]
    assert messages == ["2 pictures of --input are also in --eval-input and are not trained on"]
    assert list(evaluation.input_hashes) == ["y.tar"]
    with pytest.raises(ValueError, match="--eval-input: no usable captioned picture:\n  mute: no caption"):
        eval_pictures([Shard("z", "z.tar", {}, [Record("mute", scene(0).image)])], captioner, config)
    pictures.leave_out(range(6))
    everything = eval_pictures([Shard("z", "z.tar", {}, [scene(6)])], captioner, config)
    with pytest.raises(ValueError, match="every picture of --input is held out, none is left"):
        held_out_pictures(config, captioner, pictures, evaluation=everything, tell=messages.append)


@pytest.mark.parametrize(
    "config",
    [
        lambda **inputs: FinetuneConfig(model="coca_tiny", output="run", **inputs),
        lambda **inputs: StudentConfig(student="ViT-B-32", output="run", **inputs),
    ],
)
def test_held_out_input_that_is_the_input_is_told(config):
    with pytest.raises(
        ValidationError, match="b is also named by --input, and pictures to validate on are not trained"
    ):
        config(input=["a", "b"], eval_input=["c", "b"])


def test_a_hash_tells_what_was_read_of_an_input(captioner):
    def read(*records):
        return CaptionedPictures([Shard("a", "a.tar", {}, records)], captioner, quiet=True).input_hashes

    first = read(scene(0), scene(1))
    assert first == read(scene(0), scene(1)) and list(first) == ["a.tar"]
    others = [
        read(scene(1), scene(0)),
        read(scene(0)),
        read(scene(0), again(scene(1))),
        read(scene(0), Record(scene(1).key, scene(1).image, ("a square",))),
    ]
    assert len({first["a.tar"], *(hashes["a.tar"] for hashes in others)}) == 5
