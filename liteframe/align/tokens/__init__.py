"""An encoder's tokens on disk (liteframe.training.cache says how): encode once, align many times.

A clip is what is shown of one video or image in one epoch. Beside the settings lies media.jsonl, which says which those
are. The one split is "media", in K views; view k of a medium is what a live run would draw of it in epoch k.
"""
