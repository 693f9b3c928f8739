"""The text of rendered pages (extra `html`)."""

import sys

import msgspec
import pytest

from wme_async.models import Article, ArticleBody, StructuredContent

pytest.importorskip("selectolax", reason="needs the extra `html`")

PAGE = """<!DOCTYPE html><html><head><title>no</title><style>no</style></head><body><section>
<div class="shortdescription" style="display:none">no</div><div class="hatnote">no</div>
<table class="infobox"><tr><th>no</th><td><div class="navbox">no</div></td></tr></table>
<p class="mw-empty-elt"></p>
<p><b>A river</b> flows<sup class="mw-ref reference"><a href="./River#cite_note-1"><span>[1]</span></a></sup> here,<br/>
and there <span style="display: none">no</span>&amp; on.</p>
<figure><figcaption>no</figcaption></figure></section>
<section><h2 id="Course">Course <span class="mw-editsection">no</span></h2><p>It begins.</p>
<h3>Upper  course</h3><ul><li>first <i>one</i></li><li>second<ul><li>inner</li></ul></li></ul>
<table class="wikitable"><caption>Lengths</caption>
<tr><th>km</th><th>mi</th></tr><tr><td>1</td><td>0.6</td></tr></table>
</section><section><h2>Bridges</h2><dl><dt>Old</dt><dd>stone</dd></dl><blockquote>Quote</blockquote>text after</section>
<h2>References</h2><div class="mw-references-wrap"><ol class="references"><li>no</li></ol></div>
<div role="navigation">no</div></body></html>"""

TEXT = """A river flows here, and there & on.

Course

It begins.

Upper course

- first one
- second
  - inner

Lengths

km | mi
1 | 0.6

Bridges

Old

stone

Quote

text after"""


def test_the_text_of_a_page_has_its_paragraphs_lists_and_tables_and_nothing_around_them():
    article = Article(article_body=ArticleBody(html=PAGE))
    assert article.text() == TEXT
    passages = article.passages(200)
    assert [passage.headings for passage in passages] == [(), ("Course",), ("Course", "Upper course"), ("Bridges",)]
    assert [(citation.identifier, citation.text) for citation in passages[0].citations] == [("cite_note-1", "[1]")]


def test_an_unstructured_article_in_place_of_structured_contents_has_the_same_text():
    content = StructuredContent(article_body=ArticleBody(html=PAGE))
    assert content.is_raw_article
    assert content.text() == TEXT
    assert content.passages(200) == Article(article_body=ArticleBody(html=PAGE)).passages(200)


@pytest.mark.parametrize("body", [None, ArticleBody(), ArticleBody(wikitext="'''A'''"), ArticleBody(html="<!---->")])
def test_a_page_without_html_has_no_text(body):
    article = Article(article_body=body)
    assert (article.text(), article.passages()) == ("", [])


def test_odd_html_is_read():
    depth = 20_000
    for html in ("<div>" * depth + "deep" + "</div>" * depth, "<p>deep", "deep", "<ul><li><p>deep</p></li></ul>"):
        assert Article(article_body=ArticleBody(html=html)).text().removeprefix("- ") == "deep"
    # Omitted nodes within omitted ones.
    html = '<div class="navbox"><div class="navbox"><style>no</style></div></div>' * 50 + "<p>text</p>"
    assert Article(article_body=ArticleBody(html=html)).text() == "text"


def test_real_pages_have_text(shared_data):
    lines = (shared_data / "articles.ndjson").read_bytes().splitlines()
    english = next(
        article
        for line in lines
        if (article := msgspec.json.decode(line, type=Article)).is_part_of.identifier == "enwiki"
    )
    text = english.text()
    assert text.startswith("Squirrels are members of the family Sciuridae (/s")
    assert "\n\nEtymology\n\nThe word squirrel, first attested in 1327," in text
    assert not any(word in text for word in ("mw-parser-output", "[edit]", "[1]", "ISBN 978-1-4214", "^"))
    passages = english.passages(400)
    assert max(len(passage.text) for passage in passages) <= 400
    assert any(passage.citations for passage in passages)


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "selectolax.lexbor", None)
    with pytest.raises(ImportError, match=r"wme-async\[html\]"):
        Article(article_body=ArticleBody(html="<p>a</p>")).text()
