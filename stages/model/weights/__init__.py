"""Model weights that phrasebox knows by name: what they are, and where their files lie, verified.

The embedded model is `demo`: `stages/model/weights/demo/` with `model.json` (open_clip's `model_cfg` and
`preprocess_cfg`), `model.safetensors` (fp16 state dict of `open_clip.CLIP`), `bpe_vocab.txt.gz` (merges for
`open_clip.tokenizer.SimpleTokenizer`) and `MODEL_CARD.md`. Without phrasebox it loads like this, from that
folder:

    settings = json.load(open("model.json"))["model_cfg"]
    model = open_clip.CLIP(**settings).eval()
    model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
    tokenizer = SimpleTokenizer(bpe_path="bpe_vocab.txt.gz",
    context_length=settings["text_cfg"]["context_length"])
"""
