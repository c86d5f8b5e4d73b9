"""SINK: rows -> Parquet shards, and what stands beside them: categories, manifest, card, checks."""
