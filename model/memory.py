"""How this process gets its memory."""

from __future__ import annotations

import ctypes
import logging
import platform

log = logging.getLogger(__name__)

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT = 1 << 30


def keep_freed_memory() -> None:
    """Let what is freed be used again rather than go back to the system, which has to give it again page by page.

    A batch at full width is tens of megabytes, made anew at every step: on a virtual machine its page faults took
    longer than to read and normalise it. GNU's C library alone has such settings; elsewhere nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for setting, size in ((_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, 64 << 20)):
        if mallopt(setting, size) != 1:
            log.debug("mallopt(%d, %d) was refused", setting, size)  # it costs speed, nothing else
