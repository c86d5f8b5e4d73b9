"""Loaders that feed a dataset to training: samples one by one, by number, and in batches.

This fine-tunes CLIP on the regions, each as the mean of its patches, against the phrases of the
batch:

    import open_clip
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader

    from phrasebox.pipeline.load import Contents, RegionStream, collate_regions


    def train(folder, model, tokenizer, epochs, batch_size, learning_rate=1e-5):
        side, grid = model.visual.image_size[0], model.visual.grid_size
        contents = Contents(square_px=side, grid_hw=grid, tokenizer=tokenizer)
        stream = RegionStream(folder, contents, precision=0.7, even="drop")
        loader = DataLoader(
            stream, batch_size, collate_fn=collate_regions, num_workers=2, persistent_workers=True)
        mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
        std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
        optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
        model.train().visual.output_tokens = True
        for epoch in range(epochs):
            stream.set_epoch(epoch)
            for batch in loader:
                _, patches = model.visual((batch["images"] / 255 - mean) / std)
                patches = (patches @ model.visual.proj)[batch["batch_indices"]]  # (regions, cells, E)
                shares = batch["grid_masks"].flatten(1)  # (regions, cells)
                regions = F.normalize(torch.einsum("rc,rce->re", shares, patches), dim=-1)
                texts = model.encode_text(batch["tokens"], normalize=True)  # (phrases, E)
                logits = model.logit_scale.exp() * regions @ texts.T
                loss = F.cross_entropy(logits, batch["phrase_indices"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                yield loss.item()

`model` and `tokenizer` are open_clip's: `open_clip.create_model("ViT-B-16",
pretrained="laion2b_s34b_b88k")` and `open_clip.get_tokenizer("ViT-B-16")`.
"""

from phrasebox.pipeline.load.datasets import RegionDataset, RegionStream
from phrasebox.pipeline.load.sample import Contents, collate_regions

__all__ = ["Contents", "RegionDataset", "RegionStream", "collate_regions"]
