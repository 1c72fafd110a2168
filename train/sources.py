"""Where training rows come from: files and Hugging Face datasets, or the drawn world."""

from collections.abc import Sequence
from typing import Any

from train.config import construct, typed
from vlchat.data import Example, Mixture, SourceConfig, load_source
from vlchat.errors import ConfigError, DataError, nearest
from vlchat.scenes.language import caption, detail
from vlchat.scenes.picture import picture_of
from vlchat.scenes.rows import conversation, generator
from vlchat.scenes.wording import Speaker
from vlchat.scenes.world import sample_scene


class SceneSource:
    """Drawn pictures with captions (`ask: captions`) or with conversations (`ask: chat`), each row made when asked for.

    Args:
        ask: "captions" or "chat".
        rows: rows of an epoch.
        seed: another seed, other rows.
        turns: questions about a picture, for `chat`.
        side: pictures are at least so many pixels wide and high.
        texts: share of scenes that are mostly text (`sample_scene`).
        weight: as in SourceConfig.
    """

    def __init__(
        self,
        ask: str,
        rows: int = 200_000,
        seed: int = 0,
        turns: int = 5,
        side: int = 96,
        texts: float = 0.0,
        weight: float = 1.0,
    ) -> None:
        if ask not in ("captions", "chat"):
            raise ConfigError(
                f'data: ask is "{ask}"; the drawn world has captions and chat{nearest(ask, ("captions", "chat"))}'
            )
        self.name = f"pictures with {'captions' if ask == 'captions' else 'conversations'} drawn by vlchat"
        self.texts = texts
        self.ask, self.rows, self.seed, self.turns, self.side, self.weight = ask, rows, seed, turns, side, weight

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Example:
        rng = generator(f"source-{self.ask}", self.seed, index)
        if self.ask == "captions":
            scene = sample_scene(rng, texts=self.texts)
            say = Speaker(rng)
            turn = (detail if rng.random() < 0.7 else caption)(scene, say)
            content: list[dict[str, Any]] = [
                {"type": "image", "image": picture_of(scene, rng, self.side)},
                {"type": "text", "text": turn.question},
            ]
            return Example(
                f"scene-{index}",
                [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]},
                ],
                {"scenes": (scene,)},
            )
        shown = conversation(self.seed, index, split="source", turns=self.turns, texts=self.texts)
        pictures = [picture_of(scene, rng, self.side) for scene in shown.scenes]
        return Example(f"scene-{index}", shown.messages(pictures), {"scenes": shown.scenes})


SOURCES: dict[str, Any] = {"scenes": SceneSource}
"""Sources by `type`; a source without a type is a SourceConfig, a file or a Hugging Face dataset."""


def open_data(specs: Sequence[dict[str, Any]], seed: int) -> Mixture:
    """The run's training rows.

    Raises:
        ConfigError: no source, or an unknown key. DataError: a source that cannot be read.
    """
    if not specs:
        raise ConfigError("data: names no source. Add data.0.path=FILE.json, for example.")
    sources, weights = [], []
    for number, spec in enumerate(specs):
        where = f"data.{number}"
        if "type" in spec:
            source: Any = construct(SOURCES, spec, where)
            weight = source.weight
        else:
            config = typed(SourceConfig, spec, where)
            try:
                source, weight = load_source(config), config.weight
            except DataError as error:
                raise error.within(f"{where}.path") from error
        sources.append(source)
        weights.append(weight)
    return Mixture(sources, weights, seed)
