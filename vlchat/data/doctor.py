"""`vlchat check`: what is asked for at the command line, in order."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlchat.data import cleaning, faults
from vlchat.data.check import Report, check
from vlchat.data.dataset import Source, SourceConfig, load_source
from vlchat.data.pictures import Cache
from vlchat.errors import DataError, VLChatError

if TYPE_CHECKING:
    from vlchat.data.lesson import Sample

_SHOWN = 100  # faults in a terminal, where nobody reads more; into a pipe or a file all are written
_REPORT = "report.json"


def run(
    config: SourceConfig,
    *,
    decode: bool = True,
    workers: int | None = None,
    model: str | None = None,
    revision: str | None = None,
    max_length: int | None = None,
    sample: int | None = None,
    quarantine: Path | None = None,
    clean: Path | None = None,
    report: Path | None = None,
    as_json: bool = False,
) -> int:
    """Checks a source and writes what is asked for; arguments as the command line's options.

    Args:
        model: whose processor counts tokens; an empty string is the embedded model, None counts none.
        sample: the row to show, from 1; None shows the first that can be used.

    Returns:
        0 where every row can be used, else 1.

    Raises:
        VLChatError: the source cannot be opened, options do not go together, or a file cannot be written.
    """
    # Pillow warns of odd metadata without saying in which file; what costs a picture is told by its row.
    warnings.filterwarnings("ignore", module=r"PIL\.")

    # 1. What cannot be done, before anything is looked at.
    _refuse(model, max_length, sample, workers)
    if clean is not None:
        cleaning.refuse(config, clean)
    if quarantine is not None and quarantine.exists():
        faults.read_quarantine(quarantine)  # another file is not replaced
    if report is not None:
        _folder(report)
    source = load_source(config)
    if sample is not None and sample > len(source):
        raise VLChatError(f"There is no row {sample} to show: {source.name} has {len(source):,} rows.")
    processor = None
    if model is not None:
        from vlchat.data import lesson

        processor, context = lesson.open_processor(model or None, revision)
        max_length = max_length or context

    # 2. Look.
    found = check(
        source,
        decode=decode,
        workers=workers,
        cache=Cache() if decode else None,
        progress=sys.stderr.isatty(),
        processor=processor,
        max_length=max_length,
    )
    shown = None if processor is None else _sample(source, found, sample, processor)

    # 3. Tell.
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        print(f"{found.headline()}\n\n{found.bars()}\n")
        if shown is not None:
            from vlchat.data import showing

            print(showing.sample_text(shown, sys.stdout.isatty() and not os.environ.get("NO_COLOR")), end="\n\n")
        print(found.verdict(_SHOWN if sys.stdout.isatty() else None))

    # 4. Write.
    for line in _write(config, source, found, shown, quarantine, clean, report):
        print(line, file=sys.stderr if as_json else sys.stdout)
    return 0 if found.ok else 1


def _refuse(model: str | None, max_length: int | None, sample: int | None, workers: int | None) -> None:
    for option, value, least in (("--max-length", max_length, 1), ("--sample", sample, 1), ("--workers", workers, 0)):
        if value is not None and value < least:
            raise VLChatError(f"{option} is {value}; it must be at least {least}.")
    for option, value in (("--max-length", max_length), ("--sample", sample)):
        if value is not None and model is None:
            raise VLChatError(f"{option} counts a model's tokens: add --model, with or without a name.")


def _folder(report: Path) -> None:
    """Makes the folder of a report. One that holds other things than an earlier report is left alone."""
    if report.is_dir() and any(report.iterdir()) and not (report / _REPORT).is_file():
        raise DataError(f"{report} holds other files than a report's: name a folder that is not there yet.")
    try:
        report.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"No report can be written to {report}: {error.strerror}. Name another folder.") from error


def _sample(source: Source, found: Report, row: int | None, processor: Any) -> Sample | None:
    """The row that was asked for, or the first that can be used, with a picture if there is any."""
    from vlchat.data import lesson

    if row is not None:
        return lesson.sample(source, row - 1, processor)
    bad = {fault.row for fault in found.bad}
    good = [index for index in range(len(source)) if index + 1 not in bad]
    if not good:
        return None
    shows = (index for index in good if found.images and source.example(index).images)
    return lesson.sample(source, next(shows, good[0]), processor)


def _write(
    config: SourceConfig,
    source: Source,
    found: Report,
    shown: Sample | None,
    quarantine: Path | None,
    clean: Path | None,
    report: Path | None,
) -> Iterator[str]:
    """Writes what was asked for, and says so."""
    if quarantine is not None:
        count = faults.quarantine(quarantine, found.bad, anew=True)
        yield f"Written: {quarantine}, {count:,} faults."
    if clean is not None:
        count = cleaning.write_clean(config, source, {fault.row - 1 for fault in found.bad}, clean)
        yield f"Written: {clean}, {count:,} of {found.rows:,} rows."
        if config.images is None and found.images and clean.resolve().parent != Path(config.path).resolve().parent:
            yield f"Its pictures stayed where they were: use it with --images {' or '.join(found.folders)}."
    if report is not None:
        from vlchat.data import showing

        try:
            (report / _REPORT).write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
            facts = found.headline().removeprefix(f"{found.name}: ")
            showing.histogram_picture(found.name, facts, found.histograms).save(report / "histograms.png")
            if shown is not None:
                showing.sample_picture(shown).save(report / "sample.png")
        except OSError as error:
            raise DataError(f"The report in {report} cannot be written: {error.strerror}.") from error
        yield f"Written: {report}/."
