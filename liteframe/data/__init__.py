"""From a video file to a clip tensor: manifests, frame choice, decoding, transforms."""
