"""The sink: rows become Parquet shards. Beside them come the table of phrases, the dataset card, and the checks."""
