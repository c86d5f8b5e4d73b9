"""The parts of a CLIP model that explainers use, and open_clip's answer to it.

    config, description   how a model is named; everything about it but the numbers in its weights
    describe              the one into the other, checked, by `checkpoints/` and `catalog`
    module, load          a description -> open_clip's module -> a `clip.ClipModel`
    clip, text_encoder    the model as explainers use it; its function that embeds texts
    text_cache            embeddings of texts in one table, each text once
    tokenizer             words of a text to the numbers of tokens
    vocabulary            which file holds a model's vocabulary
    families, vocabularies  licences and languages of weights; text limits, memory of words
    hub, device           downloads; the device, its precisions and copies to it
    towers/plan           the kind of an image tower, by its configuration alone
    towers/from_open_clip a tower of open_clip, `from_timm` of timm -> `vision`, `text`, `pooled`
    towers/folding        batch norms as part of convolutions, in a copy
    towers/tower          what all image towers have, of `layers` and `trunk`; `dense` features

Undocumented parts of open_clip and torch are in use. `tests/architecture/test_private_apis.py`
lists them, and fails when one changes.
"""
