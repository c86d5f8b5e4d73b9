import pytest

from phrasebox.stages.phrases.filters import make_readable, word_lists
from phrasebox.stages.phrases.languages.en import ENGLISH
from phrasebox.stages.phrases.noun_phrases import extract

LISTS = word_lists()


def phrases_of(nlp, caption: str, **settings) -> str:
    """The phrases as "words:head | words:head*", the star for a plural; captions are as the parser gets them."""
    assert make_readable(caption).text == caption
    phrases = extract(nlp(caption), LISTS, ENGLISH, **settings)
    return " | ".join(
        f"{caption[each.start : each.end]}:{each.head}{'*' * each.plural}" for each in phrases
    )


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        # plain phrases
        ("A dog runs on the beach.", "A dog:dog | the beach:beach"),
        ("Two men and three children", "Two men:man* | three children:child*"),
        ("two sheep", "two sheep:sheep*"),
        ("dog", "dog:dog"),
        ("man riding horse", "man:man | horse:horse"),
        ("a red car next to a small blue fish", "a red car:car | a small blue fish:fish"),
        ("three yellow stars above two green buses", "three yellow stars:star* | two green buses:bus*"),
        ("his dog's bowl", "his dog's bowl:bowl"),
        ("A black and white cat on a couch.", "A black and white cat:cat | a couch:couch"),
        ("A young, bearded man with a hat.", "A young, bearded man:man | a hat:hat"),
        ("toilet, sink and bathtub", "toilet:toilet | sink:sink | bathtub:bathtub"),
        # quantities keep their complement, the head is what is counted
        ("a group of friends", "a group of friends:friend*"),
        ("a pair of shoes", "a pair of shoes:shoe*"),
        ("a pair of jeans", "a pair of jeans:jeans"),
        ("They sell some kind of jelly.", "some kind of jelly:jelly"),
        ("A couple of dogs play.", "A couple of dogs:dog*"),
        ("a bunch of bananas", "a bunch of bananas:banana*"),
        ("a piece of cake", "a piece of cake:cake"),
        ("A couple dances.", "A couple:couple*"),
        # a vessel is a thing itself
        ("two glasses of wine", "two glasses of wine:glass*"),
        ("a cup of coffee", "a cup of coffee:cup"),
        ("the roof of a house", "the roof of a house:roof"),
        ("She holds one of her hands.", "one of her hands:hand"),
        ("He feeds two of the dogs.", "two of the dogs:dog*"),
        # frames: only the complement is in the picture
        ("A picture of a dog.", "a dog:dog"),
        ("a cat in front of the house", "a cat:cat | the house:house"),
        ("the front of the house", "the house:house"),
        ("the side of a building", "a building:building"),
        ("A bird on top of a pole.", "A bird:bird | a pole:pole"),
        ("a close-up of a t-shirt", "a t-shirt:t-shirt"),
        ("a photo of the front of a house", "a house:house"),
        ("a key to the left of a heart", "a key:key | a heart:heart"),
        ("A man in a pink top.", "A man:man | a pink top:top"),
        ("Rain falls on her back.", "Rain:rain | her back:back"),
        ("a stock photo", ""),
        # no thing in the picture
        ("A tree in the background.", "A tree:tree"),
        ("It was a time of freedom and love.", ""),
        ("He looks at them and they look at it.", ""),
        ("A boy jumps in the air.", "A boy:boy"),
        ("A girl smiles at the camera.", "A girl:girl"),
        ("A girl holds a camera.", "A girl:girl | a camera:camera"),
        ("Three of them are on it.", ""),
        ("a group of them", ""),
        ("the hat of him", "the hat:hat"),
        ("2019", ""),
        ("nikon d90", ""),
        ("a way through a parking lot", "a parking lot:lot"),
        # plural in form, one thing
        ("A woman in sunglasses and shorts.", "A woman:woman | sunglasses:sunglasses | shorts:shorts"),
        # what misleads the parser
        ("A man in a red hat talks to a dog.", "A man:man | a red hat:hat | a dog:dog"),
        ("They practice on a trampoline.", "a trampoline:trampoline"),
        ("A person surfs in the ocean.", "A person:person | the ocean:ocean"),
        # plurals that the tagger takes for names or singulars; names stay
        ("Dogs chase each other", "Dogs:dog*"),
        ("Two women in bikinis play.", "Two women:woman* | bikinis:bikini*"),
        ("Two West Highland Terriers sleep.", "Two West Highland Terriers:terrier*"),
        ("James visits the United States.", "James:james | the United States:states"),
        # a colour is clothing where it is worn, the colour of the noun behind it, a fruit, or nothing
        ("A man in black.", "A man:man | black:clothing"),
        ("a man in black walks by", "a man:man | black:clothing"),
        ("people dressed in red and white", "people:people* | red and white:clothing"),
        ("A person in navy blue sits down.", "A person:person | navy blue:clothing"),
        ("a dog with brown on his face", "a dog:dog | his face:face"),
        ("Two dogs, one brown and one black, run.", "Two dogs:dog*"),
        ("The tan and white dog is running.", "The tan and white dog:dog"),
        (
            "a bright green and pink Frisbee in a field",
            "a bright green and pink Frisbee:frisbee | a field:field",
        ),
        ("She eats an orange.", "an orange:orange"),
        # words about the picture
        ("Her posture shows much preparation.", ""),
        ("The main subject is a cat.", "a cat:cat"),
        ("Boy in a yellow raincoat", "Boy:boy | a yellow raincoat:raincoat"),
        ("A man with a tattoo on his arm.", "A man:man | a tattoo:tattoo | his arm:arm"),
        ("Ice skaters with their arms out.", "Ice skaters:skater* | their arms:arm*"),
        ("A girl standing next to glass bottles.", "A girl:girl | glass bottles:bottle*"),
        ("kids jump on a mini-trampoline.", "kids:kid* | a mini-trampoline:mini-trampoline"),
        ("two women walk hand-in-hand", "two women:woman*"),
        ("the number 8 on a jersey", "the number 8:number | a jersey:jersey"),
        ("man wearing a long-sleeved, checked shirt", "man:man | a long-sleeved, checked shirt:shirt"),
        ("hot dog stand in New York City", "hot dog stand:stand | New York City:city"),
        ("Slightly overweight women in bikinis", "Slightly overweight women:woman* | bikinis:bikini*"),
        ("a grid of suspended wires", "a grid of suspended wires:grid"),
        ("Someone plays on a chalked out grid", "a chalked out grid:grid"),
        ("A child waits while holding two ropes", "A child:child | two ropes:rope*"),
        ("girls in matching pink and white shirts", "girls:girl* | matching pink and white shirts:shirt*"),
        ("a cat wearing black socks", "a cat:cat | black socks:sock*"),
        ("a dog running fast in an ice skating rink", "a dog:dog | an ice skating rink:rink"),
    ],
)
def test_phrases(nlp, caption, expected):
    assert phrases_of(nlp, caption) == expected


