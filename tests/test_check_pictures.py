"""Verdicts on picture files: by their headers, decoded, decoded in other processes, and kept."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlchat.data import SourceConfig, check
from vlchat.data.decoding import Decoders, _Worker
from vlchat.data.pictures import Cache, Verdict, decoded, header


def png(width: int, height: int) -> bytes:
    """A small PNG that says it has so many pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path: Path, picture: Any) -> Path:
    """One file for each thing that can be wrong with one, and good ones."""
    (tmp_path / "folder.png").mkdir()
    picture(0, (40, 30)).save(tmp_path / "good.png")
    picture(1, (40, 30)).save(tmp_path / "good.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # lying on its side, as phones write it
    picture(1, (40, 30)).save(tmp_path / "turned.jpg", exif=turned)
    picture(2, (2, 1)).save(tmp_path / "tiny.png")
    frames = [picture(seed) for seed in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    whole = (tmp_path / "good.jpg").read_bytes()
    for name, content in {
        "torn.jpg": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "page.jpg": b"<!DOCTYPE html><title>404</title>",
        "tiff.jpg": b"II*\0" + bytes(50),
        "huge.png": png(50_000, 50_000),
        "long.png": png(20_000, 1),
        "cut.png": whole[:2],
    }.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


# file -> what is wrong by its header, and decoded
VERDICTS = {
    "good.png": (None, None),
    "good.jpg": (None, None),
    "turned.jpg": (None, None),
    "tiny.png": ("tiny_picture", "tiny_picture"),
    "moving.gif": ("moving_picture", "moving_picture"),
    "torn.jpg": (None, "damaged_file"),
    "empty.jpg": ("empty_file", "empty_file"),
    "page.jpg": ("unsupported_file", "unsupported_file"),
    "tiff.jpg": ("unsupported_file", "unsupported_file"),
    "huge.png": ("too_many_pixels", "too_many_pixels"),
    "long.png": ("side_ratio", "side_ratio"),
    "cut.png": ("damaged_file", "damaged_file"),
    "folder.png": ("unreadable_file", "unreadable_file"),
    "none.png": ("missing_file", "missing_file"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_headers_and_pixels_tell_what_is_wrong(folder: Path, name: str) -> None:
    by_header, by_pixels = header(folder / name, "image"), decoded(folder / name, "image")
    assert (by_header.kind, by_pixels.kind) == VERDICTS[name]
    if by_pixels.kind is not None:
        told = by_pixels.told(name)
        assert told.startswith(f'The picture "{name}" ') and told.count(name) == 1 and str(folder) not in told
        assert by_pixels.told(None).startswith("The picture ") and '"' not in by_pixels.told(None)


def test_sizes_are_those_that_people_see(folder: Path) -> None:
    assert decoded(folder / "good.jpg", "image").size == (40, 30)
    assert decoded(folder / "turned.jpg", "image").size == (30, 40)
    assert header(folder / "turned.jpg", "image").size == (30, 40)  # though the file's own rows lie on their side


def test_bytes_and_open_pictures_are_judged_as_files_are(folder: Path, picture: Any) -> None:
    assert decoded((folder / "torn.jpg").read_bytes(), "image").kind == "damaged_file"
    assert header((folder / "page.jpg").read_bytes(), "image").kind == "unsupported_file"
    assert header(picture(0), "image") == decoded(picture(0), "image") == Verdict(size=(24, 24))


def test_videos_are_opened_by_their_header_and_decoded(folder: Path) -> None:
    assert header(folder / "moving.gif", "video") == Verdict() == decoded(folder / "moving.gif", "video")
    assert header(folder / "empty.jpg", "video").kind == "empty_file"
    assert decoded(folder / "page.jpg", "video").told("page.jpg").startswith('The video "page.jpg" ')


def test_processes_find_what_this_one_finds(folder: Path, tmp_path: Path) -> None:
    names = [name for name in VERDICTS if name not in ("none.png", "folder.png")]
    found = []
    for workers in (0, 2):
        with Decoders(workers, None) as decoders:
            for name in names:
                decoders.ask(name, folder / name, "image")
            decoders.ask("bytes", (folder / "torn.jpg").read_bytes(), "image")
            decoders.ask("video", folder / "moving.gif", "video")
        found.append(decoders.verdicts())
    assert found[0] == found[1] and len(found[0]) == len(names) + 2
    assert [found[1][name].kind for name in names] == [VERDICTS[name][1] for name in names]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into a pipe as Linux lets one")
def test_the_file_that_ends_a_process_is_known_and_the_others_are_read(folder: Path) -> None:
    import fcntl
    import termios

    worker = _Worker()
    good, size = (folder / "good.png", "image"), Verdict(size=(40, 30))
    assert worker.ask([good]) == [size]
    process = worker._process
    assert process is not None and process.stdin is not None
    process.send_signal(signal.SIGSTOP)  # as if it worked for long on the first of three files, ...
    os.waitpid(process.pid, os.WUNTRACED)  # it may still be on its way to read what is asked
    found: list[Verdict | None] = []
    asking = threading.Thread(target=lambda: found.extend(worker.ask([good, good, good])))
    asking.start()
    while not int.from_bytes(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4)), sys.byteorder):
        time.sleep(0.01)
    process.kill()  # ... which then was too much for it
    asking.join()
    assert found == [None, size, size]
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    assert worker.ask([good]) == [size], "one that ended while nothing was asked says nothing about a file"
    worker.close()


def test_an_error_in_the_caller_ends_the_workers(folder: Path) -> None:
    with pytest.raises(KeyError), Decoders(2, None) as decoders:
        decoders.ask(0, folder / "good.png", "image")
        raise KeyError("stopped")
    assert not any(thread.is_alive() for thread in decoders._threads)
    assert all(worker._process is None for worker in decoders._workers)


def rows_of(folder: Path, *names: str) -> SourceConfig:
    rows = [{"id": name, "image": name, "question": "What?", "answer": "a cat"} for name in names]
    (folder / "rows.json").write_text(json.dumps(rows))
    return SourceConfig(str(folder / "rows.json"))


def test_verdicts_are_kept_by_the_bytes_of_the_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "pictures.json"
    source = rows_of(folder, "good.png", "torn.jpg", "empty.jpg")
    first = check(source, cache=Cache(file))
    assert [fault.kind for fault in first.bad] == ["damaged_file", "empty_file"]
    assert len(Cache(file)) == 3
    # What stands there is believed for those bytes, whatever the file is called, and told by its name.
    stored = json.loads(file.read_text())
    good = next(key for key, value in stored["verdicts"].items() if value[0] is None)
    stored["verdicts"][good] = ["damaged_file", "The picture is kept as damaged.", None]
    file.write_text(json.dumps(stored))
    (folder / "good.png").rename(folder / "other.png")
    again = check(rows_of(folder, "other.png", "torn.jpg"), cache=Cache(file))
    assert [fault.reason for fault in again.bad][0] == 'The picture "other.png" is kept as damaged.'
    # Other bytes are judged anew.
    (folder / "torn.jpg").write_bytes((folder / "good.jpg").read_bytes())
    assert [fault.row for fault in check(rows_of(folder, "other.png", "torn.jpg"), cache=Cache(file)).bad] == [1]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04pickle", b"[]", b'{"made_by": "older", "verdicts": {}}', b"[" * 100_000, b'{"verdicts": 3}'],
)
def test_a_cache_that_cannot_be_used_is_written_anew(folder: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "pictures.json"
    file.write_bytes(content)
    source = rows_of(folder, "good.png", "torn.jpg")
    assert [fault.kind for fault in check(source, cache=Cache(file)).bad] == ["damaged_file"]
    assert len(Cache(file)) == 2
    stored = json.loads(file.read_text())
    for odd in (7, [1], ["damaged_file", "a", "b"], None):
        stored["verdicts"] = dict.fromkeys(stored["verdicts"], odd)
        file.write_text(json.dumps(stored))
        assert [fault.kind for fault in check(source, cache=Cache(file)).bad] == ["damaged_file"]


def test_two_checks_at_once_keep_what_both_found(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "pictures.json"
    one, two = Cache(file), Cache(file)
    one.put("a", Verdict(size=(1, 2)))
    two.put("b", Verdict("damaged_file", "The picture is damaged."))
    one.save()
    two.save()
    both = Cache(file)
    assert both.get("a") == Verdict(size=(1, 2)) and both.get("b") == Verdict("damaged_file", "The picture is damaged.")
    assert [path.name for path in tmp_path.glob("pictures*")] == ["pictures.json"]


def test_a_home_without_room_for_a_cache_costs_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = Cache(tmp_path / "file" / "pictures.json")
    assert check(rows_of(folder, "good.png"), cache=cache).ok


def test_a_worker_imports_nothing_from_the_folder_it_is_started_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A downloaded dataset may hold a file that is called like a module."""
    for name in ("PIL.py", "numpy.py", "json.py", "vlchat.py"):
        (folder / name).write_text("open('taken', 'w').close()")
    monkeypatch.chdir(folder)
    with Decoders(1, None) as decoders:
        decoders.ask("good", Path("good.png"), "image")
    assert decoders.verdicts() == {"good": Verdict(size=(40, 30))} and not Path("taken").exists()
