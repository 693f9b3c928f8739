"""A type whose module kills the worker that imports it, as a lack of memory does; the process of the tests goes on."""

import multiprocessing
import os
import signal

from bulk_types import Page

__all__ = ["Page"]

if multiprocessing.parent_process() is not None:
    os.kill(os.getpid(), signal.SIGKILL)
