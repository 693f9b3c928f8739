"""`wme-async completion`: the script with which a shell completes commands and options."""

import click
from click.shell_completion import get_completion_class

from wme_async.cli import base

_PROGRAM = "wme-async"
_VARIABLE = "_WME_ASYNC_COMPLETE"


_HELP = """Print the script that lets a shell complete commands and options with the tab key.

Put it where the shell reads it, such as:

\b
~/.bashrc:
  eval "$(wme-async completion bash)"
~/.zshrc:
  eval "$(wme-async completion zsh)"
~/.config/fish/config.fish:
  wme-async completion fish | source
"""


@click.command("completion", help=_HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, /, shell: str) -> None:
    """Print the script of a shell."""
    completion = get_completion_class(shell)
    assert completion is not None
    base.echo(completion(context.find_root().command, {}, _PROGRAM, _VARIABLE).source())
