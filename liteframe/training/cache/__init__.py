"""A cache on disk of what a frozen network makes of clips, and of which clips: targets of CTD, tokens of LMA.

A clip is frames of one video that are stored together. A cache is a folder:

    settings.json            what its bytes follow from (a subclass of Settings)
    <small files>            what the kind of cache has beside them
    train-000-00000.safetensors, ...
                             shards: clips of one view, in their order; one that is there is whole
    bad_videos.jsonl         a row for each video that could not be read
    index.json               all digests, written last: a folder without it is not finished

The kinds are liteframe.distill.cache and liteframe.align.tokens.
"""
