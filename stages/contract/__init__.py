"""What all rooms share: records, their schema, errors, geometry, masks, and what a stage is."""
