"""Who may ask, how often, and what is told of it: the operator's decisions, and their options of `vlchat serve`.

Nothing is imported here that needs more than the base installation, so that `--help` needs no more.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serve.keys import VARIABLE, Keys, read_keys
from vlchat.errors import VLChatError

LOG_FORMATS = ("logfmt", "json")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.*-]+(:[0-9]{1,5})?")


@dataclass(frozen=True)
class Rate:
    """So many in so long.

    Attributes:
        most: how many.
        unit: "second", "minute", "hour" or "day".
    """

    most: int
    unit: str

    @classmethod
    def read(cls, text: str) -> Rate:
        """Of `30/minute`.

        Raises:
            VLChatError: it is written otherwise.
        """
        found = re.fullmatch(r"([1-9][0-9]{0,8})/(second|minute|hour|day)", text.strip())
        if found is None:
            raise VLChatError(f'"{text}" is no rate; write one as 30/minute (or second, hour, day).')
        return cls(int(found[1]), found[2])

    @property
    def seconds(self) -> int:
        return _SECONDS[self.unit]

    def __str__(self) -> str:
        return f"{self.most} a {self.unit}"


@dataclass(frozen=True)
class Policy:
    """What the operator of a server has decided.

    Attributes:
        keys: who may ask; everybody, where there are none.
        questions, tokens: of one key, or of one address where there are no keys.
        proxies: addresses or networks of proxies before this server, whose X-Forwarded-For is believed.
        embedders: origins whose pages may show ours in a frame.
        log_format: one of `LOG_FORMATS`.
        log_prompts: whether the log tells the words of questions.
        grace: seconds in which running answers may end after a signal.
        history: the folder where the page keeps conversations and feedback; None keeps nothing beyond a visit.
        training_room: whether the page trains, wherever it is served; see `has_training_room`.
    """

    keys: Keys = field(default_factory=Keys)
    questions: Rate | None = None
    tokens: Rate | None = None
    proxies: Sequence[str] = ()
    embedders: Sequence[str] = ()
    log_format: str = "logfmt"
    log_prompts: bool = False
    grace: float = 30.0
    history: Path | None = None
    training_room: bool = False

    def has_training_room(self, host: str, backend: str = "local") -> bool:
        """Whether whoever opens the page may train, which takes this machine's processor and disk.

        They may where nobody else reaches it: on this machine alone, with no proxy before it and nobody told apart by
        keys; or where the operator says so.

        Args:
            host: what is listened on.
            backend: of `serve.backends`.

        Raises:
            VLChatError: the operator says so of a server without a model of its own.
        """
        if backend != "local":
            if self.training_room:
                raise VLChatError(f"--training-room trains a model that is loaded here: leave --backend {backend} out.")
            return False
        alone = host in ("127.0.0.1", "localhost") and not self.keys and not self.proxies
        return alone or self.training_room


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    who = parser.add_argument_group("who may ask, and how often (for a server that others reach)")
    who.add_argument(
        "--api-keys",
        type=Path,
        metavar="FILE",
        help=f"ask everybody for a key: a file with NAME: KEY a line (or {VARIABLE} in the environment); programs send "
        "it as OpenAI's clients do, browsers ask for it as a password",
    )
    who.add_argument("--rate", metavar="N/minute", help="questions of one key, or of one address where there are none")
    who.add_argument("--tokens", metavar="N/minute", help="tokens of one key, or address: of questions and answers")
    who.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a proxy (or network, 10.0.0.0/8) before this server, whose X-Forwarded-For is believed (repeatable)",
    )
    who.add_argument(
        "--embed",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="https://example.org: its pages may show this one in a frame (repeatable; default: nobody's)",
    )
    who.add_argument(
        "--training-room",
        action="store_true",
        help="let whoever may ask train models on this machine, and see the runs in runs/ (default: only on 127.0.0.1 "
        "without keys)",
    )
    told = parser.add_argument_group("running it")
    told.add_argument(
        "--history",
        type=Path,
        metavar="FOLDER",
        help="where the page keeps people's conversations, each for its own visitor (default: "
        f"{_data_folder()}; none where that can't be written)",
    )
    told.add_argument(
        "--no-history", action="store_true", help="keep none: conversations and pictures are gone with the visit"
    )
    told.add_argument("--log-format", choices=LOG_FORMATS, default="logfmt", help="of the line a request on stderr")
    told.add_argument("--log-prompts", action="store_true", help="also log the words of questions, to look for a fault")
    told.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="after SIGTERM or Ctrl-C, running answers may end for so long (default: 30); a second signal ends at once",
    )


def read_policy(arguments: argparse.Namespace) -> Policy:
    """What they say.

    Raises:
        VLChatError: one of them can't be.
    """
    if not 0 <= arguments.grace <= 86400:
        raise VLChatError(f"--grace is {arguments.grace:g}; give seconds from 0 to 86400.")
    return Policy(
        read_keys(arguments.api_keys),
        _rate("--rate", arguments.rate),
        _rate("--tokens", arguments.tokens),
        _proxies(arguments.trusted_proxy),
        _origins(arguments.embed),
        arguments.log_format,
        arguments.log_prompts,
        arguments.grace,
        _history(arguments.history, arguments.no_history),
        arguments.training_room,
    )


def _history(folder: Path | None, none: bool) -> Path | None:
    if folder is not None and none:
        raise VLChatError("--history and --no-history exclude each other: leave one of them out.")
    if folder is not None or none:
        return folder
    folder = _data_folder()
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if os.access(there, os.W_OK):
        return folder
    print("Conversations are gone with a visit; --history FOLDER keeps them.", file=sys.stderr)
    return None


def _data_folder() -> Path:
    """Where programs keep what is a person's (the XDG base directory specification)."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "vlchat"


def _rate(option: str, text: str | None) -> Rate | None:
    try:
        return None if text is None else Rate.read(text)
    except VLChatError as error:
        raise VLChatError(f"{option}: {error}") from None


def _proxies(addresses: Sequence[str]) -> Sequence[str]:
    for address in addresses:
        try:
            ipaddress.ip_network(address)
        except ValueError:
            raise VLChatError(f'--trusted-proxy "{address}" is no address or network, such as 10.0.0.0/8.') from None
    return addresses


def _origins(origins: Sequence[str]) -> Sequence[str]:
    for origin in origins:
        if _ORIGIN.fullmatch(origin) is None:
            raise VLChatError(f'--embed "{origin}" is no origin, such as https://example.org.')
    return origins
