"""API keys as a file says them, and rates as buckets keep them: on their own, without a server."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")

from serve.keys import SHORTEST, VARIABLE, Keys, read_keys  # noqa: E402
from serve.policy import Rate  # noqa: E402
from serve.rates import Buckets, RateError, Rates  # noqa: E402
from vlchat.cli import main  # noqa: E402
from vlchat.errors import VLChatError  # noqa: E402

ANNA, BERT = "a" * 20, "b:" + "b" * 20


def test_a_key_is_known_by_its_name_and_nowhere_kept_as_it_is() -> None:
    keys = Keys(["# who", "", f"anna: {ANNA}", "c" * 20])
    assert keys and keys.name_of(ANNA) == "anna" and keys.name_of("c" * 20) == "key-4"
    for wrong in ("", "anna", ANNA[:-1], ANNA + "a", ANNA.upper(), "\udcff", "ä" * 20):
        assert keys.name_of(wrong) is None
    assert ANNA not in repr(vars(keys))
    assert not Keys() and Keys().name_of("") is None


def test_every_key_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time can't tell which key, or how much of one, was right: each asks for the same comparisons of digests."""
    import hmac

    keys, compared = Keys(f"name{number}: {number:020}" for number in range(5)), list[int]()
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append(len(one)) or real(one, other))
    for key in (f"{0:020}", f"{4:020}", f"{0:019}x", "", "x" * 10_000):
        compared.clear()
        keys.name_of(key)
        assert compared == [32] * 5


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["anna: short"], f"line 1: a key has at least {SHORTEST}"),
        (["", f"anna: {ANNA} {ANNA}"], "line 2: a key has letters"),
        (["anna: " + "é" * 20], "line 1: a key has letters"),
        ([f"anna: {ANNA}", "anna: " + "c" * 20], 'line 2: the name "anna"'),
        ([f"anna: {ANNA}", f"bert: {ANNA}"], "line 2: this key is there already"),
        ([": " + ANNA], "line 1: the name"),
        (["# nobody"], "has no key"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_told_by_line_and_without_the_key(
    tmp_path: Path, lines: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text("\n".join(lines))
    assert main(["serve", "--api-keys", str(tmp_path / "keys")]) == 2
    error = capsys.readouterr().err
    assert told in error and ANNA not in error


def test_keys_come_from_the_environment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv(VARIABLE, f"anna: {ANNA}, {'c' * 20}")
    keys = read_keys(None)
    assert keys.name_of(ANNA) == "anna" and keys.name_of("c" * 20) == "key-2"
    assert VARIABLE not in os.environ and not read_keys(None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--api-keys", "nowhere"], "can't be read"),
        (["--rate", "many"], '--rate: "many" is no rate'),
        (["--rate", "0/minute"], "is no rate"),
        (["--tokens", "5/fortnight"], '--tokens: "5/fortnight"'),
        (["--trusted-proxy", "everyone"], "is no address"),
        (["--embed", "https://example.org; script-src *"], "is no origin"),
        (["--host-name", "http://example.org"], "is no name"),
        (["--grace", "-1"], "--grace is -1"),
        (["--grace", "nan"], "--grace is nan"),
    ],
)
def test_an_option_that_cannot_be_is_one_sentence(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options]) == 2
    assert told in capsys.readouterr().err


def test_a_bucket_never_gives_more_than_its_rate_and_its_wait_is_true() -> None:
    """However they come: over any time no more than a full bucket and what flowed in; after the wait there is one."""
    for seed in range(20):
        draw, now = random.Random(seed), 0.0
        rate = Rate(draw.randint(1, 40), draw.choice(["second", "minute", "hour"]))
        buckets = Buckets(rate, lambda: now)  # noqa: B023
        taken: list[float] = []
        for _ in range(300):
            now += draw.choice([0.0, 0.0, draw.random() * rate.seconds / rate.most, draw.random() * rate.seconds])
            seconds = buckets.wait("anna")
            if seconds:
                assert seconds <= rate.seconds / rate.most + 1e-6
                now += seconds
                assert buckets.wait("anna") == 0.0
            buckets.spend("anna")
            taken.append(now)
        for start in range(len(taken)):
            for end in range(start, len(taken), 7):
                flowed = (taken[end] - taken[start]) * rate.most / rate.seconds
                assert end - start + 1 <= rate.most + flowed + 1e-3
        assert buckets.wait("bert") == 0.0, "one caller's questions are not another's"


def test_tokens_are_counted_when_they_are_known_and_waited_for_later() -> None:
    rates = Rates(None, Rate(600, "minute"))
    rates.admit("anna")
    rates.used("anna", 660)
    with pytest.raises(RateError) as refused:
        rates.admit("anna")
    assert refused.value.retry_after == 7 and "600 a minute tokens" in str(refused.value)
    rates.admit("bert")


def test_callers_that_may_ask_again_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.rates._MANY", 10)
    now = 0.0
    buckets = Buckets(Rate(1, "second"), lambda: now)
    for number in range(100):
        buckets.spend(str(number))
        now += 0.5
    assert len(buckets._full) <= 11


def test_a_rate_is_read_as_it_is_written() -> None:
    assert str(Rate.read("30/minute")) == "30 a minute" and Rate.read("5/hour").seconds == 3600
    with pytest.raises(VLChatError):
        Rate.read("-5/minute")
