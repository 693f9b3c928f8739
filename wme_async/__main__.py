"""`python -m wme_async`: the command line, or a hint how to install it."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: Always, with the exit code.
    """
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
