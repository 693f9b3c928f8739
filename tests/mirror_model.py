"""A store of a mirror in memory, for tests of the rule, and a consumer of its change feed."""

from collections.abc import Iterable

from wme_async.mirror.rule import Difference, Mask, Page, Picture, merge, page_keys, title_keys


class ModelStore:
    """Applies pictures as a store does: fetch the rows concerned, merge, write."""

    def __init__(self):
        self.rows = Picture()
        self.seq = 0
        self.settled = 0
        self.forgotten = set()

    def apply(self, records: Iterable[Page | Mask]) -> Difference:
        """Merge records."""
        news = Picture(records)
        current = Picture()
        current.pages = {key: self.rows.pages[key] for key in news.pages if key in self.rows.pages}
        keys = page_keys(current, news)
        current.places = {key: self.rows.places[key] for key in keys if key in self.rows.places}
        current.masks = {key: self.rows.masks[key] for key in keys if key in self.rows.masks}
        titles = title_keys(current, news)
        current.pages |= {key: self.rows.pages[key] for key in titles if key in self.rows.pages}
        return self._write(merge(current, news, **self._marks()))

    def touch(self, keys) -> Difference:
        """Judge pages again."""
        return self._write(merge(self.rows, Picture(), touched=list(keys), **self._marks()))

    def settle(self, time: int) -> Difference:
        """Let the feed have all removals up to a time."""
        self.settled = max(self.settled, time)
        return self.touch(
            key for key, place in self.rows.places.items() if place.held is not None and place.held <= self.settled
        )

    def _marks(self):
        return {"seq": self.seq, "settled": self.settled, "forgotten": self.forgotten}

    def _write(self, difference: Difference) -> Difference:
        self.rows.pages.update((page.key, page) for page in difference.pages)
        self.rows.places.update(((place.project, place.page_id), place) for place in difference.places)
        self.rows.masks.update(((mask.project, mask.page_id), mask) for mask in difference.masks)
        self.seq = difference.seq
        return difference

    def live(self):
        """Return the live pages by their flags: page id to title, revision, digest and hidden parts."""
        return {
            page.page_key: (page.title, page.revision, page.digest, page.hidden)
            for page in self.rows.pages.values()
            if page.live
        }

    def derived(self):
        """Return the same as the definition says."""
        live = {}
        for key, place in self.rows.places.items():
            page = self.rows.pages.get((place.project, place.title))
            if page is None or page.gone or page.page_id != place.page_id or page.swept is not None:
                continue
            if key in self.forgotten:
                continue
            mask = self.rows.masks.get(key)
            hidden = mask.hidden if mask is not None and mask.covers(page) else 0
            live[key] = (page.title, page.revision, page.digest, hidden)
        return live


class Consumer:
    """Applies the feed: what an index of a user does."""

    def __init__(self):
        self.index = {}
        self.after = 0
        self.kinds = []
        self.old_titles = []

    def read(self, store: ModelStore) -> "Consumer":
        """Apply all changes."""
        live = store.live()
        changed = [place for place in store.rows.places.values() if place.seq > self.after and place.held is None]
        for place in sorted(changed, key=lambda place: place.seq):
            key = place.project, place.page_id
            if key in live:
                self.index[key] = live[key]
                self.kinds.append("hide" if live[key][3] else "upsert")
                self.old_titles.append(place.old_title if place.moved > self.after else None)
            else:
                self.index.pop(key, None)
                self.kinds.append("delete")
            self.after = max(self.after, place.seq)
        return self
