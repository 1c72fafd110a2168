"""Questions about videos: the task vqa over rows that show one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlchat.data import SourceConfig
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.items import Item
from vlchat.evaluate.tasks.vqa import VqaTask
from vlchat.video import DEFAULT_LIMITS, FRAMES

_LISTED = 20


class VideoTask(VqaTask):
    """Rows in the messages format with a part `{"type": "video", "video": path}`, scored as the task vqa does.

    A video becomes the middle frame of each of so many equal parts of it, in order (`vlchat.video.frames`).

    Args:
        data, floor, format, images, split, limit, slices: as for the task vqa; `images` is the folder of the videos.
        frames: how many of each video, whatever the row says; None takes the row's number, else 8.

    Raises:
        DataError: a row cannot be used, or shows no video. ConfigError: a number of frames that is not possible.
    """

    def __init__(
        self,
        *,
        data: str | SourceConfig,
        floor: str | SourceConfig | None = None,
        format: str | None = None,
        images: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        slices: Sequence[str] = (),
        frames: int | None = None,
    ) -> None:
        most = DEFAULT_LIMITS.max_frames
        if frames is not None and not 1 <= frames <= most:
            raise ConfigError(f"frames is {frames}; from 1 to {most} are possible")
        super().__init__(
            data=data, floor=floor, format=format, images=images, split=split, limit=limit, slices=slices
        )
        without = [item.source.called for item in self._items if not _videos(item)]
        if without:
            more = f" and {len(without) - _LISTED:,} more" if len(without) > _LISTED else ""
            raise DataError(
                f"{len(without):,} of {len(self._items):,} rows show no video: {', '.join(without[:_LISTED])}{more}. A "
                'video is a part {"type": "video", "video": path} of the user\'s content in the messages format; rows '
                "with pictures are for the task vqa."
            )
        if frames is not None:
            self._items = [_sampled(item, frames) for item in self._items]
            sampled = f"{frames} frames a video"
        else:
            sampled = f"the row's number of frames a video, else {FRAMES}"
        self.protocol = self.protocol.replace("vlchat-vqa-1 (", f"vlchat-video-1 ({sampled}; ")


def _videos(item: Item) -> list[dict[str, Any]]:
    return [part for message in item.messages for part in message["content"] if part["type"] == "video"]


def _sampled(item: Item, frames: int) -> Item:
    messages = [
        message
        | {
            "content": [
                part | {"frames": frames} if part["type"] == "video" else part for part in message["content"]
            ]
        }
        for message in item.messages
    ]
    return replace(item, messages=messages)
