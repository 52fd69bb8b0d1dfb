"""The ranks of a command that ``torchrun`` has started several times, on one machine or many.

They talk through the key-value store of ``torch.distributed``: which item is whose, which is done,
and that each is alive. No message is larger than a result's record, and nobody waits for another
but the first rank, at the end, for results. What a slide or a member gives lies in files.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from stflow_graph.errors import StflowError, one_line

if TYPE_CHECKING:
    from torch.distributed import Store

BEAT = 5.0  # seconds between signs of life
MAX_SILENCE = 45.0  # seconds after which a rank counts as lost
MAX_START = 600.0  # seconds after which one that gave none counts as lost
_GRACE = 5.0  # seconds
_POLL, _MAX_POLL = 0.01, 0.5
_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RESUME = "the same command goes on with what is missing"


class RankFailed(StflowError):
    """Another rank failed or was lost; what is finished is kept."""

    exit_code = 75


class Ranks:
    """This process among those of one command.

    Args:
        store: that all of them reach.
        rank: number of this one, from 0 on.
        size: their number.

    Attributes:
        rank: number of this one; the first, 0, speaks for all.
        size: their number.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store, self.rank, self.size = store, rank, size
        self._rounds = 0
        self._last_beat, self._needs_others, self._lost = time.monotonic(), False, ""
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._set(f"host/{rank}", socket.gethostname())
        threading.Thread(target=self._beat, daemon=True).start()

    def claims(self, n: int) -> Iterator[int]:
        """Yield numbers below n, each to one of the ranks, whoever is free.

        All ranks ask as often and in the same order.
        """
        key = self._round("claims")
        while (i := self._add(key)) < n:
            yield i

    def counter(self) -> Callable[[str], int]:
        """Return a function that counts how often all ranks have called it with a name."""
        key = self._round("counter")
        return lambda name: self._add(f"{key}/{name}") + 1

    def tell(self, value: object) -> None:
        """Give a value to the other ranks; they :meth:`hear` it in the same round."""
        Results(self, self._round("told"), 1).put(0, value)

    def hear(self) -> Any:
        """Return what the first rank tells; waits for it."""
        return next(Results(self, self._round("told"), 1).rest())

    def results(self, n: int) -> Results:
        """Return where the ranks put what n items give."""
        return Results(self, self._round("results"), n)

    @contextlib.contextmanager
    def telling_failures(self) -> Iterator[None]:
        """Tell the other ranks what ends this one, so that none waits for it."""
        try:
            yield
        except BaseException as error:
            self.tell_failure(str(error) or type(error).__name__)
            raise

    def tell_failure(self, message: str) -> None:
        """Tell the other ranks that this one ends, and why."""
        with contextlib.suppress(RankFailed):
            self._set(f"failed/{self.rank}", one_line(message))

    def leave(self) -> None:
        """Tell the other ranks that this one has done its part; the first one stays to the end.

        It may keep the store, without which the others cannot end well.
        """
        self._set(f"left/{self._rounds}/{self.rank}", "")
        with contextlib.suppress(RankFailed):  # all results are there
            while not self.rank and not all(map(self._has_left, range(self.size))):
                self.check_others()
                time.sleep(_POLL)

    def is_told_by_first(self, message: str, seconds: float = 10.0) -> bool:
        """Return whether the first rank fails with the same message within so many seconds."""
        until = time.monotonic() + seconds
        with contextlib.suppress(RankFailed):
            while self.rank and time.monotonic() < until:
                if (text := self._get("failed/0")) is not None:
                    return text.decode() == one_line(message)
                time.sleep(0.05)
        return False

    @contextlib.contextmanager
    def watching(self, *, others: bool = False) -> Iterator[None]:
        """End this process if the store is lost while the body waits for it, or for another rank.

        What torch waits for, an answer that never comes or a collective operation, cannot be
        interrupted otherwise. Files are whole at any moment.

        Args:
            others: end it also when another rank is lost, without which the body cannot go on.
        """
        done = threading.Event()

        def lost() -> str:
            silence = time.monotonic() - self._last_beat
            if silence > MAX_SILENCE:
                return f"the store of the ranks is silent for {silence:.0f} s. Fix: {RESUME}"
            return self._lost

        def watch() -> None:
            while not done.wait(BEAT):
                # torch may see it as well, and the body ends; or a machine that slept wakes up
                if lost() and not done.wait(_GRACE) and (reason := lost()):
                    os.write(2, f"error: {reason}\n".encode())
                    os._exit(RankFailed.exit_code)

        self._needs_others = others
        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            done.set()
            self._needs_others, self._lost = False, ""

    def check_others(self) -> None:
        """Check that no other rank has failed or been lost.

        Raises:
            RankFailed: one has; the message says which and why.
        """
        now = time.monotonic()
        for rank in range(self.size):
            if rank == self.rank:
                continue
            if (reason := self._get(f"failed/{rank}")) is not None:
                raise RankFailed(f"rank {rank}{self._place(rank)}: {reason.decode()}")
            beat = self._get(f"beat/{rank}") or b""
            last, since = self._seen.get(rank, (None, now))
            # machines of a queue do not start together
            patience = MAX_SILENCE if beat else MAX_START
            if beat != last:
                self._seen[rank] = beat, now
            elif now - since > patience and not self._has_left(rank):
                raise RankFailed(
                    f"rank {rank}{self._place(rank)}: no sign of life for {now - since:.0f} s. "
                    f"Fix: {RESUME}"
                )

    def _has_left(self, rank: int) -> bool:
        return self._get(f"left/{self._rounds}/{rank}") is not None

    def _round(self, kind: str) -> str:
        self._rounds += 1
        return f"{kind}/{self._rounds}"

    def _place(self, rank: int) -> str:
        host = self._get(f"host/{rank}")
        return "" if host is None else f" on {host.decode()}"

    def _beat(self) -> None:
        beats = 0
        with contextlib.suppress(RankFailed):  # by the store, which is missed before long
            while True:
                beats += 1
                self._set(f"beat/{self.rank}", str(beats))
                self._last_beat = time.monotonic()
                if self._needs_others:
                    self._lost = self._who_is_lost()
                time.sleep(BEAT)

    def _who_is_lost(self) -> str:
        try:
            self.check_others()
        except RankFailed as error:
            return str(error)
        return ""

    def _set(self, key: str, value: str | bytes) -> None:
        with _as_lost():
            self._store.set(key, value)  # type: ignore[arg-type]  # bytes are taken

    def _get(self, key: str) -> bytes | None:
        """Return a key's value, None if it has none yet; never waits."""
        with _as_lost():
            return bytes(self._store.get(key)) if self._store.check([key]) else None

    def _add(self, key: str) -> int:
        """Return how often all ranks had added to a key before."""
        with _as_lost():
            return int(self._store.add(key, 1)) - 1


