"""The parts that all rooms share: records, their schema, errors, geometry, masks, and the base class of stages."""
