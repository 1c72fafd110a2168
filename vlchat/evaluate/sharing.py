"""Several processes that answer one evaluation together, as `accelerate launch` or `torchrun` start them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from vlchat.errors import VLChatError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work; by default it is alone.

    Attributes:
        rank: its number, from 0.
        count: how many there are; 1 where nothing was launched.
        device: which device `auto` means for this process; None leaves it to the model's loading.
    """

    rank: int = 0
    count: int = 1
    device: str | None = None

    @classmethod
    def launched(cls) -> Processes:
        """As `accelerate launch` or `torchrun` says; alone where neither started this process."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes, str(state.device))

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def agreed(self, made: Callable[[], T]) -> T:
        """What the first process makes, for all of them."""
        if self.count == 1:
            return made()
        from accelerate.utils import broadcast_object_list

        shared: list[Any] = [None]
        if self.first:
            try:
                shared = [(made(), None)]
            except VLChatError as error:
                shared = [(None, error)]
        broadcast_object_list(shared)
        value, refused = shared[0]
        if refused is not None:
            raise refused
        return value

    def shared(self, pieces: Sequence[T], work: Callable[[T], Any]) -> list[Any]:
        """What `work` makes of each piece, in the order of the pieces; each process works on every n-th.

        Raises:
            VLChatError: any process failed at its pieces.
        """
        if self.count == 1:
            return [work(piece) for piece in pieces]
        from accelerate.utils import gather_object

        mine: list[Any] = []
        failure: str | None = None
        try:
            mine = [work(piece) for piece in pieces[self.rank :: self.count]]
        except Exception as error:  # told to the others, which would wait for it for ever
            failure = f"{error}" if isinstance(error, VLChatError) else f"{type(error).__name__}: {error}"
        gathered = gather_object([(self.rank, failure, mine)])
        for rank, failed, _ in gathered:
            if failed is not None:
                raise VLChatError(failed if rank == self.rank else f"Process {rank} failed: {failed}")
        parts = {rank: list(part) for rank, _, part in gathered}
        return [parts[number % self.count][number // self.count] for number in range(len(pieces))]
