"""Step 1: captions -> noun phrases with character spans.

`stage` is the part that the pipeline calls. `filters` decides on the text alone, by the
editable lists of `words.txt`. `recognition` says in which language a caption is, and `parsers`
parses it by the spaCy package of its language, which `pipelines` loads.

`noun_phrases` takes the noun phrases that name an object. `languages` has what is different in
each language, as tables. In English `base_phrases` finds them by parts of speech, and `repairs` mends
them where captions mislead the tagger; in other languages with tables `groups_of_words` makes them
of parts of speech, which `french_words` corrects. `precomputed` reads phrases from before a run.

`groups` links the phrases of an image that name one object, with the fitted weights of
`groups.json`; `mentions` does so within a caption. `wording` and `nouns`, with the lists of
`nouns.txt`, say what words tell of an object. `foreign` draws phrases of other images that an
image is asked for.
"""
