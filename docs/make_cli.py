"""Write the tables of options at the end of the page of the command line (cli.md), from the commands themselves.

python docs/make_cli.py            write them
python docs/make_cli.py --check    fail if they are out of date
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from wme_async.cli.root import root

TARGET = Path(__file__).with_name("cli.md")
BAR = "\\|"  # a bar within a cell of a table
MARK = "<!-- made by docs/make_cli.py: what follows is overwritten -->\n"


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield all commands with their paths, groups too."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from commands(subcommand, (*path, name))


def row(option: click.Option, command: click.Command) -> str:
    """Return one line of a table."""
    context = click.Context(command)
    record = option.get_help_record(context)
    assert record is not None
    names, text = record
    # Without what click adds in brackets.
    text = (option.help or "").strip()
    default = option.get_default(context, call=False) if option.show_default else None
    if isinstance(default, tuple):
        default = ", ".join(map(str, default))
    if default is not None and not option.is_flag:
        text = f"{text} By default `{default}`.".strip()
    elif option.is_flag and option.secondary_opts and default is not None:
        text = f"{text} By default `{(option.opts if default else option.secondary_opts)[0]}`."
    if option.required:
        text = f"{text} Required."
    for kind in ("INTEGER RANGE", "FLOAT RANGE", "INTEGER"):
        names = names.replace(kind, "N")
    cells = (f"`{names}`", text)
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def table(command: click.Command) -> list[str]:
    """Return the table of a command's own options; empty if it has none."""
    rows = [
        row(parameter, command)
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
    ]
    return ["| option | |", "|---|---|", *rows] if rows else []


def usage(path: tuple[str, ...], command: click.Command) -> str:
    """Return a command with its arguments."""
    arguments = [
        parameter.make_metavar(click.Context(command))
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    return f"`{' '.join([*path, *arguments])}`"


def render() -> str:
    """Return the part of the page that this script writes."""
    lines = ["## Options", "", "Of all commands, at any place:", "", *table(root), ""]
    same: dict[tuple[str, ...], list[str]] = {}
    for path, command in commands(root):
        if path and (rows := table(command)):
            same.setdefault(tuple(rows), []).append(usage(path, command))
    for rows, names in same.items():
        lines += [f"**{', '.join(names)}**", "", *rows, ""]
    return "\n".join(lines)


def main() -> int:
    """Write the part, or compare it."""
    before, mark, tables = TARGET.read_text("utf-8").partition(MARK)
    if "--check" in sys.argv:
        return int(tables != f"\n{render()}")
    TARGET.write_text(f"{before}{mark or MARK}\n{render()}", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
