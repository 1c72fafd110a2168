"""Videos as sampled frames: moving pictures through Pillow; MP4 where PyAV is installed."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlchat import Chat, video
from vlchat.data import Collator, Example, SourceConfig, check, load_source
from vlchat.data.collate import decode_images
from vlchat.errors import DataError, ImageError, VLChatError

HAS_PYAV = importlib.util.find_spec("av") is not None


def moving(format_name: str, total: int = 20, size: tuple[int, int] = (24, 24)) -> bytes:
    """A moving picture whose frame n is a grey of 10 n."""
    stills = [Image.new("RGB", size, (10 * n, 10 * n, 10 * n)) for n in range(total)]
    buffer = io.BytesIO()
    options = {"lossless": True} if format_name == "WEBP" else {}
    stills[0].save(buffer, format_name, save_all=True, append_images=stills[1:], duration=100, loop=0, **options)
    return buffer.getvalue()


def greys(frames: list[Image.Image]) -> list[int]:
    return [round(frame.getpixel((5, 5))[0] / 10) for frame in frames]


def test_the_middle_of_each_equal_part_is_taken() -> None:
    assert video.sampled_places(20, 4) == [2, 7, 12, 17]
    assert video.sampled_places(8, 8) == list(range(8))
    assert video.sampled_places(3, 8) == [0, 1, 2]
    assert video.sampled_places(7, 1) == [3]
    for total in range(1, 40):
        for count in range(1, total + 1):
            expected = [int((part + 0.5) * total / count) for part in range(count)]
            assert video.sampled_places(total, count) == expected


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG"])
def test_frames_of_a_moving_picture(tmp_path: Path, format_name: str) -> None:
    data = moving(format_name)
    (tmp_path / "clip").write_bytes(data)
    for source in (data, tmp_path / "clip", str(tmp_path / "clip")):
        found = video.frames(source, 4)
        assert greys(found) == [2, 7, 12, 17] and {frame.mode for frame in found} == {"RGB"}
    assert len(video.frames(data)) == 8
    assert greys(video.frames(moving(format_name, total=3))) == [0, 1, 2]


def test_a_still_picture_is_a_video_of_one_frame() -> None:
    assert greys(video.frames(moving("PNG", total=1))) == [0]


@pytest.mark.parametrize(
    ("data", "message", "status"),
    [
        (b"", "not a video in a known format", 415),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/secret.ts\n", "not a video in a known format", 415),
        (b"RIFF\x00\x00\x00\x00WAVE", "not a video in a known format", 415),
        (moving("GIF")[:200], "damaged or cut short", 400),
        (moving("WEBP")[:60], "damaged or cut short", 400),
    ],
)
def test_what_is_no_video_is_a_sentence(data: bytes, message: str, status: int) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        video.frames(data, name="clip")
    assert caught.value.status == status and str(caught.value).startswith('The video "clip"')


def test_limits(tmp_path: Path) -> None:
    data = moving("GIF")
    with pytest.raises(ImageError, match="at most 100 are accepted") as caught:
        video.frames(data, limits=video.VideoLimits(max_bytes=100))
    assert caught.value.status == 413
    (tmp_path / "clip.gif").write_bytes(data)
    with pytest.raises(ImageError, match="at most 100 are accepted"):
        video.frames(tmp_path / "clip.gif", limits=video.VideoLimits(max_bytes=100))
    for count in (0, 65, "8", 1.5):
        with pytest.raises(ImageError, match="from 1 to 64 are possible"):
            video.frames(data, count)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="Make it shorter or smaller"):
        video.frames(data, limits=video.VideoLimits(max_decoded_pixels=24 * 24 * 19))
    with pytest.raises(ImageError, match="no such file"):
        video.frames(tmp_path / "none.mp4")
    with pytest.raises(ImageError, match="side ratio"):
        video.frames(moving("GIF", total=2, size=(1, 300)))


@pytest.mark.skipif(HAS_PYAV, reason="PyAV is installed")
def test_without_pyav_an_mp4_says_what_to_install() -> None:
    for data in (b"\x00\x00\x00\x18ftypmp42", b"\x1aE\xdf\xa3", b"RIFF\x00\x00\x00\x00AVI LIST"):
        with pytest.raises(ImageError, match=r"needs PyAV, which is not installed: pip install 'vlchat\[video\]'"):
            video.frames(data)


@pytest.mark.skipif(not HAS_PYAV, reason="needs PyAV")
@pytest.mark.parametrize("format_name", ["mp4", "matroska", "avi"])
def test_frames_of_an_mp4(format_name: str) -> None:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format_name) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for n in range(20):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 64), (10 * n, 10 * n, 10 * n)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = greys(video.frames(buffer.getvalue(), 4))
    assert all(abs(mine - middle) <= 1 for mine, middle in zip(found, [2, 7, 12, 17], strict=True))
    assert len(video.frames(buffer.getvalue(), 64)) == 20
    with pytest.raises(ImageError, match="damaged or cut short|no frames"):
        video.frames(buffer.getvalue()[:100])


@pytest.mark.skipif(not HAS_PYAV, reason="needs PyAV")
def test_a_film_of_a_turned_phone_is_upright() -> None:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        lying = Image.new("RGB", (64, 32))
        lying.paste((255, 255, 255), (0, 0, 32, 32))  # bright on the left
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_image(lying)))
        container.mux(stream.encode())
    one = (1 << 16).to_bytes(4, "big")
    zero, minus, last = bytes(4), (2**32 - (1 << 16)).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    identity = one + zero * 3 + one + zero * 3 + last
    quarter_turn = zero + one + zero + minus + zero * 4 + last  # clockwise, as ISO 14496-12 writes it in `tkhd`
    head, track, rest = buffer.getvalue().partition(b"tkhd")
    assert identity in rest
    upright = video.frames(head + track + rest.replace(identity, quarter_turn, 1), 1)[0]
    assert upright.size == (32, 64)
    assert upright.getpixel((16, 8))[0] > 200 and upright.getpixel((16, 56))[0] < 50, "bright at the top"


def test_a_video_in_a_message_is_its_frames(tiny_model: Any, tiny_processor: Any) -> None:
    data = moving("GIF")
    chat = Chat(tiny_model(), tiny_processor)
    words = {"type": "text", "text": "What is in the picture?"}
    asked = [{"role": "user", "content": [{"type": "video", "video": data, "frames": 3}, words]}]
    pictures = [{"type": "image", "image": frame} for frame in video.frames(data, 3)]
    told = [{"role": "user", "content": [*pictures, words]}]
    mine, theirs = chat._inputs([asked]), chat._inputs([told])
    assert mine["pixel_values"].shape[0] == 3
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert isinstance("".join(chat.stream(asked, max_new_tokens=3)), str)
    with pytest.raises(VLChatError, match="no such file"):
        chat.stream([{"role": "user", "content": [{"type": "video", "video": "none.gif"}]}])
    for wrong in ([{"type": "video"}], [{"type": "video", "video": 3}], 7, None):
        with pytest.raises(VLChatError):
            chat.stream([{"role": "user", "content": wrong}])  # type: ignore[dict-item]
    with pytest.raises(VLChatError):
        chat.stream(None)  # type: ignore[arg-type]


def test_a_video_in_a_training_row_is_its_frames(tiny_processor: Any) -> None:
    content = [{"type": "video", "video": moving("WEBP")}, {"type": "text", "text": "What?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a red circle"}]}
    batch = Collator(tiny_processor)([Example("7", [{"role": "user", "content": content}, answer])])
    assert batch["pixel_values"].shape[0] == 8
    assert int((batch["input_ids"] == tiny_processor.image_token_id).sum()) == 8 * 4
    with pytest.raises(DataError, match='Row "7": The video'):
        decode_images([{"role": "user", "content": [{"type": "video", "video": b"x"}]}], 'Row "7"')


def row(video_part: dict[str, Any], number: str = "1") -> dict[str, Any]:
    asked = {"role": "user", "content": [video_part, {"type": "text", "text": "What happens?"}]}
    return {"id": number, "messages": [asked, {"role": "assistant", "content": "a red circle"}]}


def source(folder: Path, rows: list[dict[str, Any]]) -> SourceConfig:
    (folder / "data.json").write_text(json.dumps(rows))
    return SourceConfig(str(folder / "data.json"))


def test_rows_name_videos_by_path(tmp_path: Path, tiny_processor: Any) -> None:
    (tmp_path / "clip.gif").write_bytes(moving("GIF"))
    config = source(tmp_path, [row({"type": "video", "video": "clip.gif", "frames": 2})])
    assert check(config).ok and check(config).text_only == 0
    example = load_source(config)[0]
    assert example.videos == [tmp_path / "clip.gif"] and not example.images
    batch = Collator(tiny_processor)([example])
    assert batch["pixel_values"].shape[0] == 2 and (batch["labels"] >= 0).any()


def test_the_check_names_every_video_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "clip.gif").write_bytes(moving("GIF"))
    (tmp_path / "broken.gif").write_bytes(moving("GIF")[:200])
    parts = [{"video": "clip.gif"}, {"video": "none.gif"}, {"video": "broken.gif"}, {"video": "../clip.gif"},
             {"video": "clip.gif", "frames": 0}, {"video": "http://127.0.0.1/clip.gif"}, {}, {"video": 3}]  # fmt: skip
    rows = [row({"type": "video", **part}, str(number)) for number, part in enumerate(parts, 1)]
    report = check(source(tmp_path, rows))
    assert [bad.row for bad in report.bad] == [2, 3, 4, 5, 6, 7, 8]
    told = [bad.reason for bad in report.bad]
    for reason, expected in zip(told, ["was not found", "damaged", "leads out", "from 1 to 64", "Download the videos",
                                       "no `video`", "a video must be a path"], strict=True):  # fmt: skip
        assert expected in reason
    assert report.missing == ["none.gif"] and report.bad[0].field == "video"
    answer = row({"type": "video", "video": "clip.gif"})
    answer["messages"][1] = {"role": "assistant", "content": [{"type": "video", "video": "clip.gif"}]}
    assert "only the user shows pictures" in check(source(tmp_path, [answer])).bad[0].reason
