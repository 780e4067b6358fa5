"""From a file to frames: manifests, media, published data sets; knows no model and no trainer."""
