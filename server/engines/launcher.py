"""Becomes the program given, which then dies with its parent: `launcher.py <parent's pid> <program> <argument>...`.

A program of its own because the request belongs between fork and exec, where a process with threads may run no Python.
Linux delivers the signal when the *thread* that started it ends: use a thread that lives as long as the gateway.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # it died before the request was made
        sys.exit(1)
    os.execv(sys.argv[2], sys.argv[2:])
