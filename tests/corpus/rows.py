"""Bad captions, image locations and lines: name -> what is written, and what its row must say.

Values are written as JSON, bytes as they are. A new case is one line in one of the tables.
"""

from typing import Any

from tests.corpus.pictures import ANNOTATED

WITHOUT_PHRASES = "without phrases"
DEEP = b"[" * 100_000 + b"]" * 100_000

CAPTIONS: dict[str, tuple[Any, str]] = {  # Name -> `caption` of a row with a good image, and outcome
    "plain": ("a red square on a blue ground", ANNOTATED),
    "empty": ("", "no_caption: all captions are empty"),
    "white space": (" \t\r\n\u00a0\u2003\u3000", "no_caption: all captions are empty"),
    "zero-width space alone": ("\u200b\ufeff", WITHOUT_PHRASES),
    "100 kB": ("a red cat " * 10_000, "bad_caption: phrases.max_caption_chars raises the limit"),
    "as long as allowed": (("a red cat and " * 1000)[:10_000], ANNOTATED),
    "9000 times a sign": ("!" * 9000, WITHOUT_PHRASES),
    "emoji": ("\N{CAT FACE}\N{DOG FACE}", WITHOUT_PHRASES),
    "a family joined by zero-width joiners": ("\U0001f468\u200d\U0001f469\u200d\U0001f467 in a park", ANNOTATED),
    "a word with a zero-width joiner": ("a red c\u200dat", ANNOTATED),
    "right to left": ("\u05d7\u05ea\u05d5\u05dc \u05d0\u05d3\u05d5\u05dd \u05e2\u05dc \u05e1\u05e4\u05d4", "any row"),
    "right-to-left override": ("a \u202eder\u202c cat", ANNOTATED),
    "Chinese": ("\u4e00\u53ea\u7ea2\u8272\u7684\u732b", "any row"),
    "German": ("ein roter Zw\u00f6lfender vor dem Stra\u00dfenschild", "any row"),
    "combining characters": ("a cafe\u0301 table and a nai\u0308ve cat", ANNOTATED),
    "two hundred accents on one letter": ("a cat" + "\u0301" * 200 + " on a sofa", ANNOTATED),
    "ligatures and full width": ("a \ufb01ne \uff52\uff45\uff44 \uff43\uff41\uff54", ANNOTATED),
    "letters that grow when folded": ("the \u0130stanbul \ufb03 \u1e9e stra\u00dfe cat", ANNOTATED),
    "control characters": ("a red\x01\x02\x1b[31m cat\x7f on a sofa", ANNOTATED),
    "line ends": ("a red cat\r\n\n\non\u2028a\u2029sofa", ANNOTATED),
    "not a character": ("a red cat \ufffe\uffff\ufdd0", ANNOTATED),
    "lone surrogate": (b'"a red \\ud83d cat"', "bad_caption: half of a surrogate pair"),
    "html": ("<p>a <b>red</b> cat &amp; a dog<br/></p><script>alert(1)</script>", ANNOTATED),
    "a formula": ("=HYPERLINK(\"http://x\")&'cat'", "any row"),
    "no noun": ("beautiful!", WITHOUT_PHRASES),
    "punctuation": ("... -- !!! ,;:", WITHOUT_PHRASES),
    "500 nouns": (", ".join(f"a red cat{number}" for number in range(500)), ANNOTATED),
    "the same noun 500 times": ("a cat and " * 500 + "a cat", ANNOTATED),
    "nested 400 deep": ("a cat " + "that saw a dog " * 400, ANNOTATED),
    "brackets 4000 deep": ("(" * 4000 + "cat" + ")" * 4000, "any row"),
    "capitals": ("A RED CAT ON A SOFA", ANNOTATED),
    "null": (None, "no_caption: the sample has no caption"),
    "a number": (7, "bad_caption: 'caption' holds a number, expected text"),
    "an object": ({"en": "a cat"}, "bad_caption: 'caption' holds an object, expected text"),
    "an empty list": ([], "no_caption: the sample has no caption"),
    "a list": (["a red cat", "a dog"], ANNOTATED),
    "a list with an empty one": (["", "a red cat"], ANNOTATED),
    "a list of empty ones": (["", " "], "no_caption: all captions are empty"),
    "a list with null": (["a red cat", None], ANNOTATED),
    "a list in a list": ([["a red cat"]], "bad_caption: 'caption' holds a list, expected text"),
    "a list of 300": ([f"a red cat number {number}" for number in range(300)], ANNOTATED),
}

