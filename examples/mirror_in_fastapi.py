"""Keep a mirror, and answer searches from it: `uvicorn --app-dir examples mirror_in_fastapi:app`."""

from fastapi import FastAPI

from wme_async import Client
from wme_async.mirror import Mirror, SQLiteStore
from wme_async.web import Lifespan


async def start(app: FastAPI, service: Lifespan) -> None:
    """Keep the mirror, with a full-text index, while the application runs."""
    app.state.store = SQLiteStore("mirror.db", search=True)
    wme = await service.open(Client.from_env())
    mirror = await service.open(Mirror(wme, "simplewiki_namespace_0", app.state.store))
    service.run(mirror.run())


app = FastAPI(lifespan=Lifespan(start))


@app.get("/search/{words}")
async def search(words: str) -> list[str]:
    """Return the best titles; a `*` at the end of a word stands for its continuations."""
    return [key[1] for key in await app.state.store.search(words)]
