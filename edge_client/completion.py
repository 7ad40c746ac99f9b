"""`fedfleet completion`: what a shell needs to complete commands and options."""

import click
from click.shell_completion import get_completion_class

NAME = "fedfleet"
VARIABLE = "_FEDFLEET_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    Example:
      bash  eval "$(fedfleet completion bash)" in ~/.bashrc
      zsh   eval "$(fedfleet completion zsh)" in ~/.zshrc
      fish  fedfleet completion fish > ~/.config/fish/completions/fedfleet.fish

    Exit codes: 0 done, 2 wrong usage.
    """  # noqa: D301 - \b is click's mark for a paragraph to keep as it is
    kind = get_completion_class(shell)
    assert kind is not None  # click knows all three
    from edge_client.cli import main  # noqa: PLC0415 - which imports the command that is used

    click.echo(kind(main, {}, NAME, VARIABLE).source())
