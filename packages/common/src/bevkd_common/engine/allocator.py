"""The C library's allocator, told to keep what a training step gives back."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
_LARGE = 1 << 25
_GROWTH = 1 << 26


def keep_freed_memory() -> bool:
    """Let freed arrays serve the next step instead of going back to the system, which clears every page again.

    The steps of a training on the CPU allocate the same sizes over and over; by default glibc maps each large array
    anew. Memory grows in pieces of 64 MB and is held until the process ends. Arrays of more than 32 MB still come
    from the system and go back: kept, they leave holes that nothing else fits into, and a training of gigabytes
    takes several times as much.

    Returns:
        Whether the C library took it: only glibc knows these settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = {_MMAP_THRESHOLD: _LARGE, _TRIM_THRESHOLD: -1, _TOP_PAD: _GROWTH}
    return all(libc.mallopt(name, value) == 1 for name, value in settings.items())
