"""Short documents in the likeness of three languages: sentences by small grammars, the same at every call.

As in real texts, a document keeps to a few people and things, and a person to a few habits: what somebody does, when
and where can be foretold from who it is, over the words between. Without such ties pairs of tokens say all there is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

SPANISH_THINGS = (
    "la casa", "la mesa", "la carta", "la ventana", "la puerta", "la flor", "la barca", "la calle", "la canción",
    "la guitarra", "la manzana", "la silla", "el libro", "el camino", "el árbol", "el río", "el jardín", "el caballo",
    "el pan", "el reloj", "el sombrero", "el tren", "el puente", "el barco", "el espejo", "el cuaderno",
)  # fmt: skip
SPANISH_VERBS = ("mira", "busca", "encuentra", "compra", "vende", "pinta", "recuerda", "deja", "lleva", "guarda")
SPANISH_ENDS = (
    "por la mañana", "por la tarde", "antes de cenar", "después de la lluvia", "cuando llega el invierno",
    "sin decir nada", "con mucho cuidado", "como todos los días", "junto a la iglesia", "en la plaza mayor",
)  # fmt: skip
SPANISH_PEOPLE = ("mi abuela", "el panadero", "la maestra", "su hermano", "el niño", "la vecina", "el médico")

CHINESE_THINGS = (
    "书",
    "信",
    "花",
    "苹果",
    "椅子",
    "窗户",
    "帽子",
    "自行车",
    "米饭",
    "茶杯",
    "雨伞",
    "报纸",
    "钥匙",
    "面包",
    "照片",
    "毛衣",
)
CHINESE_VERBS = ("看见", "买了", "卖掉", "找到", "喜欢", "忘记", "带来", "打开", "收拾", "想起")
CHINESE_TIMES = ("今天早上", "昨天晚上", "下雨以后", "吃饭以前", "到了冬天", "每个星期天", "放学以后", "天亮的时候")
CHINESE_PLACES = ("在公园里", "在学校门口", "在河边", "在火车站", "在厨房里", "在图书馆", "在老房子里", "在市场上")
CHINESE_PEOPLE = ("奶奶", "老师", "弟弟", "邻居", "医生", "小朋友", "司机")

HINDI_THINGS = (
    "किताब",
    "चिट्ठी",
    "खिड़की",
    "कुर्सी",
    "रोटी",
    "घड़ी",
    "छतरी",
    "तस्वीर",
    "चाबी",
    "साइकिल",
    "टोपी",
    "चाय",
    "मिठाई",
)
HINDI_VERBS = ("देखती है", "खरीदती है", "बेचती है", "ढूँढती है", "भूल जाती है", "ले आती है", "खोलती है", "रख देती है")
HINDI_TIMES = ("सुबह", "शाम को", "बारिश के बाद", "खाने से पहले", "सर्दियों में", "हर रविवार को", "रात में")
HINDI_PLACES = ("बाग़ में", "स्कूल के पास", "नदी के किनारे", "स्टेशन पर", "रसोई में", "बाज़ार में", "पुराने घर में")
HINDI_PEOPLE = ("मेरी दादी", "अध्यापिका", "उसकी बहन", "पड़ोसन", "छोटी लड़की", "डॉक्टरनी")


def habit(rng: random.Random, who: str, choices: Sequence[str]) -> str:
    """Return one of the three choices that a person keeps to."""
    return rng.choice(random.Random(f"{who} {choices[0]}").sample(choices, 3))


def spanish(rng: random.Random, people: Sequence[str], things: Sequence[str]) -> str:
    who, what, form = rng.choice(people), rng.choice(things), rng.randrange(3)
    verb, end = habit(rng, who, SPANISH_VERBS), habit(rng, who, SPANISH_ENDS)
    if form == 0:
        return f"{who.capitalize()} {verb} {what} {end}."
    if form == 1:
        return f"{end.capitalize()}, {who} {verb} {what} y {habit(rng, who, SPANISH_VERBS)} {rng.choice(things)}."
    return f"{what.capitalize()} de {who} no está donde siempre, dice {rng.choice(people)}."


def chinese(rng: random.Random, people: Sequence[str], things: Sequence[str]) -> str:
    who, what, form = rng.choice(people), rng.choice(things), rng.randrange(3)
    verb, time, place = (habit(rng, who, choices) for choices in (CHINESE_VERBS, CHINESE_TIMES, CHINESE_PLACES))
    if form == 0:
        return f"{time}，{who}{place}{verb}{what}。"
    if form == 1:
        other = rng.choice(people)
        return f"{who}{verb}{what}，因为{other}也{habit(rng, other, CHINESE_VERBS)}{rng.choice(things)}。"
    return f"{rng.choice(people)}说，{who}的{what}不见了，要{place}再找一找。"


def hindi(rng: random.Random, people: Sequence[str], things: Sequence[str]) -> str:
    who, what, form = rng.choice(people), rng.choice(things), rng.randrange(3)
    verb, time, place = (habit(rng, who, choices) for choices in (HINDI_VERBS, HINDI_TIMES, HINDI_PLACES))
    if form == 0:
        return f"{who} {time} {place} {what} {verb}।"
    if form == 1:
        return f"{time} {who} {what} और {rng.choice(things)} {verb}।"
    return f"{rng.choice(people)} कहती है कि {who} की {what} {place} नहीं मिली।"


Grammar = Callable[[random.Random, Sequence[str], Sequence[str]], str]
GRAMMARS: dict[str, tuple[Grammar, Sequence[str], Sequence[str], str]] = {
    "spanish": (spanish, SPANISH_PEOPLE, SPANISH_THINGS, " "),
    "chinese": (chinese, CHINESE_PEOPLE, CHINESE_THINGS, ""),
    "hindi": (hindi, HINDI_PEOPLE, HINDI_THINGS, " "),
}


def documents(language: str, count: int, seed: int = 0) -> list[str]:
    """Return documents of four to ten sentences."""
    sentence, people, things, space = GRAMMARS[language]
    rng, found = random.Random(f"{language} {seed}"), []
    for _ in range(count):
        own_people, own_things = rng.sample(people, 2), rng.sample(things, 3)
        found.append(space.join(sentence(rng, own_people, own_things) for _ in range(rng.randint(4, 10))))
    return found
