"""All commands of the command line, whoever adds them."""

from collections.abc import Iterator

import click

from wme_async.cli.root import root

__all__ = ["commands", "leaves"]

Path = tuple[str, ...]


def commands() -> list[tuple[Path, click.Command]]:
    """Return the path and the command of the root and of everything below it."""
    return list(_walk(root, ()))


def leaves() -> list[tuple[Path, click.Command]]:
    """Return the commands that are not groups of others."""
    return [(path, command) for path, command in commands() if not isinstance(command, click.Group)]


def _walk(command: click.Command, path: Path) -> Iterator[tuple[Path, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from _walk(subcommand, (*path, name))
