"""Ctrl-C and other signals: the first lets a command save its state, and no number of them shows a traceback."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from wme_async.cli import base
from wme_async.simulator import Simulator


def wait_signalled(process: "subprocess.Popen[str]", number: signal.Signals, pause: float) -> str:
    """Send a signal again and again until a process ends, and return its standard error.

    For half a second only: however slow the machine is, none of them comes a second after the first.
    """
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 0.5:
        process.send_signal(number)
        time.sleep(pause)
    return process.communicate(timeout=30)[1]


@pytest.mark.parametrize("pause", [0.0, *(pytest.param(pause, marks=pytest.mark.servers) for pause in (0.003, 0.03))])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_ends_quietly_however_often_it_is_told(number: signal.Signals, pause: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "wme_async", "simulate", "--articles", "1", "--rate", "50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    errors = wait_signalled(process, number, pause)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "stopped"
    assert "Traceback" not in errors
    assert "Exception" not in errors


def test_the_positions_are_saved_although_the_signal_comes_twice(tmp_path: Path) -> None:
    with Simulator.run_in_thread(articles=1) as simulator:
        simulator.call(simulator.firehose.publish)
        process = subprocess.Popen(
            [sys.executable, "-m", "wme_async", "stream", "--since", "1m", "--offsets", str(tmp_path / "offsets.db")],
            env={**os.environ, **simulator.environment(), "XDG_STATE_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline()
        errors = wait_signalled(process, signal.SIGINT, 0.001)
    assert process.returncode == 130, errors
    assert "the positions are saved" in errors
    assert "Traceback" not in errors


HANGS = """
import asyncio, os, signal, sys
from wme_async.cli.signals import StopSignals

handler = StopSignals(grace=0.0)
signal.signal(signal.SIGINT, handler)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("saving", flush=True)
os.kill(os.getpid(), signal.SIGINT)
print("not reached", flush=True)
"""


def test_a_later_signal_ends_a_command_that_does_not_end_by_itself() -> None:
    result = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, check=False)
    assert result.stdout == "saving\n"
    assert (result.returncode, result.stderr) == (130, "stopped at once\n")


def test_the_handlers_of_a_program_are_restored_after_a_command() -> None:
    async def command() -> int:
        assert signal.getsignal(signal.SIGTERM) is not before
        await asyncio.sleep(0)
        return 7

    before = signal.getsignal(signal.SIGTERM)
    assert base.run(command()) == 7
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_the_event_loop_is_closed_is_not_lost() -> None:
    async def command() -> None:
        async def clean_up() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                # The loop cancels what is left, after the command has ended.
                os.kill(os.getpid(), signal.SIGTERM)

        task = asyncio.create_task(clean_up())
        await asyncio.sleep(0)
        assert not task.done()

    with pytest.raises(KeyboardInterrupt):
        base.run(command())