class Results:
    """What items give, by whichever rank.

    Args:
        ranks: that put it there, and take it.
        key: of the round.
        n: number of items.
    """

    def __init__(self, ranks: Ranks, key: str, n: int) -> None:
        self._ranks, self._keys = ranks, {i: f"{key}/{i}" for i in range(n)}

    def put(self, i: int, value: object) -> None:
        """Put an item's result, which can be pickled."""
        self._ranks._set(self._keys[i], pickle.dumps(value))

    def ready(self) -> Iterator[Any]:
        """Yield the results that are there and were not yielded yet."""
        for i, key in list(self._keys.items()):
            if (value := self._ranks._get(key)) is not None:
                del self._keys[i]
                yield pickle.loads(value)

    def rest(self) -> Iterator[Any]:
        """Yield the results that were not yielded yet, waiting for each.

        Raises:
            RankFailed: another rank failed or is lost before all are there.
        """
        pause, checked = _POLL, time.monotonic()
        while self._keys:
            before = len(self._keys)
            yield from self.ready()
            if len(self._keys) < before:
                pause = _POLL
                continue
            if time.monotonic() - checked > 1:
                self._ranks.check_others()
                checked = time.monotonic()
            time.sleep(pause)
            pause = min(1.5 * pause, _MAX_POLL)


@contextlib.contextmanager
def _as_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of torch.distributed, whose own classes are new in 2.6
        raise RankFailed(
            f"the store of the ranks is lost, which the first rank or its machine keeps "
            f"({one_line(str(error), 120)}). Fix: {RESUME}"
        ) from None


_joined: Ranks | None = None


def is_rank() -> bool:
    """Return whether ``torchrun``, or what sets the same variables, started this process."""
    return all(os.environ.get(name) for name in _NAMES) and os.environ["WORLD_SIZE"] != "1"


def ranks_of_this_machine() -> int:
    """Return how many ranks share this machine's memory; 1 for a process that is none."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))) if is_rank() else 1


def join() -> Ranks | None:
    """Return this process among those that ``torchrun`` started; None where it is the only one.

    Raises:
        RankFailed: the others cannot be reached.
    """
    global _joined
    if _joined is not None or not is_rank():
        return _joined
    _joined = Ranks(*connect())
    return _joined


def connect() -> tuple[Store, int, int]:
    """Return a new connection to the store of the ranks, this one's number and their number.

    Raises:
        RankFailed: the others cannot be reached.
    """
    import torch.distributed as dist

    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=MAX_START)))
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankFailed(
            f"ranks: nobody answers at {place} ({one_line(str(error), 120)}). "
            "Fix: MASTER_ADDR and MASTER_PORT name the machine of rank 0"
        ) from None
    return store, rank, size
