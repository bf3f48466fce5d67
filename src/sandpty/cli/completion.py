"""`sandpty completion`: what makes a shell complete our commands, options and sandboxes."""

from __future__ import annotations

import click

_VARIABLE = "_SANDPTY_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options and IDs.

    \b
    Examples:
      eval "$(sandpty completion bash)"                                      in ~/.bashrc (bash 4.4 or newer)
      eval "$(sandpty completion zsh)"                                       in ~/.zshrc, after compinit
      sandpty completion fish > ~/.config/fish/completions/sandpty.fish
    """
    from click.shell_completion import get_completion_class

    root = click.get_current_context().find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root.command, {}, "sandpty", _VARIABLE).source())
