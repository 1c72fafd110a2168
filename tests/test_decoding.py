"""Pictures opened in other processes: the same pixels and words, and whatever happens to a worker stays with it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from test_images import JPEG, PNG, REFUSED, apng, chunk, encoded, noise, png, sixteen_bit_png

from serve.decoding import MOST_PICTURES, Album, Decoder
from serve.tickets import Busy, Closed
from vlchat import images
from vlchat.cli import main
from vlchat.errors import ImageError

GOOD = {
    "jpeg": JPEG,
    "png": PNG,
    "one pixel": png(1, 1),
    "one frame": apng(1),
    "deep": sixteen_bit_png(),
    "clear": encoded(noise(mode="RGBA"), "PNG"),
    "webp": encoded(noise(), "WEBP"),
    "gif": encoded(noise(), "GIF"),
    "several bands": encoded(noise(1100, 700), "JPEG"),
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Decoder]:
    decoder = Decoder(1)
    decoder.warm_up()
    SHARED.update(one.process.pid for one in decoder._all)
    yield decoder
    decoder.close()


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(2)
    decoder.warm_up()
    yield decoder
    decoder.close()
    assert workers() == []


def workers() -> list[psutil.Process]:
    """Of this process, but for the shared decoder's."""
    found = [one for one in psutil.Process().children() if "decode_worker" in " ".join(one.cmdline())]
    return [one for one in found if one.pid not in SHARED]


SHARED: set[int] = set()


@pytest.mark.parametrize("case", GOOD)
def test_good_pictures_are_the_same_to_the_pixel(shared: Decoder, case: str) -> None:
    opened = shared.open(GOOD[case])
    expected = images.decode(GOOD[case])
    assert opened.picture is not None and (opened.outcome, opened.error) == ("ok", None)
    assert opened.picture.mode == "RGB" and opened.picture.size == expected.size
    assert opened.picture.tobytes() == expected.tobytes()


@pytest.mark.parametrize("case", REFUSED)
def test_bad_pictures_are_refused_in_the_same_words(shared: Decoder, case: str) -> None:
    for name in (None, "holiday\n.png"):
        with pytest.raises(ImageError) as expected:
            images.decode(REFUSED[case][0], name=name)
        with pytest.raises(ImageError) as found:
            shared.decode(REFUSED[case][0], name=name)
        assert vars(found.value) == vars(expected.value) and str(found.value) == str(expected.value)


