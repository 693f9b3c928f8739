"""Bulk work on one machine or many: the chunks of a snapshot as small tasks that can be run again at any time.

    plan = await wme.snapshots.plan("enwiki_namespace_0", to="enwiki/", type="pages:Page")
    manifest = await wme_async.tasks.run_plan(plan)                     # processes of this machine

A plan is data: it can be pickled or written as JSON, and has neither hosts nor credentials. `run_task` is a plain
function for any engine, and `finish` writes the manifest when all tasks are done.

A snapshot is exported anew every day, and its pages are dealt to chunks anew: a mixture of two exports lacks some pages
and has others twice. So a plan is for one export. Each task reads its chunk in that version alone and raises `Replaced`
if the server has another one by now.
"""

from wme_async._client.bulk import ChunkTask, Manifest, ManifestFile, Plan, TaskResult
from wme_async.tasks.chunk import arun_task, run_task
from wme_async.tasks.driver import PlanProgress
from wme_async.tasks.finish import find_results, finish, read_manifest
from wme_async.tasks.processes import run_plan

__all__ = [
    "ChunkTask",
    "Manifest",
    "ManifestFile",
    "Plan",
    "PlanProgress",
    "TaskResult",
    "arun_task",
    "find_results",
    "finish",
    "read_manifest",
    "run_plan",
    "run_task",
]
