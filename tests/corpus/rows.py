"""Bad captions, image locations and lines: name -> what is written, and what its row must say.

Values are written as JSON, bytes as they are. A new case is one line in one of the tables.
"""

from typing import Any

DEEP = b"[" * 100_000 + b"]" * 100_000

CAPTIONS: dict[str, tuple[Any, str]] = {  # Name -> `caption` of a row with a good image, and outcome
    "plain": ("a red square on a blue ground", "annotated"),
    "empty": ("", "no_caption"),
    "white space": (" \t\r\n\u00a0\u2003\u3000", "no_caption"),
    "zero-width space alone": ("\u200b\ufeff", "without phrases"),
    "100 kB": ("a red cat " * 10_000, "bad_caption"),
    "as long as allowed": (("a red cat and " * 1000)[:10_000], "annotated"),
    "emoji": ("\N{CAT FACE}\N{DOG FACE}", "without phrases"),
    "a family joined by zero-width joiners": (
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 in a park",
        "annotated",
    ),
    "right to left": (
        "\u05d7\u05ea\u05d5\u05dc \u05d0\u05d3\u05d5\u05dd \u05e2\u05dc \u05e1\u05e4\u05d4",
        "any row",
    ),
    "combining characters": ("a cafe\u0301 table and a nai\u0308ve cat", "annotated"),
    "two hundred accents on one letter": ("a cat" + "\u0301" * 200 + " on a sofa", "annotated"),
    "letters that grow when folded": ("the \u0130stanbul \ufb03 \u1e9e stra\u00dfe cat", "annotated"),
    "control characters": ("a red\x01\x02\x1b[31m cat\x7f on a sofa", "annotated"),
    "line ends": ("a red cat\r\n\n\non\u2028a\u2029sofa", "annotated"),
    "lone surrogate": (b'"a red \\ud83d cat"', "bad_caption"),
    "html": ("<p>a <b>red</b> cat &amp; a dog<br/></p><script>alert(1)</script>", "annotated"),
    "no noun": ("beautiful!", "without phrases"),
    "500 nouns": (", ".join(f"a red cat{number}" for number in range(500)), "annotated"),
    "brackets 4000 deep": ("(" * 4000 + "cat" + ")" * 4000, "any row"),
    "null": (None, "no_caption"),
    "a number": (7, "bad_caption"),
    "an empty list": ([], "no_caption"),
    "a list": (["a red cat", "a dog"], "annotated"),
    "a list with an empty one": (["", "a red cat"], "annotated"),
    "a list of empty ones": (["", " "], "no_caption"),
    "a list with null": (["a red cat", None], "annotated"),
    "a list in a list": ([["a red cat"]], "bad_caption"),
}

LOCATIONS: dict[str, tuple[Any, str]] = {  # Name -> `image` of a row with a good caption, and outcome
    "missing": ("missing.jpg", "missing_image"),
    "a folder of the root": (".", "bad_location"),
    "parent": ("..", "bad_location"),
    "there and back": ("a/../plain.jpg", "annotated"),
    "absolute": ("/etc/passwd", "bad_location"),
    "backslashes": ("..\\..\\etc\\passwd", "missing_image"),
    "http": ("http://example.org/a.jpg", "bad_location"),
    "chained": ("zip://a.jpg::http://example.org/a.zip", "bad_location"),
    "empty": ("", "bad_row"),
    "NUL": ("a\0.jpg", "bad_location"),
    "lone surrogate": (b'"a\\udc80.jpg"', "bad_location"),
    "null": (None, "bad_row"),
    "a number": (7, "bad_row"),
}

GOOD_ROW = b'{"image": "plain.jpg", "caption": "a red square"'

LINES: dict[str, tuple[bytes, str]] = {  # Name -> a line of a jsonl file, and outcome
    "not closed": (GOOD_ROW, "bad_row"),
    "a list": (b'["plain.jpg", "a red square"]', "bad_row"),
    "null": (b"null", "bad_row"),
    "an empty object": (b"{}", "bad_row"),
    "Latin-1": (b'{"image": "plain.jpg", "caption": "caf\xe9"}', "bad_row"),
    "a control character in a text": (b'{"image": "plain.jpg", "caption": "a\tcat"}', "bad_row"),
    "nested 100,000 deep": (GOOD_ROW + b', "x": ' + DEEP + b"}", "bad_row"),
    "a number of 10,000 digits": (
        GOOD_ROW + b', "x": ' + b"1" * 10_000 + b"}",
        "bad_row",
    ),
    "a number beyond all bounds": (GOOD_ROW + b', "x": 1e999}', "annotated"),
    "of 17 MB": (GOOD_ROW + b', "x": "' + b"x" * 17_000_000 + b'"}', "bad_row"),
    "id empty": (GOOD_ROW + b', "id": ""}', "bad_row"),
    "id a fraction": (GOOD_ROW + b', "id": 1.5}', "bad_row"),
    "id with line ends and colours": (GOOD_ROW + b', "id": "a\\n\\u001b[31mb"}', "annotated"),
    "id a lone surrogate": (GOOD_ROW + b', "id": "\\ud800"}', "bad_row"),
}
