"""What is refused, and what is not: lists of each kind, in many languages, and time in proportion to the length."""

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diversity.words import nonwords
from diversity.words.degenerate import REASONS, degenerate_reasons
from diversity.words.endings import languages_of
from diversity.words.suspects import suspects
from diversity.words.tokens import encode, words

DATA = Path(os.environ.get("CAPSMITH_DATA", Path(__file__).parents[3] / "shared/data"))


@pytest.mark.parametrize(
    ("reason", "caption"), [(name, caption) for name, reason in REASONS.items() for caption in reason.examples]
)
def test_the_examples_of_each_reason_have_it(reason, caption):
    assert reason in degenerate_reasons(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle left of two blue squares",
        "St. Louis at night",
        "a close-up of a 4x4 on gate A",
        "A man looking on.",
        "a child with a dog behind her",
        "A large clock on top a a building",
        "The year 1984 in 3 pictures",
        "There is a house. The house is white. The house is old.",
        "a very, very large dog",
        "Two men and two women",
        "Flight BA2490 at 10:30:15",
        "a plate of 1,000,000 grains",
        "Louis XIII and Henry VIII",
        "a rhythm and blues band",
        "Ein Kind spielt mit einem Ball im Garten",
        "un gato negro en la mesa",
        "红色的圆在蓝色的方块左边",
        "зелёный круг на столе",
        "a sign that reads www.example.org above the door of a small shop",
        "Terminals A and B from above",
        "a red circle and a red square and a blue circle",
        "a dog ... and its ball",
    ],
)
def test_a_good_caption_is_not_degenerate(caption):
    assert degenerate_reasons(caption) == ()


@pytest.mark.parametrize(
    ("caption", "reasons"),
    [
        ("a 2 2 2 2", ("loop", "digits")),
        ("a zebra standing standing a and grass a on a round tree", ("broken",)),
        ("very very very large dog", ("loop",)),
        ("a dog and a cat and a dog and a cat and", ("loop", "cut")),
        ("the wall. the wall. is red", ("loop",)),
        ('a "Manual" on a skateboard at night at night at night at night', ("loop",)),  # not what a sign reads
        ("sitting on a", ("cut",)),
        ("a man in a hat (", ("cut",)),
        ("DSC_0042.JPG", ("nonwords",)),
        ("a\x00b red dog", ("nonwords",)),
        ("hahaha hahaha", ("short",)),
        ("image description", ("short",)),
        ("zzzzz", ("short", "nonwords")),
        ("!?", ("empty",)),
        ("20190304_112233", ("short",)),
        ("\ud800", ("empty",)),
    ],
)
def test_a_degenerate_caption_gets_its_reasons(caption, reasons):
    assert degenerate_reasons(caption) == reasons


BITS = st.sampled_from(
    [
        *"a the The A of and-so with dog cat x on 1 23 4567890 9a a1b2 zzz bcdfg a.jpg www.a :// www.".split(),
        *",.(!'_",
        "\ufffd",
        "\0",
        "\x1c",
        "\x7f",
        "ﾠ",
        "红",
        "w" * 25,
        "w" * 70,
        "Ã",
        "©",
        "<s>",
        "[UNK]",
        "I",
        "sorry",
        "cannot",
        "see",
        "no",
        "image",
        "available",
        "无法查看",
        "。",
        "sitting",
        "ein",
        "einem",
    ]
)
BETWEEN = st.sampled_from([" ", "  ", "", "\n", "\u00a0", "\x1f", " \0 ", ". ", "\x85"])
NASTY = st.lists(st.tuples(BITS, BETWEEN), max_size=9).map(lambda pairs: "".join(map("".join, pairs)))


@settings(max_examples=200, deadline=None)
@given(st.lists(NASTY, min_size=1, max_size=6))
@example(["the wall. the cat sat. sat. the wall"])
@example(["two dogs run 1", "2", "3 dogs run here"])
@example(["A man rides a horse on the beach. The sky is blue! A man rides his horse on the beach"])
def test_captions_that_are_not_suspects_have_no_reason(captions):
    result = suspects(captions, encode([captions]))
    reasons = [degenerate_reasons(caption) for caption in captions]
    assert [of for of, suspect in zip(reasons, result, strict=True) if not suspect and of] == []
    alone = [suspects([caption], encode([[caption]]))[0] for caption in captions]
    assert result.tolist() == alone or any("\0" in caption for caption in captions)


