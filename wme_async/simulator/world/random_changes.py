"""Random changes of a world, as often as those of a wiki are of each kind."""

from random import Random
from typing import Final

from wme_async.simulator.world.editing import PARTS, Editor
from wme_async.simulator.world.generated_pages import COMMON
from wme_async.simulator.world.wiki import SUPPORTED, Wiki, namespace_of

_WEIGHTS: Final = {
    "create": 5, "edit": 20, "redirect": 3, "move": 6, "delete": 4, "restore": 4, "hide": 3, "bulk": 1,
}  # fmt: skip
_KINDS: Final = tuple(_WEIGHTS)
_BULK_PAGES: Final = 5
# Examples and documentation look them up, so they are edited and neither deleted, moved nor hidden.
_STABLE: Final = frozenset(COMMON)


def make_random_change(editor: Editor, rnd: Random, time: int) -> None:
    """Make one change of a random kind in a random project, at a time in microseconds since 1970.

    If the project has no page for this kind, the change is another creation.
    """
    project = rnd.choice(tuple(editor.wikis))
    wiki = editor.wiki(project)
    kind = rnd.choices(_KINDS, tuple(_WEIGHTS.values()))[0]
    if kind == "restore" and (title := _restorable(wiki, rnd)) is not None:
        editor.restore(time, project, title, without_last=rnd.random() < 0.3)
    elif kind in {"create", "restore"} or not wiki.pages:
        _create(editor, project, rnd, time)
    elif kind == "bulk":
        titles = [page.title for page in wiki.live()]
        editor.bulk(time, project, rnd.sample(titles, min(_BULK_PAGES, len(titles))))
    else:
        _change_page(editor, project, kind, rnd, time)


def _restorable(wiki: Wiki, rnd: Random) -> str | None:
    titles = [title for title in wiki.deleted if title not in wiki.pages]
    return rnd.choice(titles) if titles else None


def _create(editor: Editor, project: str, rnd: Random, time: int) -> None:
    """Create a page: a new one, or another one under the title of a deleted one."""
    title = _restorable(editor.wikis[project], rnd) if rnd.random() < 0.3 else None
    editor.create(time, project, title or editor.free_title(project, rnd.choice(editor.namespaces)))


def _change_page(editor: Editor, project: str, kind: str, rnd: Random, time: int) -> None:
    titles = list(editor.wikis[project].pages)
    if kind != "edit":
        titles = [title for title in titles if title not in _STABLE] or titles
    title = rnd.choice(titles)
    if title in _STABLE:
        editor.edit(time, project, title)
    elif kind == "redirect" and len(titles) > 1:
        target = rnd.choice(titles)
        editor.edit(time, project, title, target if target != title else None)
    elif kind == "move":
        _move(editor, project, title, rnd, time)
    elif kind == "delete":
        editor.delete(time, project, title)
    elif kind == "hide":
        hidden = editor.wikis[project].pages[title].hidden
        parts = rnd.sample(sorted(PARTS), rnd.randrange(1, 4))
        editor.hide(time, project, title, () if hidden and rnd.random() < 0.5 else parts)
    else:
        editor.edit(time, project, title)


def _move(editor: Editor, project: str, title: str, rnd: Random, time: int) -> None:
    """Move a page to a new title, over another page, out of the supported namespaces, or back into them."""
    namespace = namespace_of(title)
    roll = rnd.random()
    if namespace not in SUPPORTED:
        new_title = editor.free_title(project)
    elif roll < 0.1:
        new_title = f"Draft:{title.rpartition(':')[2]}"
    elif roll < 0.3:
        new_title = rnd.choice([name for name in editor.wikis[project].pages if name not in _STABLE])
    else:
        new_title = editor.free_title(project, namespace)
    if new_title != title:
        editor.move(time, project, title, new_title, leave_redirect=rnd.random() < 0.6)
