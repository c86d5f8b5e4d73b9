"""STEP 1: captions -> noun phrases with character spans.

stage.py         what the pipeline calls: PhrasesConfig, PhrasesStage; `phrases_json` for the command line
parser.py        the spaCy pipeline that parses captions; no other module knows spaCy
languages.py     which captions are in another language than the parser's
noun_phrases.py  which noun phrases of a parsed caption name a thing
parsed.py        a parsed caption as plain lists, and its noun phrases, repaired where captions mislead a small parser
filters.py       text only: what the parser sees, how texts are normalised
words.txt        the editable lists
"""
