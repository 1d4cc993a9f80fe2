"""What a language model wraps round a caption never reaches a column."""

import time

import pytest

from captioners.replies import clean_reply

DOG = "A dog on grass."


@pytest.mark.parametrize("reply", [
    DOG, f"  {DOG}\n", f"<think>A dog?\nYes.</think>\n\n{DOG}", f"Let me see: a dog.</think>{DOG}", f"◁think▷a dog◁/think▷{DOG}",
    f"<|channel|>analysis<|message|>a dog<|end|><|start|>assistant<|channel|>final<|message|>{DOG}<|return|>",
    f"<|im_start|>assistant\n{DOG}<|im_end|>\n<|im_start|>user\nAnd now?", f"</s>{DOG}</s>", f"{DOG}<|eot_id|>assistant\n\nA cat.",
    f"{DOG}<end_of_turn>\n<end_of_turn>", f"<｜begin▁of▁sentence｜>{DOG}<｜end▁of▁sentence｜>", f"<|begin_of_box|>{DOG}<|end_of_box|>",
    f"<answer>{DOG}</answer>", f"```\n{DOG}\n```", f"```text\n{DOG}\n```", f"Here it is:\n```json\n{{\"caption\": \"{DOG}\"}}\n```",
    f"**{DOG}**", f"*{DOG}*", f"- {DOG}", f"## Caption\n\n{DOG}", f"**Caption:** {DOG}", f'"{DOG}"', f"“{DOG}”", f"Caption: {DOG}",
    f"Sure! Here's a caption for the image:\n\n**\"{DOG}\"**\n\nLet me know if you'd like another one!", f"Certainly! {DOG}",
    f"Okay, here is a one-sentence description of the picture: {DOG}", f"Hier ist eine kurze Beschreibung des Bildes: {DOG}",
    f"Voici une légende : {DOG}", f"以下是图片的描述：{DOG}", f"Image description: {DOG}", f"{DOG} I hope this helps!",
])
def test_the_caption_is_what_is_left(reply):
    assert clean_reply(reply) == DOG


@pytest.mark.parametrize("caption", [
    "Here is a grandmother walking home from a shop.", "Here are three men: one sits.", 'A sign with the caption: "hello".',
    '"Stop" and "go" on two signs', "snake_case_name on a page", "2*3*4 on a board", "Great Danes run.", "a <unk> dog",
    "I'm sorry, but I can't help with that.", '{"a": 1}', "[a dog", "'A dog's ball'", "Let me know",
])
def test_what_the_caption_says_stays(caption):
    assert clean_reply(caption) == caption


@pytest.mark.parametrize("reply", ["", " \n", "<think>Let me see", "<think>Let me see</think>", "<|im_end|>", "</s>"])
def test_a_reply_without_a_caption_is_empty(reply):
    assert clean_reply(reply) == ""


def test_lines_become_one():
    assert clean_reply("A dog runs.\n\n- It is brown.\n- It  is wet.") == "A dog runs. It is brown. It is wet."


@pytest.mark.parametrize("part", ["<think>", "</think>", "**a", "<|im_end|>", "here is ", "```", "{", "_", "<|", "# ", "Ġ", "caption "])
def test_no_reply_takes_long(part):
    start = time.process_time()
    clean_reply(part * 20_000)
    assert time.process_time() - start < 1
