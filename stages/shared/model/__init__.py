"""The parts of a CLIP model that explainers use, and open_clip's answer to it.

    config, recognise     which model a configuration names, by the files in `checkpoints/` and by `catalog`, `weights/`
    load                  `usable_model` checks it before any work, `load` gives a `clip.ClipModel`
    clip, tokenizer       the model as explainers use it; embeddings of texts; places of tokens in a caption
    hub, device           downloads; the device, its precisions and copies to it
    towers/plan           the kind of an image tower, by its configuration alone
    towers/take_apart     a tower of open_clip (`take_apart_timm`: of timm) -> `vision`, `text`, or `pooled`
    towers/tower          what all image towers have; `layers` and `trunk` are their parts, `dense` is made of them

These parts of open_clip 3.3 and torch 2.13 are used without being documented. Each has a test in
`tests/architecture/test_private_apis.py` that fails when it changes; open_clip has an upper bound in pyproject.toml,
since a block that computes something else would give wrong heat maps without an error.

    what                                                              used in           if it changes
    open_clip.transformer: towers, blocks, attention and their        take_apart        wrong heat maps
        attributes; that no other attribute changes what they compute
    open_clip.modified_resnet.ModifiedResNet: its stages, `attnpool`  take_apart        wrong embeddings
        last; AttentionPool2d's projections and position embedding
    open_clip.timm_model.TimmModel: `trunk`, `head` and its `pool`;   take_apart_timm   wrong embeddings
        timm's attention pools, `patch_embed`, `dynamic_img_size`,
        `strict_img_size`, `_use_cached_embed`, `dynamic_mask`,
        `pool_include_prefix`
    open_clip.CLIP and TextTransformer: token_embedding,              take_apart        wrong text embeddings and
        positional_embedding, transformer.get_cast_dtype, attn_mask,                    importance of words
        ln_final, text_projection, text_pool_type, cls_emb, eos_id
    open_clip.CLIP(**model_cfg), open_clip.CustomTextCLIP(...),       load              own model files are rejected
        open_clip.model.convert_to_custom_text_state_dict
    open_clip.get_pretrained_cfg: mean, std, interpolation,           recognise, hub    images wrongly normalised,
        quick_gelu, hf_hub                                                              tags cannot be downloaded
    open_clip.tokenizer: SimpleTokenizer(bpe_path, context_length),   tokenizer         another vocabulary
        its encoder and bpe_ranks; HFTokenizer, get_clean_fn
    open_clip.tokenizer.SimpleTokenizer: clean_fn, pat, bpe,          tokenizer         words at wrong places
        byte_encoder, reduction_fn
    open_clip.timm_model.TimmModel: trunk and an empty head           load              SigLIP checkpoints are rejected
"""
