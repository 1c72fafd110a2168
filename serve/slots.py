"""Keys and values of several conversations that are answered in one batch, which may join and leave between steps."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]
"""By layer, keys and values of one conversation, (1, heads, tokens, head_dim)."""

_ROOM = 256  # tokens that a slot has room for at first; doubled when they are full
_MUCH = 2048  # tokens that a slot's room is given back from
_TRIED = (5, 9)  # tokens of the conversations that `fits` tries
_APART = 2e-2  # share by which a conversation in a slot may differ from the conversation alone: bfloat16's rounding


class _Layer(CacheLayerMixin):
    """One layer's; `update` adds a token to each conversation that is being answered."""

    keys: torch.Tensor  # (most, heads, room, head_dim), as `values`
    values: torch.Tensor

    def __init__(self, slots: Slots, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.slots = slots
        self.lazy_initialization(keys, values)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Room of the shapes of one conversation's keys and values."""
        self.keys, self.values = self._empty(key_states), self._empty(value_states)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def _empty(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_zeros(self.slots.most, states.shape[1], self.slots.room, states.shape[3])

    def grow(self, room: int) -> None:
        """Room for more tokens a slot."""
        for name in ("keys", "values"):
            before = getattr(self, name)
            if before.shape[2] == room:
                continue
            larger = before.new_zeros(*before.shape[:2], room, before.shape[3])
            larger[:, :, : before.shape[2]] = before
            setattr(self, name, larger)

    def shrink(self, room: int) -> None:
        """No more room a slot than this."""
        for name in ("keys", "values"):
            before = getattr(self, name)
            if before.shape[2] > room:
                setattr(self, name, before[:, :, :room].clone())

    def put(self, slot: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """A conversation's tokens so far, each (1 or none, heads, tokens, head_dim), into a slot."""
        length, used = keys.shape[-2], self.slots.used[slot]
        for room, states in ((self.keys, keys), (self.values, values)):
            room[slot, :, :length] = states
            room[slot, :, length:used] = 0  # masked; but nothing times another's NaN is NaN

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(count, heads, 1, head_dim) of new tokens -> all of each conversation's, (count, heads, tokens, head_dim)."""
        slots = self.slots
        rows, places, longest = slots.rows, slots.places, slots.longest + 1
        self.keys[rows, :, places] = key_states[:, :, 0]
        self.values[rows, :, places] = value_states[:, :, 0]
        return self.keys[: slots.count, :, :longest], self.values[: slots.count, :, :longest]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.longest + query_length, 0

    def get_seq_length(self) -> int:
        return self.slots.longest

    def get_max_length(self) -> int:
        return -1


class Slots(Cache):
    """Room for the keys and values of `most` conversations. Those being answered are the first `count` ones.

    Attributes:
        lengths: tokens of each conversation that is being answered.
    """

    def __init__(self, most: int) -> None:
        super().__init__(layers=[])
        self.layers: list[_Layer]  # type: ignore[assignment]  # none but ours
        self.most, self.room = most, _ROOM
        self.lengths: list[int] = []
        self.used = [0] * most  # tokens of each slot that something was written to
        self.rows = self.places = torch.empty(0, dtype=torch.long)

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    def join(self, found: KeyValues) -> int:
        """Takes a conversation in; returns its slot."""
        length = found[0][0].shape[2]
        if not self.layers:
            self._fit(length)
            self.layers = [_Layer(self, *one) for one in found]
        self._fit(length)
        slot = self.count
        for layer, one in zip(self.layers, found, strict=True):
            layer.put(slot, *one)
        self.used[slot] = length
        self.lengths.append(length)
        return slot

    def leave(self, slot: int) -> None:
        """Frees a slot; the last conversation moves into it."""
        last = self.count - 1
        for each in {slot, last}:
            self.used[each] = self.lengths[each]
        if slot != last:
            for layer in self.layers:
                length = self.lengths[last]
                layer.put(slot, layer.keys[last, :, :length], layer.values[last, :, :length])
            self.lengths[slot] = self.used[slot] = self.lengths[last]
        self.lengths.pop()

    def trim(self) -> None:
        """Gives back what a growth that failed took, and much room where nobody is answered."""
        if not self.lengths and self.room > _MUCH:
            self.layers, self.room, self.used = [], _ROOM, [0] * self.most
        for layer in self.layers:
            layer.shrink(self.room)

    def taken(self, slot: int) -> KeyValues:
        """Copies of a conversation's keys and values."""
        length = self.lengths[slot]
        return [
            (layer.keys[slot : slot + 1, :, :length].clone(), layer.values[slot : slot + 1, :, :length].clone())
            for layer in self.layers
        ]

    def begin(self, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
        """What a step of one more token each takes beside the tokens: where they stand, and what each sees.

        Returns:
            `position_ids` (count, 1), and `attention_mask` (count, 1, 1, longest + 1), added to attention's logits.
        """
        self._fit(self.longest + 1)
        self.rows = torch.arange(self.count, device=device)
        self.places = torch.tensor(self.lengths, device=device)
        hidden = torch.arange(self.longest + 1, device=device) > self.places[:, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill(hidden, torch.finfo(dtype).min)
        return {"position_ids": self.places[:, None], "attention_mask": mask[:, None, None]}

    def end(self) -> None:
        """After a step: each conversation has its new token."""
        self.lengths = [length + 1 for length in self.lengths]

    def _fit(self, length: int) -> None:
        room = self.room
        while room < length:
            room *= 2
        if room > self.room:
            for layer in self.layers:
                layer.grow(room)
            self.room = room  # not before: where memory is short, growing is tried once more


def of(cache: DynamicCache) -> KeyValues:
    """The keys and values that a cache of one conversation holds."""
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def filled(found: KeyValues, tokens: int) -> DynamicCache:
    """A cache of one conversation that begins with the first tokens of another, which it does not copy: it puts new
    tokens behind them by a new tensor.
    """
    cache = DynamicCache()
    for number, (keys, values) in enumerate(found):
        cache.update(keys[:, :, :0], values[:, :, :0], number)  # makes the layer
        layer: Any = cache.layers[number]
        layer.keys, layer.values = keys[:, :, :tokens], values[:, :, :tokens]
    return cache


@torch.inference_mode()
def fits(decoder: Any) -> bool:
    """Whether this language model can answer several conversations in slots, tried on a few tokens: not with windows,
    states that are no keys and values, or positions that it counts by itself.
    """
    weight = decoder.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    config = decoder.config
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False

    def embeddings(tokens: int) -> torch.Tensor:
        return torch.randn(1, tokens, weight.shape[1], generator=generator).to(weight.device, weight.dtype)

    try:
        slots, told, alone = Slots(len(_TRIED)), [], []
        for length in _TRIED:
            words, new = embeddings(length), embeddings(1)
            cache = DynamicCache()
            decoder(inputs_embeds=words, past_key_values=cache, use_cache=True)
            slots.join(of(cache))
            alone.append(decoder(inputs_embeds=new, past_key_values=cache, use_cache=True).last_hidden_state[0, -1])
            told.append(new)
        step = slots.begin(told[0].dtype, told[0].device)
        found = decoder(inputs_embeds=torch.cat(told), past_key_values=slots, use_cache=True, **step).last_hidden_state
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError):
        return False
    pairs = zip(found[:, -1].float(), (one.float() for one in alone), strict=True)
    return all(bool((one - other).norm() <= _APART * other.norm()) for one, other in pairs)
