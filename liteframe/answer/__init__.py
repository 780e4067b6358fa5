"""Questions about videos: a session that videos are added to and asked, what it remembers, `ask`, `encode_video`."""
