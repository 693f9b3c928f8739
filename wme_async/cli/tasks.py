"""`wme-async tasks`: bulk work on the chunks of a snapshot, here or one task a pod."""

import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from wme_async._client.bulk import FORMATS, Plan, TaskResult
from wme_async._client.client import HOST_VARIABLES, environment
from wme_async._files import write_atomically
from wme_async._text import count_text, size_text
from wme_async.cli import base
from wme_async.cli.accounts import find_account, token_file_of
from wme_async.errors import VersionConflict
from wme_async.tasks import arun_task, find_results, finish, run_plan
from wme_async.tasks.driver import is_temporary

RETRY: Final = 75
"""The same task may succeed when it is run again."""

GIVE_UP: Final = 76
"""Running the same task again does not help: make a new plan, or look at the error."""


@click.group("tasks", cls=base.Group)
def command() -> None:
    """Turn a snapshot into files, a task for each chunk: here, or one task a pod of an array.

    Exit codes of `run --index`: 0 done, 75 run it again, 76 give up.
    """
    # As for `python -m`: the type of the records may be in a module of the present folder.
    if "" not in sys.path:
        sys.path.insert(0, "")


@command.command("plan")
@click.argument("snapshot")
@click.option(
    "--to", required=True, metavar="DIR|URL", help="The folder of the output: a path, or s3://, gs://, az://."
)
@click.option(
    "--type", "record_type", metavar="MODULE:NAME", help="The msgspec Struct of the records; all fields by default."
)
@click.option(
    "--format", "file_format", type=click.Choice(FORMATS), default="parquet", show_default=True, help="Of the files."
)
@click.option("--wikidata", is_flag=True, help="A snapshot of Wikidata (beta).")
@click.option("--out", metavar="PLAN", help="Write the plan to this file; by default to standard output.")
@click.pass_context
def plan_command(
    context: click.Context,
    snapshot: str,
    to: str,
    record_type: str | None,
    file_format: Any,
    out: str | None,
    *,
    wikidata: bool,
) -> None:
    """Plan a snapshot: a task for each of its chunks, as JSON. It costs nothing."""

    async def main() -> Plan:
        async with base.connect(context) as client:
            snapshots: Any = client.wikidata.snapshots if wikidata else client.snapshots
            plan: Plan = await snapshots.plan(snapshot, to=to, type=record_type, format=file_format)
            left = ""
            if plan.cost.pool is not None:
                left = f"; {await base.metered_text(client, plan.cost.pool, plan.cost.requests)}"
            base.echo(f"{count_text(len(plan.tasks), 'task')}, {size_text(plan.bytes)}{left}", err=True)
            return plan

    text = base.run(main()).to_json()
    if out is None:
        base.echo(text)
    else:
        write_atomically(Path(out), f"{text}\n".encode(), mode=0o644)


@command.command("run")
@click.argument("plan", metavar="PLAN")
@click.option("--index", type=click.IntRange(0), metavar="N", help="Run this task alone, the first one being 0.")
@click.option("--workers", type=click.IntRange(1), help="Processes; as many as processors, at most 4, by default.")
@click.option(
    "--on-replaced", type=click.Choice(["restart", "raise"]), default="restart", show_default=True,
    help="When the snapshot is exported anew meanwhile: begin anew with the new export, or fail.",
)  # fmt: skip
@click.option("--quiet", is_flag=True, help="No progress bar.")
@base.json_option
@click.pass_context
def run_command(
    context: click.Context,
    plan: str,
    index: int | None,
    workers: int | None,
    on_replaced: Any,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run the tasks of a plan that are not done, and write the manifest; or one task alone.

    PLAN is a file, or - for standard input. The same command continues after any interruption.
    """
    work = _read_plan(plan)
    base.when_stopped(base.CONTINUES)
    if index is None:
        _export_account(context)
        with base.progress_bar(work.snapshot, quiet=quiet) as progress:
            manifest = base.run(run_plan(work, workers, progress, on_replaced))
        if as_json:
            base.line(manifest)
        else:
            bad = f", {manifest.bad:,} bad records left out" if manifest.bad else ""
            files = f"{count_text(len(manifest.files), 'file')}, {size_text(manifest.bytes)}"
            base.echo(f"{work.to}/manifest.json  {manifest.rows:,} rows in {files}{bad}")
        return
    if index >= len(work.tasks):
        base.say_error(f"the plan has {len(work.tasks)} tasks, the last one with the index {len(work.tasks) - 1}")
        context.exit(GIVE_UP)

    try:
        result = base.run_connected(context, lambda client: arun_task(work.tasks[index], client))
    except Exception as error:  # noqa: BLE001  # the exit code says whether to run it again
        base.say_error(base.message_of(error))
        context.exit(_exit_code(error))
    _show_result(result, as_json=as_json)


@command.command("status")
@click.argument("plan", metavar="PLAN")
@base.json_option
@click.pass_context
def status_command(context: click.Context, plan: str, *, as_json: bool) -> None:
    """Show which tasks of a plan are done. Exit code 1 if some are not."""
    work = _read_plan(plan)
    results = base.run(find_results(work))
    rows: list[dict[str, Any]] = [
        {"index": index, "chunk": task.chunk, "done": (result := results[task.chunk]) is not None}
        | {name: getattr(result, name) for name in ("rows", "bad", "bytes") if result is not None}
        for index, task in enumerate(work.tasks)
    ]
    done = sum(row["done"] for row in rows)
    note = f"{done:,} of {len(rows):,} tasks are done"
    base.show(
        rows, as_json=as_json, columns=("index", "chunk", "done", "rows", "bad", "bytes"), title="tasks", note=note
    )
    if done < len(rows):
        context.exit(1)


@command.command("finish")
@click.argument("plan", metavar="PLAN")
def finish_command(plan: str) -> None:
    """Write the manifest of a plan whose tasks are all done, for readers of the output."""
    work = _read_plan(plan)
    manifest = base.run(finish(work))
    base.echo(f"{work.to}/manifest.json  {manifest.rows:,} rows in {count_text(len(manifest.files), 'file')}")


def _read_plan(path: str) -> Plan:
    return Plan.from_json(sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes())


def _show_result(result: TaskResult, *, as_json: bool) -> None:
    if as_json or not base.stdout.is_terminal:
        base.line(result)
    else:
        state = "was done before" if result.skipped else f"{result.rows:,} rows in {result.seconds:.1f} s"
        base.echo(f"{result.path}  {state}")


def _exit_code(error: BaseException) -> int:
    is_of_system = isinstance(error, OSError) and not isinstance(error, VersionConflict)
    return RETRY if is_temporary(error) or is_of_system else GIVE_UP


def _export_account(context: click.Context) -> None:
    """Put the account of the command line into the environment, from which the workers take it."""
    options = context.find_root().params
    variables = {name: value for name, value in environment(options.get("env_file")).items() if name.startswith("WME_")}
    account = find_account(context)
    if account is not None and account.profile is not None:
        for name in ("WME_PASSWORD", "WME_ACCESS_TOKEN"):
            variables.pop(name, None)
            os.environ.pop(name, None)
    if account is not None and account.username is not None:
        variables["WME_USERNAME"] = account.username
        variables |= {HOST_VARIABLES[role]: url for role, url in account.hosts.items()}
        if (token_file := token_file_of(context)) is not None:
            variables["WME_TOKEN_FILE"] = str(token_file)
    if options.get("proxy"):
        variables["WME_PROXY"] = options["proxy"]
    os.environ.update(variables)
