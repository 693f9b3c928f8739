"""Run a command and write its resource usage as one line to a file descriptor: `wall user system maxrss status`.

This small process stands between the harness and the measured one, since on Linux the peak memory of a program counts
that of the process which started it.
"""

import os
import sys
import time


def main() -> None:
    """Run the command of the arguments after the number of the descriptor."""
    report = int(sys.argv[1])
    started = time.perf_counter()
    pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, file_actions=[(os.POSIX_SPAWN_CLOSE, report)])
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - started
    line = f"{wall} {usage.ru_utime} {usage.ru_stime} {usage.ru_maxrss} {os.waitstatus_to_exitcode(status)}"
    os.write(report, line.encode())


main()
