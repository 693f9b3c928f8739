"""The tasks of a plan that are done, and the manifest of a finished plan."""

from functools import partial
from typing import Final

import msgspec

from wme_async._client.bulk import Manifest, ManifestFile, Plan, TaskResult
from wme_async._tasks import map_bounded
from wme_async.errors import DataError
from wme_async.tasks.output import MANIFEST, Completion, check_snapshot, find_completion
from wme_async.tasks.target import Target, open_target

__all__ = ["find_results", "finish", "read_manifest"]

_CONCURRENCY: Final = 16
_NAMED: Final = 3  # chunks that an error names


async def finish(plan: Plan) -> Manifest:
    """Write the manifest of an output, once all tasks of the plan are done.

    `manifest.json` appears in the folder of the output, as a whole, in place of that of an earlier generation, whose
    files stay; and a copy of it in the folder of the generation. Readers take the names of the files from it: the
    folder may also have files of other generations, and of tasks that are not complete. Unfinished files of killed
    workers are removed.

    Args:
        plan: The plan.

    Raises:
        DataError: Tasks are not done, or were done with different types.
        VersionConflict: The folder has the manifest of another snapshot.
        OSError: The folder cannot be read or written.
    """
    target = open_target(plan.to)
    await check_snapshot(target, plan.snapshot)
    completions = await _find_completions(plan, target)
    missing = [task.chunk for task in plan.tasks if completions[task.chunk] is None]
    if missing:
        names = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
        raise DataError(f"{len(missing)} of {len(plan.tasks)} tasks are not done: {names}; run them first")
    done = [completion for task in plan.tasks if (completion := completions[task.chunk]) is not None]
    forms = {(completion.task.type, completion.task.format, completion.columns) for completion in done}
    if len(forms) > 1:
        raise DataError(f"the tasks in {plan.to} were done with different types or formats; write to another folder")
    manifest = _manifest_of(plan, done)
    data = msgspec.json.format(manifest.to_json().encode(), indent=1)
    await target.replace(f"{plan.generation}/{MANIFEST}", data)
    await target.replace(MANIFEST, data)
    await target.clean(plan.generation)
    return manifest


async def read_manifest(to: str) -> Manifest:
    """Return the manifest of the finished output in a folder.

    Args:
        to: A path, or a URL of an object store.

    Raises:
        FileNotFoundError: No plan was finished there.
        ValueError: The file is not a manifest.
        OSError: The folder cannot be read.
    """
    target = open_target(to)
    data = await target.read(MANIFEST)
    if data is None:
        raise FileNotFoundError(f"{target.location(MANIFEST)} does not exist: no plan was finished there")
    return Manifest.from_json(data)


async def find_results(plan: Plan) -> dict[str, TaskResult | None]:
    """Return the result of each chunk, None for those that are not done.

    Raises:
        DataError: A record is damaged.
        OSError: The folder cannot be read.
    """
    completions = await _find_completions(plan, open_target(plan.to))
    return {chunk: None if completion is None else completion.result for chunk, completion in completions.items()}


async def _find_completions(plan: Plan, target: Target) -> dict[str, Completion | None]:
    completions = await map_bounded(partial(find_completion, target), plan.tasks, limit=_CONCURRENCY)
    return {task.chunk: completion for task, completion in zip(plan.tasks, completions, strict=True)}


def _manifest_of(plan: Plan, done: list[Completion]) -> Manifest:
    files = tuple(
        ManifestFile(
            chunk=completion.task.chunk, path=completion.task.output, rows=completion.result.rows,
            bad=completion.result.bad, bytes=completion.result.bytes, md5=completion.task.md5,
        )
        for completion in done
    )  # fmt: skip
    return Manifest(
        snapshot=plan.snapshot, generation=plan.generation, type=done[0].task.type, format=done[0].task.format,
        rows=sum(file.rows for file in files), bad=sum(file.bad for file in files),
        bytes=sum(file.bytes for file in files), files=files,
    )  # fmt: skip