def test_one_fault_is_enough_to_be_a_suspect():
    captions = [caption for reason in REASONS.values() for caption in reason.examples]
    captions += [
        "a red\ufffd dog runs here",
        "a red \x1c dog runs here",
        "a \0 red dog runs here",
        "shop 20190304221 on a road",
    ]
    assert [caption for caption in captions if not suspects([caption], encode([[caption]]))[0]] == []
    good = [
        "a red dog runs here",
        "photo 4 17 of 20 dogs",
        "The dog and the cat",
        "a house by www.example.org in a street",
    ]
    assert not suspects(good, encode([good])).any()


@pytest.mark.parametrize("length", [1, 2, 63, 64])
def test_loops_are_suspects_at_every_length(length):
    unit = [f"word{index}" for index in range(length)]
    captions = [" ".join(["start", *unit * 3, "end"]), " ".join(["start", *unit, "end", *unit, "x"])]
    assert suspects(captions, encode([captions])).tolist() == [True, False]


def test_a_truncated_mark_is_a_cut():
    assert degenerate_reasons("a red circle left of two blue squares", truncated=True) == ("cut",)


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("length", [2, 3, 17, 63])
def test_loops_of_every_length_are_found_when_they_close(repeats, length):
    unit = [f"word{index}" for index in range(length)]
    assert ("loop" in degenerate_reasons(" ".join(["start", *unit * repeats, "end"]))) == (repeats == 2)


def test_a_loop_that_repeats_within_its_unit():
    assert "loop" in degenerate_reasons("a b x a b y a b x a b y")


def test_long_texts_take_no_time():
    text = " ".join(f"the house {index} of the street" for index in range(5_000))
    assert degenerate_reasons(text) == ()  # would take minutes if each pair were compared with each earlier one


N = 20_000  # characters: rules that took their number squared would take minutes


