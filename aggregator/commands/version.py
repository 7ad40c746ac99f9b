"""`fedfleet version`: versions of a job."""

import click
from rich.console import Console

from aggregator.commands.common import EXIT_CODES, asks_server, json_option, print_json
from aggregator.commands.job import newest
from aggregator.sdk import Fleet


@click.group(epilog="Example: fedfleet version list exercise\n\n" + EXIT_CODES)
def version() -> None:
    """Look at the versions of a job, promote one, take that back."""


@version.command("list", epilog="Example: fedfleet version list exercise --limit 50\n\n" + EXIT_CODES)
@click.argument("job")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="The newest so many."
)
@asks_server
@json_option
def list_versions(job: str, limit: int, *, fleet: Fleet, as_json: bool) -> None:
    """List the newest versions of JOB with their figures."""
    found = fleet.job(job)
    versions = found.newest(limit)
    if as_json:
        print_json(versions)
        return
    console = Console()
    console.print(newest(versions))
    if found.facts["promoted_version"] is not None:
        console.print(f"promoted: version {found.facts['promoted_version']}")


@version.command(
    short_help="Have a version of JOB exported, and kept.",
    epilog="Example: fedfleet version promote exercise 17\n\n" + EXIT_CODES,
)
@click.argument("job")
@click.argument("number", type=int)
@asks_server
@json_option
def promote(job: str, number: int, *, fleet: Fleet, as_json: bool) -> None:
    """Have version NUMBER of JOB exported unless another is asked for, and kept; devices go on with the newest."""
    promoted = fleet.job(job).promote(number)
    if as_json:
        print_json(promoted)
    else:
        click.echo(f"version {number} of {job} is promoted")


@version.command(
    short_help="Have the newest version of JOB exported again.",
    epilog="Example: fedfleet version unpromote exercise\n\n" + EXIT_CODES,
)
@click.argument("job")
@asks_server
@json_option
def unpromote(job: str, *, fleet: Fleet, as_json: bool) -> None:
    """Take the promotion back: the newest version of JOB is exported again unless another is asked for."""
    facts = fleet.job(job).unpromote()
    if as_json:
        print_json(facts)
    else:
        click.echo(f"no version of {job} is promoted; the newest is {facts['version']}")
