"""Languages of captions: other ones are found, and English is not taken for one."""

from phrasebox.stages.phrases.filters import make_readable
from phrasebox.stages.phrases.recognition import foreign_language

FOREIGN = {
    "de": [
        "Zwei Kinder spielen im Sand am Strand.",
        "Ein Hund im Schnee",
        "<b>Mehrere Menschen</b> sitzen an einem Tisch",
    ],
    "fr": ["Deux enfants jouent sur une planche a roulettes dans une cour", "un chien dans la neige"],
    "es": ["Una mujer con un vestido rojo camina por la calle.", "perro en la nieve"],
    "it": ["Un gruppo di persone è seduto attorno a un tavolo.", "un cane nella neve"],
    "pt": ["Um menino segura uma bola vermelha.", "um cachorro na neve"],
    "nl": ["Een groep mensen zit rond een tafel.", "hond in de sneeuw"],
    "pl": ["Dwa psy biegną po śniegu."],
    "tr": ["Bir adam dağda bisiklet sürüyor."],
    "vi": ["Hai con chó đang chạy trên tuyết."],
    "zh": ["两只狗在雪地里奔跑。", "一只猫"],
    "ja": ["二匹の犬が雪の中を走っている。"],
    "ko": ["두 마리의 개가 눈 속을 달리고 있다."],
    "ar": ["كلبان يركضان في الثلج."],
    "el": ["Δύο σκυλιά τρέχουν στο χιόνι."],
}

ENGLISH = [
    "", " ", "7", "...", "dog", "A skier", "graffiti", "a café", "Paris, France", "Audi A4 Avant", "IMG_1234.jpg",
    "Two skateboarding men in midair", "A man in a kimono and a samurai sword", "CHAMPIONS LEAGUE FINAL",
    "2019 BMW X5 xDrive40i", "El Capitan, Yosemite National Park", "sunset beach Bali Indonesia",
    "portrait of Johann Sebastian Bach", "a sign that says 'Willkommen' above a red door",
    "<p>a plate of spaghetti</p>", "https://www.beispiel.de/ein-hund-im-schnee.html a dog",
    "\U0001f436\U0001f436 cute dog",
]  # fmt: skip


def test_other_languages_are_found_and_english_is_none_of_them() -> None:
    expected = {
        caption: code for code, captions in FOREIGN.items() for caption in captions
    } | dict.fromkeys(ENGLISH)
    assert {
        caption: foreign_language(make_readable(caption).text, "en") for caption in expected
    } == expected


def test_of_a_parser_of_an_unknown_language_nothing_is_said() -> None:
    assert foreign_language("Ein Hund im Schnee", "xx") is None
    captions = ["Ein Hund im Schnee", "A dog is running in the snow."]
    assert [foreign_language(caption, "de") for caption in captions] == [None, "en"]