def test_parts_are_kept_on_request(nlp):
    for caption, expected in (
        ("the side of a building", "the side of a building:building"),
        ("a piece of the side of a bridge", "a piece of the side of a bridge:bridge"),
        ("A bird on top of a pole.", "A bird:bird | a pole:pole"),
    ):
        assert phrases_of(nlp, caption, keep_parts=True) == expected


def test_a_list_of_words_is_no_phrase(nlp):
    assert extract(nlp("dog " * 200), LISTS, ENGLISH) == []


@pytest.mark.parametrize(
    ("caption", "settings", "heads"),
    [
        ("A dog lies on the ground.", {}, ["dog"]),
        ("A dog lies on the ground.", {"keep": ["ground"]}, ["dog", "ground"]),
        ("A dog lies on the ground.", {"add": ["dog"]}, []),
        # an entry with a preposition drops only bare nouns behind it
        ("A ball on the grass.", {"add": ["on grass"]}, ["ball"]),
        ("A ball on the wet grass beside the grass.", {"add": ["on grass"]}, ["ball", "grass", "grass"]),
    ],
)
def test_the_drop_list_can_be_changed(nlp, caption, settings, heads):
    assert [phrase.head for phrase in extract(nlp(caption), word_lists(**settings), ENGLISH)] == heads
