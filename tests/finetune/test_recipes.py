"""Recipes: each is a valid configuration, runs on a miniature of its set, and refuses other sets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import capsmith
from captioners.load import load_captioner
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.recipes import FOLDER, RECIPES, list_recipes, read_recipe
from finetune.captioner.run import run
from imagetext.readers.curated import KINDS, SPLITS

ROOT = Path(capsmith.__file__).parent
# The 20 released fine-tuned captioners, by the ends of their names, and the paper's set that was not released.
RELEASED = {
    **{
        f"{part}_s12m_context{context}": f"{part}-{context}"
        for context in (77, 128, 256)
        for part in ("dci-short", "dci-extended", "dci-complete", "docci", "recap-coco-30k")
    },
    "mscoco38k_s12m_context77": "mscoco38k-77",
    "gbc1m-short_context77": "gbc1m-short-77",
    "gbc1m-long_context256": "gbc1m-long-256",
    "gbc10m-long_context256": "gbc10m-long-256",
    "gbc10m-short-relation_context256": "gbc10m-short-relation-256",
}


def test_there_is_one_for_each_captioner_of_the_paper():
    assert set(RECIPES) == {f"mobileclip2-{name}" for name in [*RELEASED.values(), "mscoco123k-77"]}
    for released, name in RELEASED.items():
        assert f"# apple/mobileclip2_coca_dfn2b_s13b_{released}\n" in (FOLDER / f"mobileclip2-{name}.yaml").read_text()


@pytest.mark.parametrize("name", RECIPES)
def test_it_gives_a_configuration_of_the_papers_settings(name, tmp_path):
    recipe = read_recipe(name)
    assert recipe.kind in KINDS and (recipe.kind not in SPLITS or recipe.split in SPLITS[recipe.kind])
    config = FinetuneConfig(recipe=name, input=[f"{recipe.kind}:x"], output=tmp_path)
    assert config.model == "apple/mobileclip2_coca_dfn2b_s13b_context77" and "research only" in recipe.weights_licence
    assert (config.samples_seen, config.contrastive_weight, config.caption_weight) == (12_000_000, 1, 2)
    assert name == f"{config.name.replace('_', '-')}" and name.endswith(f"-{config.context}")
    steps = config.samples_seen / config.batch_size / config.captions_per_image
    assert config.learning_rate == 1e-5 and round(config.warmup * steps) == pytest.approx(1000, abs=5)
    assert all(getattr(config, field) is not None for field in recipe.settings)


@pytest.fixture
def miniature(coco, docci, dci, gbc_graph, recap_coco, images, write, tmp_path):
    """Write a small input of this kind; return it and its folder of pictures."""

    def make(kind):
        if kind in ("coco", "coco-permissive"):
            return f"{kind}:{coco}", images(*(f"{number:012d}.jpg" for number in range(1, 9)))
        if kind == "docci":
            return f"docci:{docci}", images(*(f"train_{number:05d}.jpg" for number in range(3)))
        if kind.startswith("dci-"):
            return f"{kind}:{dci()}", images("sa_1.jpg", "sa_2.jpg")
        if kind.startswith("gbc-"):
            return f"{kind}:{write(tmp_path / 'graphs.jsonl', [gbc_graph])}", images("b%20c.jpg")
        return f"{kind}:{recap_coco()}", None

    return make


@pytest.mark.parametrize("name", RECIPES)
def test_it_starts_on_a_miniature_of_its_set(name, tmp_path, miniature):
    recipe = read_recipe(name)
    spec, images = miniature(recipe.kind)
    config = FinetuneConfig(
        recipe=name,
        input=[spec],
        images=images,
        output=tmp_path / "run",
        model="coca_tiny",
        samples_seen=4,
        batch_size=2,
        hold_out=0,
        num_workers=0,
        device="cpu",
    )
    assert run(config) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and not (tmp_path / "run" / "rejects.jsonl").exists()
    assert (
        "research only" not in (tmp_path / "run" / "README.md").read_text()
    )  # unlike the weights that training starts from
    captioner = load_captioner(str(tmp_path / "run"))
    assert captioner.name == config.name and captioner.context_length == recipe.settings["context"] - 1


# --- the command line ------------------------------------------------------------------------------------------------

DOCCI = ["--recipe", "mobileclip2-docci-128", "--input", "docci:x", "--output", "out"]


def parse(*argv):
    return capsmith.parse("finetune", FinetuneConfig, argv)


def problems(*argv):
    with pytest.raises(ValueError) as caught:
        parse(*argv)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_flags_override_the_file_which_overrides_the_recipe_which_overrides_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("batch_size: 32\nlearning_rate: 2.0e-5\n")
    config = parse(*DOCCI, "--config", str(file), "--batch-size", "16")
    assert (config.batch_size, config.learning_rate, config.context, config.warmup) == (16, 2e-5, 128, 0.0107)
    file.write_text("recipe: mobileclip2-docci-128\ninput: ['docci:x']\noutput: out\n")
    assert parse("--config", str(file)) == parse(*DOCCI)


def test_the_printed_configuration_says_it_all_and_is_the_same(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(*DOCCI, "--print-config")
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["context"] == 128
    (tmp_path / "printed.yaml").write_text(printed)
    assert parse("--config", str(tmp_path / "printed.yaml")) == parse(*DOCCI)
    alone = [line for line in printed.splitlines(keepends=True) if not line.startswith("recipe:")]
    (tmp_path / "printed.yaml").write_text("".join(alone))
    assert parse("--config", str(tmp_path / "printed.yaml")) == parse(*DOCCI).model_copy(update={"recipe": None})


def test_an_unknown_name_is_told_with_those_near_it():
    [problem, _] = problems("--recipe", "mobileclip2-doci-77", "--input", "x", "--output", "out")
    assert problem.startswith("--recipe mobileclip2-doci-77: no such recipe; similar names: mobileclip2-docci-77, ")
    assert "--recipe zzz: no such recipe; `capsmith finetune --list-recipes` lists them" in problems(
        "--recipe", "zzz", *DOCCI[2:]
    )


@pytest.mark.parametrize("spec", ["coco:x", "pictures/", "shards/{0..9}.tar", "docci:x#test"])
def test_another_input_is_refused_beside_all_other_problems(spec):
    messages = problems(
        *DOCCI[:2], "--input", "docci:a#train", "--input", spec, "--output", "out", "--batch-size", "0"
    )
    assert messages == [
        f"--input ['docci:a#train', '{spec}']: recipe mobileclip2-docci-128 takes docci:FILE (DOCCI-9k, train), "
        f"not {spec}",
        "--batch-size 0: Input should be greater than 0",
    ]


def test_the_whole_of_coco_is_no_input_of_the_recipe_for_its_permissive_part():
    [problem] = problems(
        "--recipe", "mobileclip2-mscoco38k-77", "--input", "coco:captions_train2017.json", "--output", "out"
    )
    assert "takes coco-permissive:FILE" in problem


def test_the_list_is_a_line_each_of_name_set_context_and_licence():
    lines = list_recipes().splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    docci = [line.split()[0] for line in lines if "-docci-" in line]
    assert docci == [f"mobileclip2-docci-{context}" for context in (77, 128, 256)]
    for line, recipe in zip(lines, map(read_recipe, RECIPES), strict=True):
        assert f"  {recipe.dataset}  " in f"{line}  " and f"context {recipe.settings['context']:3}" in line
        assert line.endswith(recipe.licence)


def test_listing_needs_no_torch_and_no_other_flag():
    code = (
        "import sys, capsmith\n"
        "code = capsmith.main(['finetune', '--list-recipes'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == list_recipes() + "\n"
