"""What a model is taught from the regions of a dataset: one file for each recipe, see `pipeline.finetune.RECIPES`."""
