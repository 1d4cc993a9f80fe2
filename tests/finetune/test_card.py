"""The model card: the Hub's own parser reads it, and texts of the user are never markup."""

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from finetune.card import write_card

EVIL = [
    "a | b",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "![x](http://x/y.png)",
    "`code`",
    "**bold** _it_",
    "line\n\n# heading",
    "---\nlicense: mit\n---",
    "- item: {x}",
    "'quote\" \\",
    "a ~~b~~ $c$ & &lt;",
    "```\nfence",
    "a\\|b",
]
SCORES = {
    "step": 10,
    "samples": 1280,
    "caption": 1.25,
    "cider_d": 0.987654,
    "degenerate": 0.025,
    "pictures": 60,
    "human": {"degenerate": 0.0125, "same_caption": 0.0625},
    "same_caption": 0.125,
    "warning": "",
}
FRONT = {
    "library_name": "open_clip",
    "pipeline_tag": "image-to-text",
    "tags": ["image-captioning", "coca", "capsmith"],
}


def card_of(folder, **changes):
    write_card(
        folder,
        **{
            "name": "mine",
            "base_model": "apple/mobileclip2_coca",
            "data": {"Training": "coco: 38,000 pictures"},
            "licences": {"COCO captions": "CC BY 4.0"},
            "scores": SCORES,
            "recipe": {"learning_rate": 1e-5, "input": ["coco:x.json"], "pretrained": None},
        }
        | changes,
    )
    return ModelCard.load(folder / "README.md")


class Shown:
    """A card as Markdown: the kinds of its parts, and the texts of headings, table rows, code and quotes."""

    def __init__(self, card):
        self.kinds, self.rows, self.headings, self.code, self.quotes = [], [], [], [], []
        within = ""
        for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card.text):
            self.kinds += [token.type, *(child.type for child in token.children or ())]
            if token.type == "tr_open":
                self.rows.append([])
            elif token.type == "code_block":
                self.code.append(token.content)
            elif token.type == "inline":
                text = "".join(child.content for child in token.children)
                spans = {"td_open": self.rows and self.rows[-1], "heading_open": self.headings, "quote": self.quotes}
                spans.get(within, []).append(text)
            within = "quote" if token.type == "paragraph_open" and within == "blockquote_open" else token.type
        self.kinds = [
            kind for kind in self.kinds if not kind.startswith("text")
        ]  # the parser makes each escaped character a text of its own


def test_the_hub_reads_what_the_card_says(tmp_path):
    card = card_of(tmp_path, datasets=["google/docci"])
    assert card.data.to_dict() == FRONT | {"base_model": "apple/mobileclip2_coca", "datasets": ["google/docci"]}
    rows = Shown(card).rows
    assert ["Training", "coco: 38,000 pictures"] in rows and ["COCO captions", "CC BY 4.0"] in rows
    assert [row for row in rows if len(row) == 3] == [
        ["Caption loss ↓", "1.250", "–"],
        ["CIDEr-D ↑", "0.988", "–"],
        ["Degenerate captions ↓", "2.5 %", "1.2 %"],
        ["One same caption ↓", "12.5 %", "6.2 %"],
    ]
    assert (
        "Measured on 60 held-out pictures, after training on 1280 captions" in card.text and "Warning" not in card.text
    )
    assert "- **CIDEr-D ↑** How much the most probable caption shares" in card.text
    assert yaml.safe_load(Shown(card).code[-1]) == {"learning_rate": 1e-5, "input": ["coco:x.json"]}


@pytest.mark.parametrize("evil", EVIL)
def test_text_of_the_users_is_text(tmp_path, evil):
    card = card_of(
        tmp_path,
        name=evil,
        base_model=evil,
        data={evil: evil},
        licences={evil: evil},
        datasets=[evil],
        recipe={"name": evil, evil: [evil]},
        scores=SCORES | {"warning": evil},
    )
    shown, plain = Shown(card), Shown(card_of(tmp_path, base_model="plain", scores=SCORES | {"warning": "plain"}))
    text = " ".join(evil.split())
    assert card.data.to_dict() == FRONT | {"datasets": [evil]}
    assert shown.kinds == plain.kinds  # so nothing in the text is markup
    assert shown.headings == [text, *plain.headings[1:]] and len(plain.headings) == 6
    assert shown.rows.count([text, text]) == 2
    assert shown.quotes == [f"Warning: {text}"]
    assert yaml.safe_load(shown.code[-1]) == {"name": evil, evil: [evil]}


def test_paths_of_the_machine_stay_there(tmp_path):
    card = card_of(
        tmp_path,
        base_model=str(tmp_path / "models" / "mine"),
        data={"Training": f"coco:{tmp_path}/a.json#train, s3://bucket/b/c.tar, d/e.csv"},
        recipe={"input": [f"coco:{tmp_path}/a.json"], "images": str(tmp_path), "url": "https://x.org/y/z"},
    )
    assert tmp_path.parent.name not in card.content
    assert ["Training", "coco:…/a.json#train, s3://bucket/b/c.tar, d/e.csv"] in Shown(card).rows
    assert yaml.safe_load(Shown(card).code[-1]) == {
        "input": ["coco:…/a.json"],
        "images": f"…/{tmp_path.name}",
        "url": "https://x.org/y/z",
    }
    assert card.data.to_dict() == FRONT


def test_a_folder_like_a_name_on_the_hub_is_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert card_of(tmp_path, base_model="runs/mine").data.to_dict() == FRONT
    assert card_of(tmp_path, base_model="runs/other").data.to_dict() == FRONT | {"base_model": "runs/other"}
    assert card_of(tmp_path, base_model="coca_ViT-L-14").data.to_dict() == FRONT


def test_what_is_not_known_is_said(tmp_path):
    (tmp_path / "card").mkdir()
    card = card_of(tmp_path / "card", scores={}, licences={})
    assert "Not validated." in card.text and "are not known" in card.text
    assert [path.name for path in (tmp_path / "card").iterdir()] == ["README.md"]
