"""The classes that lmms-eval makes of `--model vlchat` and its `--model_args`. Importing this needs lmms-eval."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult  # type: ignore[import-not-found,import-untyped]
from lmms_eval.api.model import lmms  # type: ignore[import-not-found,import-untyped]

from vlchat.chat import Chat
from vlchat.errors import ConfigError, nearest
from vlchat.evaluate.answerers import ChatAnswerer
from vlchat.lmms.interface import ChatTasks, Interface, SimpleTasks

_OPTIONS = ("pretrained", "quantize", "dtype", "attn", "revision", "frames", "system_prompt", "device", "batch_size")
_HARMLESS = {"max_batch_size"}  # lmms-eval passes it to every model


class _Loaded(Interface, lmms):  # type: ignore[misc]
    """A model as --model_args name it.

    Args:
        pretrained: a folder, Hub id or short name; by default the embedded model.
        quantize, dtype, attn, revision: as of `vlchat.chat.Chat.load`.
        frames: how many pictures of a video are shown.
        system_prompt: goes before every conversation that has none.
        device: by default the GPU of this process, or the CPU.
        batch_size: questions answered at once.

    Raises:
        VLChatError: an option that is not known, or a model that cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        quantize: str | None = None,
        dtype: str = "auto",
        attn: str | None = None,
        revision: str | None = None,
        frames: int = 8,
        system_prompt: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        **others: Any,
    ) -> None:
        for name in others:
            if name not in _HARMLESS:
                raise ConfigError(
                    f'--model_args: vlchat has no "{name}"; known: {", ".join(_OPTIONS)}{nearest(name, _OPTIONS)}'
                )
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"--batch_size is {batch_size}; vlchat needs a number from 1 on.")
        lmms.__init__(self)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.local_process_index, self.accelerator.num_processes
        place = str(self.accelerator.device) if self._world_size > 1 else device or "auto"
        chat = Chat.load(pretrained, quantize=quantize, dtype=dtype, device=place, attn=attn, revision=revision)
        self.device = chat.model.device
        told = self._resolve_system_prompt(system_prompt)
        Interface.__init__(
            self, ChatAnswerer(chat), frames=frames, system_prompt=told, batch_size=int(batch_size)
        )


class VLChat(ChatTasks, _Loaded):
    is_simple = False


class VLChatSimple(SimpleTasks, _Loaded):
    is_simple = True

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        # lmms-eval 0.7.3 (api/instance.py, unwrap_generation_output) makes a string of a plain pair, and then fails.
        return [GenerationResult(pair) for pair in super().loglikelihood(requests)]