LOCATIONS: dict[str, tuple[Any, str]] = {  # Name -> `image` of a row with a good caption, and outcome
    "missing": ("missing.jpg", "missing_image: 'missing.jpg' does not exist below the image root"),
    "below a file": ("plain.jpg/a.jpg", "missing_image: Not a directory"),
    "a folder of the root": (".", "bad_location: is the image root itself"),
    "parent": ("..", "bad_location: leaves the image root"),
    "there and back": ("a/../plain.jpg", ANNOTATED),
    "with dots and slashes": (".//./plain.jpg", ANNOTATED),
    "absolute": ("/etc/passwd", "bad_location: is not below the image root"),
    "backslashes": ("..\\..\\etc\\passwd", "missing_image: does not exist"),
    "of Windows": ("C:\\photos\\a.jpg", "missing_image: does not exist"),
    "http": ("http://example.org/a.jpg", "bad_location: is a URL; download images first"),
    "file": ("file:///etc/passwd", "bad_location: is a URL"),
    "data": ("data:image/png;base64,iVBORw0KGgo=", "bad_location: is a URL"),
    "chained": ("zip://a.jpg::http://example.org/a.zip", "bad_location: is a URL"),
    "empty": ("", "bad_row: the image path is empty"),
    "too long": ("n" * 300, "missing_image: File name too long"),
    "NUL": ("a\0.jpg", "bad_location: cannot be the name of a file"),
    "lone surrogate": (b'"a\\udc80.jpg"', "bad_location: cannot be the name of a file"),
    "null": (None, "bad_row: no image: expected the field 'image'"),
    "a number": (7, "bad_row: 'image' is a number, expected the path of an image"),
    "a list": (["plain.jpg"], "bad_row: 'image' is a list"),
    "an object": ({"path": "plain.jpg"}, "bad_row: 'image' is an object"),
}

GOOD_ROW = b'{"image": "plain.jpg", "caption": "a red square"'

LINES: dict[str, tuple[bytes, str]] = {  # Name -> a line of a jsonl file, and outcome
    "not closed": (GOOD_ROW, "bad_row: not JSON: "),
    "two objects": (GOOD_ROW + b"}" + GOOD_ROW + b"}", "bad_row: not JSON: Extra data"),
    "a list": (b'["plain.jpg", "a red square"]', "bad_row: expected a JSON object, got"),
    "null": (b"null", "bad_row: expected a JSON object, got 'null'"),
    "an empty object": (b"{}", "bad_row: the row has none"),
    "html": (b"<html><body>502 Bad Gateway</body></html>", "bad_row: not JSON: "),
    "NUL": (b"\0" * 100, "bad_row: not JSON: "),
    "Latin-1": (b'{"image": "plain.jpg", "caption": "caf\xe9"}', "bad_row: byte 38 is not UTF-8"),
    "surrogate in UTF-8": (b'{"image": "plain.jpg", "caption": "\xed\xa0\x80"}', "bad_row: is not UTF-8"),
    "a byte order mark in the middle": (b"\xef\xbb\xbf" + GOOD_ROW + b"}", "bad_row: not JSON: "),
    "a control character in a text": (b'{"image": "plain.jpg", "caption": "a\tcat"}', "bad_row: Invalid control"),
    "nested 100,000 deep": (GOOD_ROW + b', "x": ' + DEEP + b"}", "bad_row: not readable as JSON"),
    "a number of 10,000 digits": (
        GOOD_ROW + b', "x": ' + b"1" * 10_000 + b"}",
        "bad_row: not readable as JSON",
    ),
    "a number beyond all bounds": (GOOD_ROW + b', "x": 1e999}', ANNOTATED),
    "NaN and Infinity": (GOOD_ROW + b', "x": [NaN, Infinity, -Infinity]}', ANNOTATED),
    "a key twice": (b'{"image": "none.jpg", "image": "plain.jpg", "caption": "a red square"}', ANNOTATED),
    "a carriage return at its end": (GOOD_ROW + b"}\r", ANNOTATED),
    "white space around it": (b"  \t" + GOOD_ROW + b"}  ", ANNOTATED),
    "of 17 MB": (GOOD_ROW + b', "x": "' + b"x" * 17_000_000 + b'"}', "bad_row: more than the 16777216 that are read"),
    "100,000 keys": (GOOD_ROW + b"".join(b', "k%d": 1' % number for number in range(10**5)) + b"}", ANNOTATED),
    "id of a good row": (GOOD_ROW + b', "id": "good 0"}', "duplicate_id: an earlier sample has the id 'good 0'"),
    "id given first": (GOOD_ROW + b', "id": "twice"}', ANNOTATED),
    "id given again": (GOOD_ROW + b', "id": "twice"}', "duplicate_id: an earlier sample has the id 'twice'"),
    "id like a place": (GOOD_ROW + b', "id": "rows.jsonl:1"}', ANNOTATED),
    "id empty": (GOOD_ROW + b', "id": ""}', "bad_row: 'id' is empty"),
    "id a list": (GOOD_ROW + b', "id": [1]}', "bad_row: 'id' is a list, expected text or a whole number"),
    "id a fraction": (GOOD_ROW + b', "id": 1.5}', "bad_row: 'id' is a number, expected text or a whole number"),
    "id huge": (GOOD_ROW + b', "id": 123456789012345678901234567890}', ANNOTATED),
    "id with line ends and colours": (GOOD_ROW + b', "id": "a\\n\\u001b[31mb"}', ANNOTATED),
    "id a lone surrogate": (GOOD_ROW + b', "id": "\\ud800"}', "bad_row: 'id' holds half of a surrogate pair"),
}
