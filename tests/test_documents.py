"""PDFs and videos as pictures: by the processes that open strangers' files, within their limits."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image
from test_images import JPEG, PNG
from test_video import moving

from serve import documents
from serve.decoding import MOST_PICTURES, Decoder
from serve.page.attached import MOST_PARTS, attached, take_time
from vlchat import images, video
from vlchat.errors import ImageError, VLChatError

pdf_needed = pytest.mark.skipif(importlib.util.find_spec("pypdfium2") is None, reason="pypdfium2 is not installed")
av_needed = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")


def grey(level: int, size: tuple[int, int] = (60, 80)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def pdf(count: int = 12) -> bytes:
    """A PDF whose page n is a grey of 20 (n - 1)."""
    file, pages = io.BytesIO(), [grey(20 * n % 256) for n in range(count)]
    pages[0].save(file, "PDF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def written_pdf(pages: int, box: str = "0 0 60 80", *, trailer: str = "", content: bytes = b"") -> bytes:
    """A PDF by hand: so many pages that all are one, of a size in points; `trailer` and `content` are put into it."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Count %d/Kids[%s]/MediaBox[%s]>>" % (pages, b"3 0 R " * pages, box.encode()),
        b"<</Type/Page/Parent 2 0 R/Contents 4 0 R>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
    ]
    file, places = io.BytesIO(), []
    file.write(b"%PDF-1.4\n")
    for number, one in enumerate(objects, 1):
        places.append(file.tell())
        file.write(b"%d 0 obj%s endobj\n" % (number, one))
    start = file.tell()
    file.write(b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places))
    file.write(f"trailer<</Size 5/Root 1 0 R{trailer}>>\nstartxref\n{start}\n%%EOF".encode())
    return file.getvalue()


