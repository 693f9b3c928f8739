"""Output: the one place where text reaches a terminal, with its control characters made visible.

Titles, paths, error messages of servers and log lines are written by others. An escape sequence in one of them could
change the screen, set its title or its clipboard, or forge lines. So all output goes through `visible` here: tables,
errors, progress and logs. Data written into a pipe or a file stays unchanged.
"""

import logging
import re
import sys
from collections.abc import Iterable

import click
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment

# C0 except tab and line feed, DEL, C1; line and paragraph separators; marks, embeddings, overrides and isolates of the
# bidirectional algorithm (UAX #9), which change the order in which a line is shown; the byte order mark.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Return text with its control characters written as `\\u001b`, as JSON writes them; tab and line feed stay.

    Args:
        text: Text of any origin.
    """
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: str) -> str:
    """Return text as one line, with its control characters made visible.

    Args:
        text: Text of any origin; its lines are joined by blanks.
    """
    return visible(" ".join(text.split("\n")).replace("\r", "").replace("\t", " "))


class TerminalConsole(Console):
    """A console that makes control characters of the text visible; those of its own styling stay."""

    @property  # type: ignore[misc]  # nothing sets it here
    def size(self) -> ConsoleDimensions:
        """The size of the terminal; 80 columns where `COLUMNS=0` leaves no room for any text."""
        size = super().size
        return size if size.width > 0 else ConsoleDimensions(80, size.height)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable.

        Args:
            renderable: As for `rich.console.Console`.
            options: As for `rich.console.Console`.
        """
        for segment in super().render(renderable, options):
            if segment.control or not _CONTROL.search(segment.text):
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


# Markup and emoji codes in text of others are printed literally.
stdout: Console = TerminalConsole(markup=False, emoji=False)
stderr: Console = TerminalConsole(stderr=True, soft_wrap=True, markup=False, emoji=False)


def echo(text: object, *, err: bool = False) -> None:
    """Print a message.

    Args:
        text: The message; its control characters are made visible.
        err: Print to standard error.
    """
    click.echo(visible(str(text)), err=err)


def json_line(data: bytes) -> None:
    """Write one line of JSON to standard output.

    Args:
        data: Encoded JSON. On a terminal, control characters inside of strings are escaped, which leaves the value
            unchanged.
    """
    if sys.stdout.isatty():
        data = visible(data.decode("utf-8", "replace")).encode()
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()


def text_line(text: str) -> None:
    """Write a value that is text, on a line of standard output.

    Args:
        text: On a terminal its control characters are made visible.
    """
    # `click.echo` would remove escape sequences, which are part of the value.
    sys.stdout.write(f"{visible(text) if sys.stdout.isatty() else text}\n")
    sys.stdout.flush()


class LogFormatter(logging.Formatter):
    """Log lines with the control characters of their values made visible."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, and below it the traceback if it has one.

        Args:
            record: As for `logging.Formatter`.
        """
        return visible(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name of the base class
        """Return the line of a record.

        Args:
            record: As for `logging.Formatter`.
        """
        return one_line(super().formatMessage(record))
