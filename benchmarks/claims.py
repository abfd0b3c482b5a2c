# SPDX-License-Identifier: Apache-2.0
"""Runs that several processes share: each is done by one of them, whoever comes first, and by another if that one dies."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

FILE = "claims.lock"
POLL = 0.5


class Claims:
    """Locks on names in one file of a folder, by bytes of it; the system takes them back from a process that ends.

    Record locks hold on local disks and on network file systems that have them (NFS 4, Lustre, GPFS).
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)

    def close(self) -> None:
        """Give everything back."""
        os.close(self._file)

    @contextmanager
    def mine(self, name: str) -> Iterator[bool]:
        """Within it ``name`` is this process's, if True; False if another process has it."""
        if not (got := self._take(name)):
            yield False
            return
        try:
            yield got
        finally:
            self._give_back(name)

    @contextmanager
    def waited_for(self, name: str, look: Callable[[], None]) -> Iterator[None]:
        """Within it ``name`` is this process's; ``look`` is called while another has it and may raise."""
        while not self._take(name):
            look()
            time.sleep(POLL)
        try:
            yield
        finally:
            self._give_back(name)

    def _take(self, name: str) -> bool:
        if sys.platform == "win32":
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(name))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _give_back(self, name: str) -> None:
        if sys.platform != "win32":
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(name))


def _place(name: str) -> int:
    """The byte that stands for a name; two names share one as good as never."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