def film(
    codec: str = "libx264", container: str = "mp4", *, frames: int = 48, rate: Fraction = Fraction(24),
) -> bytes:  # fmt: skip
    """So many frames, of which frame n is a grey of 4 n."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_image(grey(4 * number % 256, (64, 48)))))
        out.mux(stream.encode())
    return file.getvalue()


def levels(document: documents.Document) -> list[int]:
    opened = [images.decode(part.content) for part in document.parts]
    return [one.getpixel((one.width // 2, one.height // 2))[1] for one in opened]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(1, seconds=20, clock=90.0)
    yield decoder
    decoder.close()


@pdf_needed
def test_pages_are_spread_evenly_and_keep_their_numbers(decoder: Decoder) -> None:
    found = decoder.document(pdf(), 4, name="report.pdf")
    assert (found.kind, found.total) == ("page", 12)
    assert [part.place for part in found.parts] == [2, 5, 8, 11]
    assert levels(found) == pytest.approx([20, 80, 140, 200], abs=2)
    whole = decoder.document(pdf(3), 8, name="report.pdf")
    assert [part.place for part in whole.parts] == [1, 2, 3] and whole.total == 3


@pdf_needed
def test_a_page_is_drawn_so_large_that_small_print_is_read(decoder: Decoder) -> None:
    (part,) = decoder.document(written_pdf(1, "0 0 595 842"), 8).parts
    assert images.decode(part.content).size == (1448, documents.LONGER_SIDE)
    (part,) = decoder.document(written_pdf(1, "0 0 100 50"), 8).parts
    assert images.decode(part.content).size == (400, 200), "four pixels to a point, and no more"


@av_needed
@pytest.mark.parametrize(
    ("codec", "container"), [("libx264", "mp4"), ("libx264", "mov"), ("libvpx", "webm"), ("mpeg4", "avi")]
)
def test_frames_are_spread_evenly_over_the_time(decoder: Decoder, codec: str, container: str) -> None:
    found = decoder.document(film(codec, container), 4, name="clip")
    assert found.kind == "frame"
    assert [part.place for part in found.parts] == pytest.approx([0.25, 0.75, 1.25, 1.75], abs=0.05)
    assert levels(found) == pytest.approx([24, 72, 120, 168], abs=8)


@av_needed
def test_a_video_that_does_not_tell_its_length_is_looked_through() -> None:
    """As what a browser records: WebM on its way, whose header was never written to the end."""
    import av

    class OneWay(io.RawIOBase):
        def __init__(self) -> None:
            self.written = bytearray()

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.written += data
            return len(data)

        def writable(self) -> bool:
            return True

    file = OneWay()
    with av.open(file, "w", format="webm", options={"live": "1"}) as out:
        stream = out.add_stream("libvpx", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(48):
            out.mux(stream.encode(av.VideoFrame.from_image(grey(4 * number, (64, 48)))))
        out.mux(stream.encode())
    with av.open(io.BytesIO(bytes(file.written))) as opened:
        assert not opened.duration, "the test needs a file without a length"
    found = video.timed_frames(bytes(file.written), 4)
    assert [seconds for seconds, _ in found] == pytest.approx([0.25, 0.75, 1.25, 1.75], abs=0.1)


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG"])
def test_frames_of_moving_pictures(decoder: Decoder, format_name: str) -> None:
    data = moving(format_name)
    assert documents.kind_of(data) == "frame"
    found = decoder.document(data, 4, name="clip")
    assert levels(found) == [20, 70, 120, 170]
    assert [part.place for part in found.parts] == pytest.approx([0.2, 0.7, 1.2, 1.7])


def test_large_frames_are_made_smaller_and_small_ones_kept(decoder: Decoder) -> None:
    large = decoder.document(moving("GIF", 2, (4096, 64)), 2)
    assert images.decode(large.parts[0].content).size == (2048, 32)
    small = decoder.document(moving("WEBP", 2, (300, 200)), 2)
    assert images.decode(small.parts[0].content).tobytes() == grey(0, (300, 200)).tobytes()


def test_what_a_file_is_is_told_by_its_bytes() -> None:
    heic = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00"
    for still in (JPEG, PNG, heic, b"", b"PK\x03\x04", b"RIFF\x00\x00\x00\x00WAVEfmt "):
        assert documents.kind_of(still) is None
    assert documents.kind_of(b"\n %PDF-1.7") == "page"
    assert documents.kind_of(b"\x00\x00\x00\x18ftypqt  ") == documents.kind_of(b"\x1aE\xdf\xa3") == "frame"


REFUSED_PDFS = {
    "cut": (pdf(2)[:400], "is damaged or has no pages"),
    "empty": (written_pdf(0), "is damaged or has no pages"),
    "locked": (
        written_pdf(
            1, trailer=f"/Encrypt<</Filter/Standard/V 1/R 2/P -44/O<{'41' * 32}>/U<{'42' * 32}>>>/ID[<00><00>]"
        ),
        "locked with a password",
    ),
    "a strip": (written_pdf(1, "0 0 10000 10"), "side ratio"),
}


@pdf_needed
@pytest.mark.parametrize("name", REFUSED_PDFS)
def test_pdfs_that_cannot_be_drawn_are_refused_with_a_sentence(decoder: Decoder, name: str) -> None:
    data, words = REFUSED_PDFS[name]
    with pytest.raises(ImageError, match=words) as caught:
        decoder.document(data, 8, name="report.pdf")
    assert str(caught.value).startswith('The PDF "report.pdf"') and caught.value.status in (400, 413)


@pdf_needed
def test_ten_thousand_pages_and_a_page_as_large_as_a_town_are_capped(decoder: Decoder) -> None:
    found = decoder.document(written_pdf(10_000), 8)
    assert (len(found.parts), found.total) == (8, 10_000)
    (part,) = decoder.document(written_pdf(1, "0 0 100000 100000"), 8).parts
    assert images.decode(part.content).size == (2048, 2048)


@pdf_needed
def test_a_page_that_draws_for_ever_ends_with_its_worker(decoder: Decoder) -> None:
    hurried = Decoder(1, seconds=1, clock=90.0)
    try:
        endless = b"0 0 60 80 re f " * 2_000_000
        with pytest.raises(ImageError, match="takes too long") as caught:
            hurried.document(written_pdf(1, content=endless), 8, name="report.pdf")
        assert caught.value.status == 413
        assert hurried.document(pdf(1), 8).total == 1, "the next one is opened"
    finally:
        hurried.close()


@pdf_needed
def test_a_document_without_enough_memory_is_refused() -> None:
    narrow = Decoder(1, memory=24 * 2**20)
    try:
        with pytest.raises(ImageError) as caught:
            narrow.document(moving("GIF", 2, (4000, 3000)), 8, name="clip.gif")
        assert caught.value.status in (400, 413)
        assert narrow.document(moving("GIF", 2), 8).total == 2
    finally:
        narrow.close()


@av_needed
def test_a_video_of_an_hour_is_refused(decoder: Decoder) -> None:
    with pytest.raises(ImageError, match="lasts 60 minutes; at most 10 are taken"):
        decoder.document(film(frames=60, rate=Fraction(1, 60)), 8, name="clip.mp4")
    assert len(decoder.document(film(frames=60, rate=Fraction(1, 9)), 8).parts) == 8


def test_a_pdf_without_its_library_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pypdfium2'] = None\n"
        "from serve import documents\nfrom vlchat.errors import ImageError\n"
        "try: documents.rendered(b'%PDF-1.4', 8, 'a.pdf')\n"
        "except ImageError as error: print(error.status, error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("415 ") and "pip install 'vlchat[documents]'" in run.stdout


def stored(folder: Path, **contents: bytes) -> list[Path]:
    paths = []
    for name, content in contents.items():
        paths.append(folder / name.replace("_", "."))
        paths[-1].write_bytes(content)
    return paths


@pdf_needed
def test_a_questions_files_become_its_pictures(decoder: Decoder, tmp_path: Path) -> None:
    still = io.BytesIO()
    grey(0).save(still, "GIF")
    files = stored(tmp_path, owl_png=PNG, report_pdf=pdf(), dance_gif=moving("GIF"), still_gif=still.getvalue())
    found = attached(files, 0, decoder, "en")
    names = [name for name, _ in found.pictures]
    assert (
        names[0] == "owl.png" and found.pictures[0][1] == PNG and found.pictures[-1] == ("still.gif", still.getvalue())
    )
    assert len(names) == MOST_PICTURES and len([name for name in names if name.startswith("report.pdf")]) == MOST_PARTS
    assert names[1] == "report.pdf, page 1.png" and names[9].startswith("dance.gif, 0m00s.")
    assert found.told[0] == "report.pdf has 12 pages. The model sees 8 of them: 1, 3, 4, 6, 7, 9, 10, 12."
    assert found.told[1].startswith("The model sees dance.gif as 6 pictures, at 0:00, 0:00, 0:00, 0:01")
    assert [name for name in take_time({"files": [str(file) for file in files]})] == [
        "report.pdf", "dance.gif", "still.gif"
    ]  # fmt: skip
    chinese = attached(files[1:2], 15, decoder, "zh")
    assert chinese.pictures[0][0].startswith("report.pdf，第 7 页.") and "12 页" in chinese.told[0]


def test_more_pictures_than_a_conversation_has_are_told_with_both_numbers(decoder: Decoder, tmp_path: Path) -> None:
    files = stored(tmp_path, a_png=PNG, b_png=PNG)
    assert len(attached(files, 14, decoder, "en").pictures) == 2
    with pytest.raises(VLChatError, match="at most 16 pictures, and with these it would have 17"):
        attached(files, 15, decoder, "en")


def test_what_is_no_picture_is_told_before_it_is_kept(decoder: Decoder, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as parcel:
        parcel.writestr("a.txt", "words")
    for content in (archive.getvalue(), b"words", b"#EXTM3U\nhttp://127.0.0.1/a.ts\n", b"<svg>"):
        with pytest.raises(ImageError, match="“report.pdf” can't be looked at") as caught:
            attached(stored(tmp_path, report_pdf=content), 0, decoder, "en")
        assert caught.value.status == 415
