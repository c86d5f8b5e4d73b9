"""STEP 1: captions -> noun phrases with character spans.

stage.py         the part that the pipeline calls: PhrasesConfig, PhrasesStage, other languages; `phrases_json`
noun_phrases.py  the spaCy pipeline, and which noun phrases of a parsed caption name a thing
parsed.py        a parsed caption as plain lists, and its noun phrases, repaired where captions mislead a small parser
filters.py       text only: the words that the parser sees, how texts are normalised
words.txt        the editable lists
"""
