"""What a model is taught from the regions of a dataset: one file for each recipe, see `stages.finetune.RECIPES`."""
