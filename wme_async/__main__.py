"""`python -m wme_async`: the command line, or a hint how to install it."""

import io
import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: Always, with the exit code.
    """
    _open_what_is_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that a terminal cannot show must not stop the program; JSON is written as UTF-8 in any case.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _main()
    except KeyboardInterrupt:
        # The command line has not started yet.
        raise SystemExit(130) from None
    except Exception as error:
        # Errors before the command line handles them: a damaged installation, no memory, no descriptors.
        if any(argument.startswith("-vv") for argument in sys.argv[1:]):
            raise
        print(f"{type(error).__name__}: {error} (-vv shows where)", file=sys.stderr)
        raise SystemExit(1) from None


def _open_what_is_closed() -> None:
    """Open the standard streams that we were started without: the next socket would get their number otherwise."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  # while the process lives


def _main() -> None:
    try:
        from wme_async.cli.root import main as run  # noqa: PLC0415  # an extra
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in {"click", "rich", "platformdirs", "dotenv"}:
            raise
        print("the command line needs some more packages: pip install 'wme-async[cli]'", file=sys.stderr)
        raise SystemExit(1) from None
    run()


if __name__ == "__main__":
    main()
