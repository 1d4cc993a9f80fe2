"""What a language model writes around a caption never reaches a column."""

import time

import pytest

from captioners import replies
from captioners.replies import clean_reply, read_reply

DOG = "A dog on grass."
UNFINISHED = "analysisWe need a caption of a dog"


@pytest.mark.parametrize(
    "reply",
    [
        DOG,
        f"  {DOG}\n",
        f"<think>A dog?\nYes.</think>\n\n{DOG}",
        f"Let me see: a dog.</think>{DOG}",
        f"◁think▷a dog◁/think▷{DOG}",
        f"<|channel|>analysis<|message|>a dog<|end|><|start|>assistant<|channel|>final<|message|>{DOG}<|return|>",
        f"<|im_start|>assistant\n{DOG}<|im_end|>\n<|im_start|>user\nAnd now?",
        f"</s>{DOG}</s>",
        f"{DOG}<|eot_id|>assistant\n\nA cat.",
        f"{DOG}<end_of_turn>\n<end_of_turn>",
        f"<｜begin▁of▁sentence｜>{DOG}<｜end▁of▁sentence｜>",
        f"<|begin_of_box|>{DOG}<|end_of_box|>",
        f"<answer>{DOG}</answer>",
        f"```\n{DOG}\n```",
        f"```text\n{DOG}\n```",
        f'Here it is:\n```json\n{{"caption": "{DOG}"}}\n```',
        f"**{DOG}**",
        f"*{DOG}*",
        f"- {DOG}",
        f"## Caption\n\n{DOG}",
        f"**Caption:** {DOG}",
        f'"{DOG}"',
        f"“{DOG}”",
        f"Caption: {DOG}",
        f"Sure! Here's a caption for the image:\n\n**\"{DOG}\"**\n\nLet me know if you'd like another one!",
        f"Certainly! {DOG}",
        f"Okay, here is a one-sentence description of the picture: {DOG}",
        f"Hier ist eine kurze Beschreibung des Bildes: {DOG}",
        f"Voici une légende : {DOG}",
        f"以下是图片的描述：{DOG}",
        f"Image description: {DOG}",
        f"{DOG} I hope this helps!",
        f"Sure, here's a short, descriptive caption for the image you provided: {DOG}",
        f"Okay.\n{DOG}",
        f"Of course! {DOG}",
        f"Here are three possible captions:\n\n{DOG}",
        f"Sure! Here are three options:\n\n1. {DOG}\n2. A cat.",
        f"Here are a few options, ranging from short to long:\n\n**Option 1 (short):** {DOG}\n\n**Option 2:** A cat.",
        f"Here are some variations of the caption: {DOG}",
        f"This is a description of the image: {DOG}",
        f"Caption 1: {DOG}",
        f"Voici une description courte de l'image : {DOG}",
        f"Aquí tienes una breve descripción de la imagen: {DOG}",
        f"Вот краткое описание изображения: {DOG}",
        f"好的，这是图片的描述：{DOG}",
        f"当然可以！{DOG}",
        f"当然可以，以下是图片的描述：{DOG}",
        f"{DOG}\n\n---\n\nLet me know if you'd like another one!",
        f"Here is a caption:\n\n---\n{DOG}\n---\nThis caption shows the mood.",
        f"{DOG}\n\n*(4 words)*",
        f"{DOG}\nWord count: 4",
        f"以下は画像の説明です：{DOG}",
        f"Popis obrázku: {DOG}",
        f"***{DOG}***",
        f"__{DOG}__",
        "ĠA Ġdog Ġon Ġgrass.",
        "▁A ▁dog ▁on ▁grass.",
        f"startseq {DOG} endseq",
        f"{DOG}<extra_id_0>",
        f"{DOG}\n\nWould you like a shorter version?",
        f"<<SYS>>{DOG}",
        f"Option 1: {DOG} Option 2: A cat. Option 3: A bird.",
        f"**Option 1 (short):** {DOG}\n**Option 2:** A cat.",
        f"Option 1:\n{DOG}\n\nOption 2:\nA cat.",
        f"Here are two captions: Caption 1: {DOG} Caption 2: A cat.",
        f'["{DOG}"]',
        f"{DOG} (4 words)",
        f"{DOG} (Word count: 4)",
        f"Final answer: {DOG}",
        f"It is a dog, and it is on grass.\n\n**Final Answer:** {DOG}",
        f"analysisWe need a caption of a dog.assistantfinal{DOG}",
        f'""{DOG}""',
        f"\"'{DOG}'\"",
        f'"{DOG}" or "A cat."',
        f'"{DOG}"\n"A cat."',
        f"{DOG} Let me know if you have any questions.",
        f"{DOG} I hope this helps! Let me know if you need anything else.",
        f"{DOG} Hope this helps!",
        f"{DOG} Note: I kept it short.",
        f"{DOG} (Note: The image is blurry.)",
    ],
)
def test_the_caption_is_what_is_left(reply):
    assert clean_reply(reply) == DOG


