"""Step 1: captions -> noun phrases with character spans.

`stage` is the part that the pipeline calls. `filters` decides on the text alone, by the
editable lists of `words.txt`. `noun_phrases` loads the parser and takes the noun phrases that
name an object; `repairs` mends them where captions mislead a small parser. `precomputed` reads
phrases from before a run.

`groups` links the phrases of an image that name one object, with the fitted weights of
`groups.json`; `mentions` does so within a caption. `wording` and `nouns`, with the lists of
`nouns.txt`, say what words tell of an object. `foreign` draws phrases of other images that an
image is asked for.
"""
