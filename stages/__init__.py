"""The steps from a captioned image to a row of regions; no cluster, terminal or browser in here.

read      captions and image bytes of every sample, in pieces
phrases   noun phrases of the captions, with character spans
prepare   image bytes -> small RGB pixels in the model's input size
explain   one heat map per phrase
regions   heat map -> boxes, masks, scores
write     rows -> Parquet shards
"""