@pytest.mark.parametrize(
    "text",
    [
        "a" * N,
        "bcdfg" * (N // 5),
        "a1b2" * (N // 4),
        "1" * N,
        ("1" * 5000 + " ") * 4,
        ("man " + "1" * 5000 + " ") * 4,
        "a dog" + "\u0301\u0323" * (N // 2),
        "红" * N,
        "." * N + "x",
        "A dog. " * (N // 7),
        "the image " * (N // 10),
        "ich kann " * (N // 9),
        "hand in hand in x " * (N // 18),
        "user: question: a " * (N // 18),
        "a cat. question: a " * (N // 19),
        "it says 1 2 5 " * (N // 14),
        "<a" * (N // 2),
        "Ã©" * (N // 2),
        "a" + " " * N + "b",
        " ".join(map(str, range(N // 5))),
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_no_text_takes_long_to_judge(text):
    start = time.process_time()
    degenerate_reasons(text)
    suspects([text], encode([[text]]))
    assert time.process_time() - start < 2


GOOD = """
two children walk hand in hand in the park | people sitting side by side by side chairs
a sign that reads STOP STOP STOP | Ho ho ho, Merry Christmas! | a couple dances the cha cha cha
a shirt with the words "no no no" on it | a hallway with rooms 101 102 103
a van with the phone number 555 867 5309 on it
a sign with +1 800 555 0199 | call 5558675309 for pizza | a bottle of vitamin a and vitamin c
a person pressing the on button
an in ground swimming pool | a cake with the numbers 1 2 3 on it | a man looking on | plan a or plan b on a whiteboard
a black and white and black and white dog | a sign saying sorry we are closed | a man watching something we can't see
a chair, unable to be seen | a man given a cake | a poster with no text | no text is visible on the sign
a comfortable room
a folder C:\\new on a screen | Smith & Sons; AT&T | a song in C## on a sheet | order ##1 on a slip
a song list [1, 2, 3] on a wall | a range of [0, 1] | #2 pencil on a desk | a picture you can draw on
A poster asks: Question: who? | a **NEW** bike for sale | Sure, I can! reads a badge | What does the fox say? poster
bmx trx gym | Wojciech Szczęsny | The five boxing wizards jump quickly | a Fnatic PC with AMD RX and GTX
XKCD, QWERTZ und WKRP NBC CBS | kfc bbq wings xxl | mężczyzna w czarnym kapeluszu | Krzysztof jezdzi przez Szczecin
kpmg hsbc bbc cnn fox | jvc tv vcr dvd vhs pvr | html css js php sql | crypt lynx myth gym | cable of 4 mm, 6 mm, 8 mm
Mae ci gwyn yn cysgu | ib tug txiv neej zaum hauv tsev | Ixhoba laxoxa ngoqhankqalazo | qizil olma va yashil barglar
pack my box with five dozen liquor jugs | liang ge nan hai zai jie shang | strč prst skrz krk
a man with a sign that says "I'm sorry" | a screen with the message “Image not available”
a mug that says "Sorry I'm late, I didn't want to come" | a board with the words "How can I help you today?"
ein Schild mit der Aufschrift „Es tut mir leid“ | un cartel que dice «Lo siento»
看板に「申し訳ありません」と書いてある。
the picture is missing its lower left corner | several pictures are missing from the wall
"Sorry, we're closed" sign in a shop window
a sign says please let us know | it is not possible to see the face | the text on the page is not clear
a letter you can write on
no people are visible in the picture | a sign that says please try our pizza | a police officer and a policeman
The cat is curious about the people in the room, | The things that they play with.
Zwei Kinder gehen Hand in Hand in den Wald. | Die Männer sehen sich etwas an. | Zwei Frauen schauen sich in London an.
Ein Mann, der der Frau hilft | Balletttänzerinnen beim Training | Ein Radrennen. | Selbstbedienungsrestaurant
Un couple marche main dans la main dans la rue. | Un gardien protège le but. | une médaille en or | CAFÉ « LE MENÜ »
Muž a žena se na sebe dívají. | vlk na kopci | Un uomo mano nella mano nella strada | beyaz bir at
yeşil alanda koşan at
孩子们高高兴兴地玩耍 | 一步一步走上楼梯 | 一排排整整齐齐的椅子 | 哈哈哈笑的孩子
电话是13800138000 | 很多人在办公室办公室里工作
キラキラ光る星 | ゆっくりゆっくり歩く亀 | 人々が一人一人並んでいる
छोटे छोटे बच्चे खेल रहे हैं | एक लड़की एक लड़की से बात कर रही है
हाथ में हाथ डाले दो लोग | लोग साथ साथ चल रहे हैं | orang-orang berjalan di jalan
Visitors in Ġgantija temple | Ġorġ fil-Ġnien ta' Malta | a man <john@example.com> on a card | List<string> on a screen
a weekendSeq logo
Let's see the world, a travel poster | the user interface of a phone | We need to talk about Kevin, a film poster
I will make you a picture frame | I have to write a poem about a photograph of my dog | Well, let's go to the beach
New York New York hotel in Las Vegas | a Girls Girls Girls neon sign | a poster of Tora! Tora! Tora! in a cinema
a cartoon dog barking: woof woof woof | Tick tock tick tock, an old clock | a beep beep beep sound in a comic
rooms 1, 2, 3, 4, 5, 6, 7, 8, 9 | in 4 mm, 5 mm, 6 mm, 8 mm, 10 mm, 12 mm, 14 mm, 16 mm, 18 mm and 20 mm
a shelf with row 1, row 2, row 3 and row 4 | 6 of 7, 7 of 7
a clock reading 10 10 30 | a bus on routes 3 5 9 | a bingo card with 5 17 33 48 62 | a sign that says 0 5 0 2
a card with 4000 1234 5678 9010 on it | a barcode with 5 012345 678900 below it | pi is 3.14159265358979 on a board
a plate with the number "20190304221530"
a box that the cat is sitting in | the table that two dogs lie on | a bench which he sits on
a bird that the boy is looking at | the bowl that they eat from | this is what the man is working with
Where the wild things are | a phone that shows what the weather is
a beach with waves that people are looking at
The dog I came with. | Something you can look forward to. | A plate to eat from. | a lens of 50 mm, f/2.8, 1/200 s
A sign for the band The The | A sign that says No No No | A child shouts "No, no, no!" | a cat named "The"
Caption: a dog on a sofa | Question mark: a sign on a wall
图片说明：一只狗在草地上 | a phone with a chat: “User: hello”
A poster that reads: Please provide ID | A sign that asks visitors to please share the road | 人工智能展览会的海报
商店门口的牌子写着：对不起，暂停营业 | 「すみません」と書かれた看板 | 죄송합니다라고 적힌 표지판
Знак «Извините, мы закрыты» на двери
"I'm sorry" written on a card | a sheep says it is sorry | a woman who would prefer to stay
Sure, it is a small house. | Certainly the tallest tower in the city | Of course the cat sits on the keyboard.
Here is a picture of my dog on the beach | This image shows a dog running on the beach.
the bench he is sitting on | The person I want to be with | the world we live in
a friend to lean on
where we come from | Be who you are | That's just the way we are | The girl everyone is talking to | Switch it on
Sorry for the late reply meme | I'm sorry card with a sad puppy | Sorry, I can't adult today coffee mug
Sorry to Bother You (2018) | Please provide ID at the gate sign | Please Provide Feedback Concept on Laptop Screen
Please share this post - social media template | Can you share your location? dating app screenshot
As an AI robot greets visitors at the fair | As an assistant coach he led the team to victory in 2014
I am an AI robot - Sophia at the summit | I can't see the forest for the trees quote | My training log for the marathon
The image is easy to describe in one word: chaos | No image available placeholder icon
How can I help you? Customer service agent smiling with headset | What would you like for breakfast? ESL worksheet
We need to write better sentences poster for classroom | Let's see how far we've come lyrics
I hope this helps you sleep pillow | I would be happy to marry you ring box | This Caption is inappropriate meme
Describe this picture worksheet for kids | Caption this picture contest - funny cat on a bike
Describe the picture of your family, ESL | How beautiful you are
Generate a caption app icon | A matrix [1, 2, 3, 4] on a blackboard | ## Hashtag sculpture | ### Three hashtags sign
an editor with the text {"id": 5} on a screen | an assistant helps a user: both look at a screen | The time is 10:30
"""
BAD = {
    "loop": """一只狗在草地上在草地上在草地上 | ein Mann mit einem Hut mit einem Hut
        a sign that says stop stop stop stop stop stop
        A cat sits on a bed. A dog runs. A cat sits on a bed. | Un chien court court court
        man 1, man 2, man 3, man 4, man 5, man 6, man 7, man 8
        1. a dog 2. a dog 3. a dog 4. a dog 5. a dog 6. a dog 7. a dog 8. a dog
        Dog Dog Dog Cat Cat Cat | ein Hund Hund Hund im Garten | Pizza Pizza Pizza Pizza Pizza on a table
        tick tock tick tock tick tock tick tock tick tock | A dog. A dog. A dog. a cat
        एक आदमी कार में कार में कार में
        A cat is sitting on a large bed. A cat is sitting on a small bed.""",
    "cut": """a cat sitting on | a dog running down a | two men in hats and | a bird that is standing next to
        a man holds a ball and he is looking at | In this image we can see people on a | a dog wants to play with
        A baseball player prepares to swing at | In the picture, he is looking at | a woman about to walk into
        a box that is sitting in | a photo that the man is | a dog that a man is walking with a | a man that looks at
        ein Hund sitzt auf einem
        Ein Mann und eine | Un chien est sur une | Muž stojí na | un perro en la | a bowl of fruit; | 一只狗，
        a dog with " | A cat sits. The | a house with the sign "The | A Man Standing on The | He runs to the.
        Мужчина сидит на скамейке и | собака стоит рядом с""",
    "broken": "a man with a of water | the and the dog | a on a table | an is on the bench",
    "digits": "9 9 9 9 dogs | a room with 8 8 8 8 | 0 5 0 2 sign | 20190304221530 | 12 3 20190304221530 | a 7 3 9 dog",
    "nonwords": "DSCN4711 | img-20190304-wa0001.jpg | a ghtrw kjzxc | zzz grrrrrr | ein MÃ¤dchen im Garten | "
    "itâ€™s a dog | Р–РµРЅС‰РёРЅР° СЃ СЃРѕР±Р°РєРѕР№"
    " | ä¸\x80å\x8fªç\x8b\x97 | à¤\x8fà¤\x95 à¤\x86à¤¦à¤®à¥\x80 | two\x07 men in a boat | 锟斤拷锟斤拷锟斤拷"
    " | &nbsp;&nbsp;a cat | black &amp; white dogs on a rug | cat&#39;s toy on a table | ##ing a dog | a ⁇ on a rug"
    r" | \n A cat on a rug | A cat.\n\nThe cat is black. | a sign with \"stop\" on it"
    " | xkqj wvbz plmt | Vgxq puqwo kzmd xewuhj | qwjf zxcv uiop"
    r" | \u200b a dog on a couch | a caf\xc3\xa9 by the sea",
    "markup": "a dog<|im_end|> | <s> a dog | a <UNK> on a table | [INST] a dog [/INST] | a dog<end_of_turn> | "
    "a dog <｜end▁of▁sentence｜>"
    " | startseq a dog runs endseq | ▁a ▁dog ▁runs | Ġa Ġdog Ġruns | aĠdogĠruns | a <0x0A> dog"
    """ | USER: What is this? ASSISTANT: A dog. | Human: describe this. Assistant: a red car | ASSISTANT: A man rides.
        Question: what is this? Answer: a dog | ### Instruction: Describe. ### Response: a dog | im_start a dog
        {"caption": "a dog on a couch"} | [{"text" : "a dog"}] | {'caption': 'a red dog'} | ```json {"a": 1} ```
        Sure! Here is a caption for the image: A dog. | Certainly! The image shows a dog. | Okay, A dog on a couch.
        Here's a short caption: a dog | Voici une légende : un chien | Hier ist eine Beschreibung: ein Hund im Garten
        以下是图片的描述：一只狗在草地上 | The caption is: a red dog | Based on it, here is a caption: a red dog
        Describe this image in one sentence. | Write a caption for this image. | What is in this image?
        A cat [0.12, 0.34, 0.56, 0.78] on a rug | a cat [12,34,56,78] | The cat [ 1, 2, 3, 4 ] sits.
        **Caption:** A cat on a rug. | **Description**: a cat on a rug | ## Description A cat on a rug
        A cat on a rug. User: What is it? Assistant: A cat. | A cat. Human: Thank you. | A cat. Question: Q? Answer: A
        Sure, I can help with that! The image shows a cat. | Of course, I can do that. | What does this image describe?
        Unfortunately, the image you provided is blank. | In the picture you've shared, a dog runs.
        a unk on a table | A dog on grass. addCriterion | lorem ipsum dolor sit amet
        Describe the image | Describe this picture briefly | Write a caption describing it | Caption this photo: a dog
        ## Image description A cat on a rug | ## A Quiet Street The image shows a street.
        system You are a helpful assistant. user Describe it. assistant A dog.""",
    "refusal": """
        Okay, the user wants me to describe this picture. | Hmm, the user asked for a caption about a red bicycle.
        Got it, let's look at the picture. A dog runs on a beach. | So, let's see. The image shows a dog.
        First, I need to rewrite the caption in other words. | We need to produce one sentence. The caption: a dog.
        "I'm sorry, but I can't describe this." | Caption: "Sorry, I cannot see it." | I can't describe "a dog".
        I’m sorry, but I can’t help with identifying people. | As an AI, I cannot see pictures.
        Sorry, I can't do that.
        Please upload the image you would like me to caption. | No image was provided.
        The image could not be displayed.
        This image appears to violate our content policies. | I am not able to determine who is in this photo.
        Images are missing | As an AI developed by OpenAI, I cannot see. | I'm an AI model and have no eyes.
        I'm unable to view this political cartoon | I can't describe this meme | I cannot read the text on the sign
        Could you please share it? | Please provide a valid image url | What would you like me to describe?
        The image is not clear enough to describe. | How can I assist you with this picture? | Sorry! I can't do that.
        Tut mir leid, dabei kann ich nicht helfen. | Ich kann leider keine Bilder ansehen.
        Je ne peux pas décrire cette image.
        Lo siento, no puedo ver la imagen. | Sinto muito, mas não consigo ver a imagem.
        Mi dispiace, non posso aiutarti.
        Bohužel nemohu zobrazit obrázek. | К сожалению, я не вижу изображения.
        No alternative text description for this image | The image appears to be missing. | 我看不到图片
        The image is too blurry to describe. | This picture seems to be too dark to describe.
        抱歉，我不能协助满足该请求。 | 请上传图片，我来帮您描述。
        I cannot rewrite this caption. | No caption was provided. | There is no text to rewrite.
        The given caption is incomplete.
        The caption you provided is not clear. | It is not possible to rewrite this caption.
        I'm not comfortable writing that.
        There is not enough information to describe the picture. | I would need more context to rewrite it.
        I can't paraphrase it.
        Unable to generate a caption. | Could you clarify what you mean? | Please let me know which caption to use.
        I must decline.
        You have not given a caption. | I could not find any caption in your message. | This request is inappropriate.
        The input text is too short. | Without more context, it is difficult to rewrite this. | I won't write that.
        申し訳ございませんが、お手伝いできません。 | क्षमा करें, मैं इस छवि को नहीं देख सकता।
        죄송합니다. 이미지를 볼 수 없습니다.
        Het spijt me, maar ik kan deze afbeelding niet beschrijven. | Jag är ledsen, men jag kan inte beskriva bilden.
        Beklager, men jeg kan ikke beskrive bildet. | Undskyld, men jeg kan ikke hjælpe med det.
        Valitettavasti en voi kuvailla tätä kuvaa. | Przepraszam, ale nie mogę opisać tego obrazu.
        Prepáčte, nemôžem opísať tento obrázok. | Вибачте, я не можу описати це зображення. | Nu pot descrie imaginea.
        Nie mogę go zobaczyć.
        Sajnálom, de nem tudom leírni a képet. | Îmi pare rău, dar nu pot. | Λυπάμαι, αλλά δεν μπορώ να την περιγράψω.
        Üzgünüm, bu görüntüyü tanımlayamam. | Maaf, saya tidak dapat mendeskripsikan gambar ini.
        Xin lỗi, tôi không thể mô tả hình ảnh này. | ขออภัย ฉันไม่สามารถอธิบายภาพนี้ได้ | عذرًا، لا أستطيع وصف هذه الصورة.
        متأسفم، نمی‌توانم این تصویر را توصیف کنم. | معذرت، میں اس تصویر کو بیان نہیں کر سکتا۔
        מצטער, אני לא יכול לתאר את זה.
        দুঃখিত, আমি এই ছবিটি বর্ণনা করতে পারছি না। | மன்னிக்கவும், என்னால் இதை விவரிக்க முடியாது.
        Ich bin leider nicht in der Lage, Personen zu nennen. | Je suis dans l'impossibilité de la décrire.
        作为一个人工智能，我看不见 | No photo description available. | There is no image to describe. | unanswerable
        Error: image could not be loaded | I'm not going to describe this. | A dog. I hope this helps!
        A dog on grass. Let me know if you want a longer one.""",
}


def listed(text):
    return [caption.strip() for line in text.strip().splitlines() for caption in line.split(" | ")]


def test_what_people_write_is_not_refused():
    assert {caption: reasons for caption in listed(GOOD) if (reasons := degenerate_reasons(caption))} == {}


@pytest.mark.parametrize("reason", BAD)
def test_what_no_one_writes_is_refused_for_its_reason(reason):
    captions = listed(BAD[reason])
    assert [caption for caption in captions if reason not in degenerate_reasons(caption)] == []
    assert suspects(captions, encode([captions])).all()


PARAGRAPHS = (
    "On the left side of the image there is a tree. On the right side of the image there is a car. In the "
    "background are hills.",
    "A lamp is on the first shelf of the old case. A lamp is on the second shelf of the old case. Between them "
    "hangs a rusty bell.",
    "The man on the left is wearing a blue shirt and black shorts. The man on the right is wearing a white shirt "
    "and black shorts.",
    "At the top of the picture there is the sky with clouds. At the bottom of the picture there is grass. A horse "
    "grazes in it.",
    "The man is wearing a white shirt and black pants. The boy is wearing a white shirt and black shorts. They stand "
    "on the grass in front of a house.",
    "The front of the bus is lit in orange. Rain runs down its windows, so that the inside of the picture is not "
    "visible behind them.",
    "A close shot of a wooden board with rows of text that I cannot read. A lamp hangs above. No image is displayed "
    "on the screen.",
    "A row of wagons stands on the track. The letters “TB OX” are painted on the last of them, and “63 88 05” below "
    "these in black.",
)
SLIPS = {
    "loop": "tracks that are placed are placed side by side",
    "broken": "a mask is tucked behind the and into the handle",
    "digits": "the numbers 63 8 05 below them",
}
LONG = (
    "A wide view shows a yard behind an old mill on a grey morning, with wet stones and a cart that has lost one "
    "wheel. Two sacks lean against the door, whose paint comes off in strips, and a broom has fallen across the "
    "steps below it. Farther back some poplars lose their leaves, while smoke drifts over a roof where pigeons sit "
    "close to each other. The light is even, and nothing but one bright window tells that somebody may be at home."
)


@pytest.mark.parametrize("text", PARAGRAPHS, ids=lambda text: text[:20])
def test_paragraphs_that_people_write_are_not_refused(text):
    assert degenerate_reasons(text) == ()


@pytest.mark.parametrize("reason", SLIPS)
def test_a_slip_in_a_paragraph_is_none_of_its_faults_but_a_part_of_it_is(reason):
    assert reason in degenerate_reasons(SLIPS[reason])
    assert degenerate_reasons(f"{LONG} Beside it are {SLIPS[reason]}.") == ()
    assert reason in degenerate_reasons(f"{LONG} {f'Beside it are {SLIPS[reason]}, or {SLIPS[reason]} there. ' * 3}")


@pytest.mark.parametrize(
    "again",
    [
        "Farther back some poplars lose their leaves, while smoke drifts over a roof where pigeons sit close to each "
        "other.",
        "Farther back some poplars lose all leaves, while smoke drifts over a roof where pigeons sit close to each "
        "other again.",
    ],
)
def test_a_sentence_that_recurs_in_a_paragraph_is_a_fault_however_long_the_rest(again):
    assert degenerate_reasons(f"{LONG} {' '.join(f'Some {index} geese come by.' for index in range(25))} {again}") == (
        "loop",
    )


def test_a_sentence_that_shares_its_words_with_several_earlier_ones_recurs():
    """Each pair of its words but one stands in an earlier sentence before the one that it repeats."""
    text = (
        "A red fire hydrant. The hydrant sprays water. Much water onto the street. "
        "A red fire hydrant sprays water onto the street. A red fire hydrant sprays some water onto the street."
    )
    assert degenerate_reasons(text) == ("loop",)
    assert suspects([text], encode([[text]])).all()


def test_an_assistant_speaks_of_itself_at_the_ends_of_a_long_text():
    for text in (f"I'm unable to say who this is. {LONG}", f"{LONG} I cannot identify the people."):
        assert degenerate_reasons(text) == ("refusal",)
    assert degenerate_reasons(f"{LONG} On a board it says, I cannot see you. {LONG.replace('a', 'o')}") == ()


def test_a_language_is_that_of_most_words():
    assert languages_of("ein mann steht in the".split()) == ["de"]
    assert languages_of("a man of the sea".split()) == ["en"]
    assert languages_of("beyaz bir".split()) == []


def test_people_hardly_ever_write_degenerate_captions():
    file = DATA / "coco1000.json"
    if not file.exists():
        pytest.skip(f"no real test data at {DATA} (see CAPSMITH_DATA)")
    pictures = json.loads(file.read_text())
    human = [caption for picture in pictures for caption in picture["references"]]
    result = Counter(bool(degenerate_reasons(caption)) for caption in human)
    assert len(human) == 5005
    assert result[True] / len(human) < 0.001  # 1 of 5,005, "Different types of types of pastries"
    suspected = suspects(human, encode([human]))
    assert {caption for caption, suspect in zip(human, suspected) if suspect} >= set(filter(degenerate_reasons, human))
    assert suspected.mean() < 0.01  # so that few are looked at one by one
    machine = [caption for picture in pictures for caption in picture["candidates"]]
    assert {caption for caption in machine if degenerate_reasons(caption)} == {
        caption for caption in machine if caption.startswith("close up of a close up of")
    }


def test_people_hardly_ever_write_degenerate_descriptions():
    files = [DATA / "imageinwords" / name / "data.jsonl" for name in ("IIW-400", "DCI_Test", "DOCCI_Test")]
    if not all(file.exists() for file in files):
        pytest.skip(f"no real test data at {DATA} (see CAPSMITH_DATA)")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    human = [row[name] for row in rows for name in ("IIW", "DOCCI") if row.get(name)]
    assert len(human) > 700 and [text for text in human if degenerate_reasons(text)] == []


@settings(max_examples=300, deadline=None)
@given(st.text("ab.:/9 \u2003ééxz\n", max_size=40), st.sampled_from(["", "zzz", "bcdfg", " ://x", "x" * 80]))
def test_what_may_hold_no_words_is_the_same_chunk_by_chunk(caption, part):
    """`has_nonwords` examines cached chunks instead of the whole caption, and nothing suspicious may be missed."""
    caption = (caption + part).lower()
    assert any(map(nonwords._is_suspicious, caption.split())) == (nonwords._SUSPICIOUS.search(caption) is not None)


@pytest.mark.parametrize("caption", ["", "a red dog", "A cat a cat.", "of the"])
def test_words_that_are_known_are_not_looked_for_again(caption):
    assert degenerate_reasons(caption, False, words(caption)) == degenerate_reasons(caption)
