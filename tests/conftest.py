"""Pictures, and small, exact copies of the caption sets as their authors publish them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def picture(seed: int = 0, format: str = "JPEG", size: tuple[int, int] = (12, 8), **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(name="picture")
def picture_fixture():
    return picture


@pytest.fixture
def images(tmp_path, picture):
    """A folder with pictures of these names."""
    folder = tmp_path / "images"

    def make(*names):
        for number, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(picture(number))
        return folder
    return make


def write(path: Path, content) -> str:
    """A file of JSON, or of JSON lines where the content is a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = content if isinstance(content, list) else None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) if lines is not None else json.dumps(content))
    return str(path)


@pytest.fixture(name="write")
def write_fixture():
    return write


LICENCES = [{"url": f"http://creativecommons.org/licenses/{name}/2.0/", "id": number, "name": name}
            for number, name in enumerate(("by-nc-sa", "by-nc", "by-nc-nd", "by", "by-sa", "by-nd"), 1)]
LICENCES += [{"url": "http://flickr.com/commons/usage/", "id": 7, "name": "No known copyright restrictions"},
             {"url": "http://www.usa.gov/copyright.shtml", "id": 8, "name": "United States Government Work"}]


@pytest.fixture
def coco(tmp_path):
    return write(tmp_path / "annotations" / "captions_train2017.json", {
        "info": {"description": "COCO 2017 Dataset", "year": 2017}, "licenses": LICENCES,
        "images": [{"license": number, "file_name": f"{number:012d}.jpg", "coco_url": "http://x", "height": 8, "width": 12,
                    "date_captured": "2013-11-14", "flickr_url": "http://y", "id": number} for number in range(1, 9)],
        "annotations": [{"image_id": image, "id": 10 * image + which, "caption": f" picture {image} caption {which}\n"}
                        for which in range(5) for image in range(8, 0, -1)]})


@pytest.fixture
def docci(tmp_path):
    rows = [{"example_id": f"{split}_{number:05d}", "split": split, "image_file": f"{split}_{number:05d}.jpg",
             "description": f"A long description of {split} {number}. It has two sentences."}
            for number in range(3) for split in ("train", "test", "qual_dev", "qual_test")]
    return write(tmp_path / "docci_descriptions.jsonlines", rows)


@pytest.fixture
def dci(tmp_path):
    """The folder of annotations of sa_1.jpg and sa_2.jpg, with the bounds of either of DCI's documents."""
    def mask(number, label, caption, bounds):
        return {"idx": number, "outer_mask": "iVBORw0K", "mask_quality": 0, "label": label, "caption": caption, "parent": -1,
                "requirements": [], "bounds": bounds, "area": 9}

    def make(bounds=((0, 0), (9, 7))):
        folder = tmp_path / "dci"
        write(folder / "annot_b.json", {"image": "sa_2.jpg", "short_caption": "A street", "extra_caption": "", "mask_keys": [],
                                        "mask_data": {}, "summaries": {}, "negatives": {}})
        masks = {"1": mask(1, "grass", "green and short.", bounds), "0": mask(0, "", "a brown dog", bounds),
                 "2": mask(2, "sky", "", bounds)}
        write(folder / "annot_a.json", {
            "image": "sa_1.jpg", "short_caption": "A dog on\n grass.", "extra_caption": "It is sunny", "mask_keys": ["1", "0"],
            "mask_data": masks, "summaries": {"base": ["A dog."]}, "negatives": {}})
        return str(folder)
    return make


@pytest.fixture
def gbc_graph():
    def vertex(name, label, box, *descs):
        edges = ("left", "top", "right", "bottom", "confidence")
        return {"vertex_id": name, "bbox": dict(zip(edges, box)), "label": label, "in_edges": [], "out_edges": [],
                "descs": [{"text": text, "label": kind} for text, kind in descs]}

    return {"img_url": "https://example.org/a/b%20c.jpg?size=big", "original_caption": "alt", "vertices": [
        vertex("", "image", (0.0, 0.0, 1.0, 1.0, None), ("Two horses. In snow.", "detail"), ("Two horses.", "short"),
               ("horse, snow", "bagofwords")),
        vertex("horse", "entity", (0.2, 0.3, 0.6, 0.9, 0.8), ("A brown horse.", "detail")),
        vertex("horse+snow", "relation", (0.0, 0.3, 1.0, 1.0, 0.8), ("The horse walks in the snow.", "relation"))]}


@pytest.fixture
def recap_coco(tmp_path, picture):
    """A Parquet file of one row, with the picture in this column."""
    def make(column="image_binary"):
        row = {"image_id": 42, "coco_url": "http://images.cocodataset.org/val2014/COCO_val2014_000000000042.jpg",
               "caption": "A dog.", "recaption": "A brown dog lies on a red rug."}
        if column:
            row[column] = {"bytes": picture(0), "path": None}
        path = tmp_path / "train-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist([row]), path)
        return str(path)
    return make