@pytest.mark.parametrize(
    "caption",
    [
        "Here is a grandmother walking home from a shop.",
        "Here are three men: one sits.",
        "Here are options for lunch, written on a board: soup and bread",
        'A sign with the caption: "hello".',
        '"Stop" and "go" on two signs',
        "snake_case_name on a page",
        "2*3*4 on a board",
        "Great Danes run.",
        "a <unk> dog",
        "Legendary band on stage at 10:30 pm",
        "Un legendario jugador: Messi",
        "This is a clock and a sentence that reads 10:30",
        "This is a sign with the phrase: hello",
        "Here is a picture and a caption: hello",
        "Job description: a paper on a desk",
        "Voici un panneau avec la phrase: défense de fumer",
        "Hier ist ein Schild mit dem Satz: Stopp",
        "这是一块说明牌：禁止吸烟",
        "这是一本书，标题是：红楼梦",
        "f**k and sh**t painted on a wall",
        "2**3 and 4**5",
        "def __init__(self)",
        "int *p, *q on a screen",
        "Yes, we can! banner hung on a wall",
        "Great, sweeping views of a canyon",
        "OK! magazine cover",
        "Sure! deodorant on a shelf",
        "A card that reads Happy birthday! I hope this year is the best.",
        "A sign on books: All free! Feel free to take one.",
        "In Ġgantija temple",
        "Ġorġ fil-Ġnien",
        "weekendSeq",
        "a man <john@example.com>",
        "List<string>",
        "a sign, <<Bonjour>>",
        "I'm sorry, but I can't help with that.",
        '{"a": 1}',
        "[a dog",
        "'A dog's ball'",
        "Let me know",
        "A sign. Note: no parking is on it.",
        "A board. Note: the original sign is red.",
        "A dog plays. Hope it works out, says the sign.",
        '"Stop." on a sign and "Go." on another',
        "An analysis of blood on a screen",
        '["A dog.", "A cat."]',
    ],
)
def test_what_the_caption_says_stays(caption):
    assert clean_reply(caption) == caption


def test_lines_that_begin_as_a_note_or_a_ruled_line_stay():
    assert clean_reply("A poster.\n3 words are on it.\n--- A line.") == "A poster. 3 words are on it. --- A line."


def test_plain_replies_are_read_as_all_others(monkeypatch):
    before = [
        "",
        " ",
        "- ",
        "1. ",
        '"',
        "# ",
        "Sure! ",
        "Sure, here is ",
        "Certainly! ",
        "Caption: ",
        "assistant\n",
        "É",
        "<s>",
    ]
    inside = [
        "A dog",
        "a  dog",
        "The dog’s `bone`",
        "*A* dog",
        "startseq dog",
        "Ġdog",
        "a <unk> dog",
        "a\u200bdog",
        "a\0dog",
        "字",
    ]
    after = [
        "",
        ".",
        " ",
        "\n",
        '"',
        "}",
        " endseq",
        "</s>",
        ". I hope this helps!",
        "! Let me know if you want changes.",
        ".\nNote: no",
    ]
    texts = [opening + two + three for opening in before for two in inside for three in after]
    read = [(read_reply(text), read_reply(text, line=True)) for text in texts]
    assert 30 < sum(map(replies._is_plain, texts)) < len(texts) / 2
    monkeypatch.setattr(replies, "_is_plain", lambda text: False)
    assert read == [(read_reply(text), read_reply(text, line=True)) for text in texts]


@pytest.mark.parametrize(
    "reply", ["", " \n", "<think>Let me see", UNFINISHED, "<think>Let me see</think>", "<|im_end|>", "</s>"]
)
def test_a_reply_without_a_caption_is_empty(reply):
    assert clean_reply(reply) == ""


def test_a_line_break_in_a_caption_is_no_heading():
    assert clean_reply("A whiteboard with a sentence\nwritten on it") == "A whiteboard with a sentence written on it"
    assert clean_reply("This is a wall with a phrase\non it") == "This is a wall with a phrase on it"


def test_lines_become_one():
    assert clean_reply("A dog runs.\n\n- It is brown.\n- It  is wet.") == "A dog runs. It is brown. It is wet."


@pytest.mark.parametrize(
    "part",
    [
        "<think>",
        "</think>",
        "**a",
        "<|im_end|>",
        "here is ",
        "```",
        "{",
        "_",
        "<|",
        "# ",
        "Ġ",
        "caption ",
        "▁",
        "Ġa ",
        "__a ",
        "`a ",
        "*a ",
        "here is a ",
        "here are a few options ",
        "let me know caption ",
        "Let me know caption. ",
        '"',
        '"a." ',
        "caption 1: caption 2 ",
        "note: ",
        "(4 words) ",
        "analysisW ",
    ],
)
def test_no_reply_takes_long(part):
    start = time.process_time()
    clean_reply(part * 20_000)
    assert time.process_time() - start < 1
