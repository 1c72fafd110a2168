"""What a server counts and times, in the words of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From a cached prompt on a GPU to a long one on a small CPU.
_FIRST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
_BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_WHOLE = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


class Metrics:
    """Counters, and histograms in seconds, of one engine or gateway.

    Args:
        running, waiting: read when they are asked for: conversations that are answered, and in line.
        kept, pictures: bytes of what is kept of conversations and of pictures.
    """

    def __init__(
        self,
        running: Callable[[], float],
        waiting: Callable[[], float],
        kept: Callable[[], float] | None = None,
        pictures: Callable[[], float] | None = None,
    ) -> None:
        self.registry = registry = CollectorRegistry()
        for name, says, read in (
            ("vlchat_running", "Conversations that are being answered.", running),
            ("vlchat_waiting", "Conversations in line.", waiting),
            ("vlchat_kept_bytes", "Keys and values kept of conversations.", kept),
            ("vlchat_pictures_bytes", "Features kept of pictures.", pictures),
        ):
            if read is not None:
                Gauge(name, says, registry=registry).set_function(read)
        self._ended = Counter("vlchat_requests", "Answers that ended, by how.", ["reason"], registry=registry)
        self._refused = Counter("vlchat_rejects", "Requests not taken, by why.", ["reason"], registry=registry)
        self._prompt = Counter("vlchat_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._cached = Counter("vlchat_cached_tokens", "Tokens of prompts that were known.", registry=registry)
        self._new = Counter("vlchat_new_tokens", "Tokens of answers; its rate is tokens a second.", registry=registry)
        self._first = Histogram(
            "vlchat_first_token_seconds", "From the question to its first token.", buckets=_FIRST, registry=registry
        )
        self._between = Histogram(
            "vlchat_inter_token_seconds", "Between two tokens of an answer.", buckets=_BETWEEN, registry=registry
        )
        self._whole = Histogram(
            "vlchat_answer_seconds", "From the question to the answer's end.", buckets=_WHOLE, registry=registry
        )

    def token(self, seconds: float, first: bool) -> None:
        """A token came, so long after the question (its first one) or after the one before."""
        (self._first if first else self._between).observe(seconds)

    def ended(self, reason: str, prompt: int, cached: int, new: int, seconds: float) -> None:
        """An answer ended: its tokens, and the seconds from its question."""
        self._ended.labels(reason).inc()
        self._prompt.inc(prompt)
        self._cached.inc(cached)
        self._new.inc(new)
        self._whole.observe(seconds)

    def refused(self, reason: str) -> None:
        """A request was not taken."""
        self._refused.labels(reason).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
