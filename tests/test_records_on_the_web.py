"""Records as requests and responses of web frameworks, and text in notebooks."""

from typing import Annotated

import pytest

from wme_async import Article, Client, StructuredContent
from wme_async.models import Fact

ARTICLE = Article(name="Earth", identifier=1)
BODY = {"name": "Earth", "identifier": 1}


@pytest.fixture
def fastapi():
    return pytest.importorskip("fastapi")


@pytest.fixture
def client(fastapi):
    from starlette.testclient import TestClient

    app = fastapi.FastAPI()

    @app.get("/one")
    async def one() -> Article:
        return ARTICLE

    @app.get("/many")
    async def many() -> list[Article]:
        return [ARTICLE, ARTICLE]

    @app.get("/maybe")
    async def maybe() -> Article | None:
        return None

    @app.get("/unannotated")
    async def unannotated():
        return ARTICLE

    @app.get("/inside")
    async def inside():
        return {"articles": [ARTICLE], "facts": {"a": Fact(name="x")}}

    @app.get("/facts")
    async def facts() -> dict[str, Fact]:
        return {"Area": Fact(name="Area", values=("1 km2",))}

    @app.post("/name")
    async def name(article: Annotated[Article, fastapi.Body()]) -> str:
        return article.name

    with TestClient(app) as opened:
        yield opened


@pytest.mark.filterwarnings("default")  # other people's packages
def test_a_route_of_fastapi_returns_records_and_takes_them(client):
    assert client.get("/one").json() == BODY
    assert client.get("/many").json() == [BODY, BODY]
    assert client.get("/maybe").json() is None
    assert client.get("/unannotated").json() == BODY
    assert client.get("/inside").json() == {"articles": [BODY], "facts": {"a": {"name": "x"}}}
    assert client.get("/facts").json() == {"Area": {"name": "Area", "values": ["1 km2"]}}
    assert client.post("/name", json=BODY).json() == "Earth"
    problem = client.post("/name", json={"name": 1})
    assert (problem.status_code, "name" in problem.text) == (422, True)
    content = client.get("/openapi.json").json()["paths"]["/one"]["get"]["responses"]["200"]["content"]
    assert "Article" in str(content)


def test_a_record_is_a_field_of_a_model_of_pydantic():
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Answer", article=(Article, ...), content=(StructuredContent | None, None))
    answer = model(article=BODY)
    assert answer.article == ARTICLE
    assert answer.model_dump() == {"article": BODY, "content": None}
    assert model.model_validate_json(answer.model_dump_json()) == answer
    with pytest.raises(ValueError, match="article"):
        model(article={"name": 5})


async def test_explanations_are_shown_as_text():
    async with Client("a", "b") as wme:
        texts = [
            wme.snapshots.explain(fields=["identifier"]),
            wme.articles.explain(filters={"is_part_of.identifier": "enwiki"}),
            wme.realtime.explain(fields=["name"]),
        ]
    for text in texts:
        assert repr(text) == str(text)
        assert "\n" in repr(text)
        assert isinstance(text, str)