def test_files_and_declared_types_are_checked_as_before(shared: Decoder, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    assert shared.decode(tmp_path / "a.png", name="a.png").tobytes() == images.decode(PNG).tobytes()
    with pytest.raises(ImageError, match='"b.png" is not there') as caught:
        shared.decode(tmp_path / "b.png", name="b.png")
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(ImageError, match="was declared as image/jpeg"):
        shared.decode(PNG, mime="image/jpeg")


def test_a_worker_is_small_and_knows_nothing_of_the_model() -> None:
    code = "import sys, serve.decode_worker; print(sorted({'torch', 'transformers', 'gradio'} & set(sys.modules)))"
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def flat(side: int) -> bytes:
    """Deep grey: the most that is computed for a pixel."""
    return png(side, side, bits=16, colour=0, data=bytes(side * (1 + side * 2)))


def test_too_much_memory_is_a_sentence_and_not_the_servers() -> None:
    decoder = Decoder(1, memory=64 * 2**20)
    try:
        with pytest.raises(ImageError, match="too much memory") as caught:
            decoder.decode(flat(4000))
        assert caught.value.status == 413
        assert decoder.decode(PNG).size == (64, 48)
    finally:
        decoder.close()


def test_too_much_computing_is_ended_by_the_kernel() -> None:
    decoder = Decoder(1, seconds=1)
    try:
        opened = decoder.open(png(8, 8, extra=chunk(b"tEXt", b"k\x00v") * 1_500_000))  # each read by Python
        assert opened.outcome == "timeout" and opened.error is not None and opened.error.status == 413
        assert decoder.decode(PNG).size == (64, 48)
    finally:
        decoder.close()


def in_a_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_a_decoder_that_hangs_is_ended_by_the_clock_and_holds_up_nobody() -> None:
    decoder = Decoder(2, clock=3.0)
    try:
        decoder.decode(PNG)
        (hanging,) = workers()
        hanging.suspend()
        thread, found = in_a_thread(lambda: decoder.decode(JPEG))
        while decoder._idle:
            time.sleep(0.01)
        assert decoder.decode(PNG).size == (64, 48) and not found, "another worker takes the next picture"
        thread.join()
        assert isinstance(found[0], ImageError) and "too long" in str(found[0]) and found[0].status == 413
        assert hanging.pid not in [one.pid for one in workers()]
    finally:
        decoder.close()


@pytest.mark.parametrize(("how", "told"), [(signal.SIGSEGV, "breaks its decoder"), (signal.SIGKILL, None)])
def test_a_worker_that_ends_in_the_middle(decoder: Decoder, how: signal.Signals, told: str | None) -> None:
    """A crash is told; one that somebody else killed is replaced, and the picture opened all the same."""
    decoder.decode(PNG)
    (worker,) = workers()
    worker.suspend()
    thread, found = in_a_thread(lambda: decoder.decode(JPEG))
    while decoder._idle:
        time.sleep(0.01)
    worker.send_signal(how)
    worker.resume() if how != signal.SIGKILL else None
    thread.join()
    if told is None:
        assert isinstance(found[0], Image.Image) and found[0].tobytes() == images.decode(JPEG).tobytes()
    else:
        assert isinstance(found[0], ImageError) and told in str(found[0]) and found[0].status == 400
    assert decoder.decode(PNG).size == (64, 48)


def test_a_worker_that_died_idle_is_replaced(decoder: Decoder) -> None:
    decoder.decode(PNG)
    (worker,) = workers()
    worker.kill()
    worker.wait()
    assert decoder.decode(PNG).size == (64, 48)


def test_the_pictures_of_a_conversation_are_so_many_and_so_large_together(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (100, 100)).save(file, "PNG")
    album = Album(decoder)
    for _ in range(MOST_PICTURES):
        album.add(file.getvalue())
    with pytest.raises(ImageError, match=f"at most {MOST_PICTURES}"):
        album.add(file.getvalue())
    monkeypatch.setattr("serve.decoding.MOST_PIXELS", 25_000)
    album = Album(decoder)
    album.add(file.getvalue())
    album.add(file.getvalue())
    with pytest.raises(ImageError, match="million pixels together") as told:
        album.add(file.getvalue())
    assert told.value.status == 413


def test_requests_that_wait_for_pictures_are_so_many(decoder: Decoder) -> None:
    async def ask() -> list[Any]:
        waiting = [decoder.apart(time.sleep, 0.3) for _ in range(80)]
        return await asyncio.gather(*waiting, return_exceptions=True)

    found = asyncio.run(ask())
    assert [type(one) for one in found if one is not None] == [Busy] * 16
    assert asyncio.run(decoder.apart(lambda: 5)) == 5


def test_a_closed_decoder_leaves_no_process_and_takes_nothing(decoder: Decoder) -> None:
    (worker,) = workers()
    worker.suspend()
    thread, found = in_a_thread(lambda: decoder.decode(JPEG))
    while decoder._idle:
        time.sleep(0.01)
    decoder.close()
    thread.join()
    assert isinstance(found[0], Closed) and workers() == []
    for ask in (lambda: decoder.decode(PNG), lambda: asyncio.run(decoder.apart(int))):
        with pytest.raises(Closed):
            ask()


def test_workers_end_with_a_server_that_is_killed() -> None:
    code = (
        "import time; from serve.decoding import Decoder\n"
        "d = Decoder(); d.warm_up(); print(next(iter(d._all)).process.pid, flush=True); time.sleep(600)"
    )
    root = Path(__file__).parents[1]
    server = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    worker = psutil.Process(int(server.stdout.readline()))
    server.kill()
    server.wait()
    server.stdout.close()
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_the_command_tells_how_each_file_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "good.jpg").write_bytes(JPEG)
    (tmp_path / "cut.png").write_bytes(PNG[:99])
    os.mkfifo(tmp_path / "pipe")
    assert main(["pictures", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    outcomes = {row["file"]: row["outcome"] for row in told["files"]}
    assert outcomes == {"cut.png": "refused", "deeper/good.jpg": "ok", "pipe": "refused"}
    assert told["summary"]["ok"] == 1 and told["summary"]["refused"] == 2 and told["summary"]["crash"] == 0
    good = next(row for row in told["files"] if row["outcome"] == "ok")
    assert good["size"] == [64, 48] and good["seconds"] < 2 and 20 < good["megabytes"] < 200
    assert main(["pictures", str(tmp_path)]) == 0
    assert "3 files: 1 ok, 2 refused, 0 crash" in capsys.readouterr().out


def test_a_folder_without_files_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, words in ((tmp_path, "holds no files"), (tmp_path / "none", "There is no folder")):
        assert main(["pictures", str(folder)]) == 2
        assert words in capsys.readouterr().err


def test_orientation_survives_the_way(shared: Decoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    noise(40, 24).save(stream, "PNG", exif=exif)
    assert shared.decode(stream.getvalue()).size == (24, 40)
