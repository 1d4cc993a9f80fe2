"""The pipeline on real photographs, good and bad; skipped if there are none (CAPSMITH_DATA, or ../shared/data)."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from captioners.base import Request, SamplingConfig
from captioners.load import load_captioner
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.run import run as finetune
from generate.captions.config import GenerateConfig
from generate.captions.run import run as generate
from imagetext.sample import decode_image
from imagetext.sources import read_records, read_samples

DATA = Path(os.environ.get("CAPSMITH_DATA", Path(__file__).parents[2] / "shared" / "data")) / "gbc_wiki"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"CAPSMITH_DATA: no {DATA}")


@pytest.fixture
def folder(tmp_path):
    """The photographs, and six unusual files of kinds that occur on the web."""
    folder = tmp_path / "wiki"
    shutil.copytree(DATA / "images" / "wiki", folder)
    photograph = Image.open(folder / "corgi.jpg")
    (folder / "a_text.jpg").write_text("<html>404 not found</html>")
    (folder / "an_empty.png").write_bytes(b"")
    (folder / "truncated.jpg").write_bytes((folder / "corgi.jpg").read_bytes()[:5000])
    photograph.convert("CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    photograph.save(folder / "turned.jpg", exif=exif)
    frames = [photograph.convert("RGB").resize((64, 48)), Image.new("RGB", (64, 48), "red")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    return folder


def test_generate_keeps_every_row_and_names_every_fault(folder, tmp_path):
    pictures = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png", ".gif"))
    config = GenerateConfig(
        input=[str(folder)],
        model="coca_tiny",
        output=tmp_path / "out",
        num_captions=2,
        max_error_rate=0.2,
        redraws=0,
        on_degenerate="keep",
    )
    assert generate(config) == 0
    records = {record.key: record for record in read_records(str(tmp_path / "out" / "*.tar"))}
    assert set(records) == {path.stem for path in pictures} and len(records) == 27
    failed = {key: record.error for key, record in records.items() if record.error}
    assert set(failed) == {"a_text", "an_empty", "truncated"} and all(failed.values())
    for path in pictures:
        record = records[path.stem]
        if not record.error:
            assert record.image == path.read_bytes()
            assert len(record.syn_text["syn_text_coca_tiny"]) == 2
            assert (record.meta["width"], record.meta["height"]) == decode_image(path.read_bytes()).size
    upright, turned = (decode_image(records[key].image).size for key in ("corgi", "turned"))
    assert turned == upright[::-1]
    assert generate(config.model_copy(update={"output": tmp_path / "strict", "max_error_rate": 0.1})) == 3


def first_sentences(folder: Path) -> dict[str, str]:
    """The first sentence of each photograph's short GBC caption, by file name."""
    captions = {}
    for line in (DATA / "gbc" / "wiki" / "wiki_gbc_graphs.jsonl").read_text(encoding="utf-8").splitlines():
        graph = json.loads(line)
        vertex_of_image = next(vertex for vertex in graph["vertices"] if vertex["label"] == "image")
        short = next(desc["text"] for desc in vertex_of_image["descs"] if desc["label"] == "short")
        captions[Path(graph["img_path"]).name] = short.split(". ")[0].rstrip(".") + "."
    return {name: caption for name, caption in captions.items() if (folder / name).exists()}


def test_a_captioner_with_clips_vocabulary_learns_photographs_by_heart(folder, tmp_path):
    """`coca_small` trains from scratch until greedy decoding repeats the training captions."""
    captions = first_sentences(folder)
    assert len(captions) == 19
    captions = dict(sorted(captions.items())[:6])
    (tmp_path / "set.jsonl").write_text(
        "".join(
            json.dumps({"image": str(folder / name), "caption": caption}) + "\n" for name, caption in captions.items()
        )
    )
    assert (
        finetune(
            FinetuneConfig(
                input=[str(tmp_path / "set.jsonl")],
                model="coca_small",
                from_scratch=True,
                name="wiki",
                output=tmp_path / "run",
                samples_seen=6 * 90,
                batch_size=6,
                learning_rate=1e-3,
            )
        )
        == 0
    )
    captioner = load_captioner(str(tmp_path / "run"))
    samples = [sample for shard in read_samples(str(tmp_path / "set.jsonl")) for sample in shard]
    pictures = [Request(sample.key, captioner.preprocess(decode_image(sample.image))) for sample in samples]
    captioned = captioner.caption(pictures, SamplingConfig(strategy="greedy"))
    for sample, result in zip(samples, captioned, strict=True):
        expected = captioner.decode(captioner.encode_text_ids(sample.captions[0]))
        assert result.captions[0].text == expected
