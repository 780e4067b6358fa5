"""A finished cache of an encoder's tokens, and the media of conversations out of it instead of out of their files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from liteframe.align.conversation_rows import Conversation, MediaItem
from liteframe.align.media import LoadedMedia, MediaKey
from liteframe.align.tokens.media_list import Key, MediaList, medium_key
from liteframe.align.tokens.settings import MEDIA, TokenSettings
from liteframe.data.video.errors import VideoError
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.training.cache.reader import Cache

EXAMPLES = 5


class TokenCache(Cache[TokenSettings]):
    """A finished cache of an encoder's tokens."""

    settings_class = TokenSettings

    @cached_property
    def media(self) -> MediaList:
        """Which videos and images it holds.

        Raises:
            ValueError: the file is damaged.
        """
        media = MediaList.parse(self.small_file(MEDIA))
        if len(media.rows) != self.settings.media:
            raise ValueError(
                f"{self.folder / MEDIA} has {len(media.rows)} lines and the settings name {self.settings.media}"
            )
        return media

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "media"}


class CachedMedia:
    """Media of conversations, from a token cache: view `epoch % K` of each; no file is opened.

    A file that could not be read when the cache was built comes back as that failure.

    Args:
        cache: holds all that the conversations show.
        conversations: what will be asked for.
        processor: says what stands for a medium in a prompt.

    Raises:
        ValueError: the cache lacks media of the conversations; names some, with the reason.
    """

    def __init__(self, cache: TokenCache, conversations: Sequence[Conversation], processor: LiteFrameProcessor):
        self.cache, self.processor = cache, processor
        self._places: dict[Key, int] = {}
        lacking: dict[str, str] = {}
        for conversation in conversations:
            for medium in conversation.media:
                key = medium_key(medium, conversation.videos)
                if key not in self._places:
                    try:
                        self._places[key] = cache.media.place(medium, conversation.videos)
                    except LookupError as error:
                        lacking[medium.files[0]] = str(error)
        if lacking:
            shown = "\n".join(f"  {file} {reason}" for file, reason in list(lacking.items())[:EXAMPLES])
            raise ValueError(
                f"--data.tokens {cache.folder} lacks {len(lacking)} of the videos and images that the conversations "
                f"show:\n{shown}\nBuild another cache of these conversations: {cache.settings.build}"
            )

    def drawn(self, epoch: int, medium: MediaItem, sharing: int) -> tuple[int, float]:
        """The most frames that are shown of a medium in an epoch, and their rate."""
        settings = self.cache.settings
        return settings.draws.of(epoch % settings.views, medium, sharing)

    def load(self, epoch: int, medium: MediaItem, sharing: int) -> LoadedMedia:
        """What is shown of a medium in an epoch.

        Raises:
            VideoError: it could not be read when the cache was built.
            ValueError: a file of the cache is damaged; names it and the remedy.
        """
        settings = self.cache.settings
        clip = self.cache.stored("media", epoch % settings.views, self._places[medium_key(medium, sharing)])
        if clip.failed:
            failure = clip.facts["failure"]
            # The file may have moved since, and of several pictures one was bad.
            path = medium.files[0] if len(medium.files) == 1 else failure["path"]
            raise VideoError(path, failure["kind"], failure["reason"], failure["remedy"])
        frames, (height, width), seconds = (clip.facts[name] for name in ("frames", "size", "seconds"))
        key: MediaKey = ("|".join(medium.files), () if medium.kind == "image" else tuple(frames))
        if medium.kind == "image":
            shown = self.processor.shown_image(height, width)
        else:
            shown = self.processor.shown_video(len(frames), height, width, seconds)
        return LoadedMedia(None, key, shown, seconds, clip.encoded["tokens"])
