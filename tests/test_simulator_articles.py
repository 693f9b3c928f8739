"""The records, the encoder and the archives that the simulator serves."""

import gzip
import io
import json
import math
import tarfile
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async.simulator import ArticleGenerator, build_archive, dumps
from wme_async.simulator.world.articles import ArchiveMember, site_of, timestamp

GENERATOR = ArticleGenerator(seed=1)

ORDER = (
    "name identifier abstract date_created date_modified date_previously_modified protection version previous_version "
    "url watchers_count namespace in_language main_entity additional_entities categories templates redirects "
    "is_part_of article_body license visibility event image"
)
WIRE_ORDER = ORDER.split()

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(-1e15, 1e15) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class TestEncoder:
    @given(json_values)
    def test_any_reader_gets_the_value_back(self, value: Any) -> None:
        assert json.loads(dumps(value)) == value

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_floats_come_back_as_they_were(self, value: float) -> None:
        assert float(dumps(value)) == value

    @given(json_values)
    def test_no_character_that_html_or_scripts_would_read_stays_raw(self, value: Any) -> None:
        encoded = dumps(value)
        assert not any(raw in encoded for raw in (b"<", b">", b"&", "\u2028".encode(), "\u2029".encode(), b"\n"))

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("<a href='x'>&</a>", rb""" "\u003ca href='x'\u003e\u0026\u003c/a\u003e" """.strip()),
            ("\u2028\u2029", rb'"\u2028\u2029"'),
            ("\u0085é\x7f", '"\u0085é\x7f"'.encode()),
            ("\b\f\n\t\x01\\b", rb'"\u0008\u000c\n\t\u0001\\b"'),
            ([34723.0, 0.25, -0.0], b"[34723,0.25,-0]"),
            ([1e-6, 5e-7, 1e20, 1e21, 1.5e300], b"[0.000001,5e-7,100000000000000000000,1e+21,1.5e+300]"),
        ],
    )
    def test_bytes_are_those_of_the_service(self, value: Any, expected: Any) -> None:
        assert dumps(value) == expected

    def test_keys_keep_their_order(self) -> None:
        assert dumps({"b": 1, "a": {"d": 2.0, "c": []}}) == b'{"b":1,"a":{"d":2,"c":[]}}'


class TestTimes:
    @pytest.mark.parametrize(
        ("seconds", "digits", "expected"),
        [
            (1744347563.77047, 6, "2025-04-11T04:59:23.77047Z"),
            (1744347563, 6, "2025-04-11T04:59:23Z"),
            (1744347563.9, 0, "2025-04-11T04:59:23Z"),
            (datetime(2025, 4, 11, 4, 59, 23, 100, tzinfo=UTC), 9, "2025-04-11T04:59:23.0001Z"),
        ],
    )
    def test_trailing_zeros_are_trimmed(self, seconds: Any, digits: Any, expected: Any) -> None:
        assert timestamp(seconds, digits) == expected

    @given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - hypothesis adds the zone
    def test_microseconds_survive(self, moment: Any) -> None:
        assert datetime.fromisoformat(timestamp(moment)) == moment


class TestArticles:
    @given(
        st.integers(0, 10**9),
        st.sampled_from(["enwiki", "simplewiki", "dewiktionary", "zh_min_nanwiki"]),
        st.sampled_from([0, 6, 10, 14]),
        st.sampled_from(["update", "delete", "visibility-change"]),
    )
    def test_keys_stand_in_the_order_of_the_wire_and_zeros_are_absent(
        self, index: Any, project: Any, namespace: Any, kind: Any
    ) -> None:
        record = GENERATOR.article(index, project=project, namespace=namespace, kind=kind)
        assert list(record) == [key for key in WIRE_ORDER if key in record]
        flat = {key: value for key, value in record.items() if key not in {"namespace", "previous_version"}}
        assert all(value not in ("", 0, False, None, [], {}) for value in flat.values())
        assert record["namespace"] == {"identifier": namespace}
        assert record["in_language"]["identifier"] == site_of(project)[0]
        assert record["event"]["type"] == kind

    @pytest.mark.parametrize("kind", ["delete", "visibility-change"])
    def test_removals_have_no_body_an_underscored_name_and_a_decoded_url(self, kind: Any) -> None:
        record = GENERATOR.article(9, kind=kind)
        assert "article_body" not in record
        assert record["name"] == GENERATOR.title(9).replace(" ", "_")
        assert record["url"].endswith(record["name"])
        assert ("visibility" in record) == (kind == "visibility-change")

    def test_same_seed_same_bytes_other_seed_other_bytes(self) -> None:
        again = ArticleGenerator(seed=1)
        assert [dumps(again.article(n)) for n in (0, 7, 10**6)] == [dumps(GENERATOR.article(n)) for n in (0, 7, 10**6)]
        assert dumps(ArticleGenerator(seed=2).article(7)) != dumps(GENERATOR.article(7))

    def test_sizes_are_log_normal_with_a_mean_near_43_kilobytes(self) -> None:
        sizes = sorted(len(dumps(GENERATOR.article(n))) for n in range(1500))
        assert 36_000 < sum(sizes) / len(sizes) < 50_000
        assert 18_000 < sizes[len(sizes) // 2] < 30_000
        assert sizes[-1] > 250_000

    def test_small_articles_have_a_few_fields_only(self) -> None:
        sizes = [len(dumps(GENERATOR.article(n, size="small"))) for n in range(200)]
        assert max(sizes) < 400

    @pytest.mark.parametrize("index", [2418, 4781])
    def test_an_article_that_has_the_wished_size_by_nature_is_left_as_it_is(self, index: int) -> None:
        article = ArticleGenerator(0).article(index, size=8192, published=1_760_000_000.0)
        assert len(dumps(article)) == 8192
        assert article["article_body"]["wikitext"]

    @pytest.mark.parametrize("size", [420, 500, 3000, 8191, 8192, 100_000, (20 << 20) + 1])
    def test_a_wished_size_is_exact(self, size: Any) -> None:
        assert len(dumps(GENERATOR.article(0, size=size))) == size

    def test_a_size_without_room_for_an_article_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least"):
            GENERATOR.article(0, size=100)

    def test_odd_values_occur(self) -> None:
        records = [GENERATOR.article(n) for n in range(600)]
        text = b"".join(map(dumps, records))
        assert "\u0085".encode() in text
        assert rb"\u2028" in text
        assert rb"\u003c" in text
        assert b'"0001-01-01T00:00:00Z"' in text
        assert b'"scores":{}' in b"".join(dumps(GENERATOR.article(n, project="dewiktionary")) for n in range(20))
        assert {} in [record.get("previous_version") for record in records]
        assert {} in [record["version"]["editor"] for record in records]
        assert any("date_created" not in record for record in records)

    def test_published_and_revision_are_taken_as_given(self) -> None:
        record = GENERATOR.article(3, published=1744347563.77047, revision=55, title="Other")
        assert record["event"]["date_published"] == "2025-04-11T04:59:23.77047Z"
        assert record["version"]["identifier"] == 55
        assert record["name"] == "Other"
        assert record["event"]["date_created"] < record["event"]["date_published"]

    def test_a_move_is_a_delete_and_an_update_of_one_page_and_one_event(self) -> None:
        delete, update = GENERATOR.move(4)
        assert (delete["event"]["type"], update["event"]["type"]) == ("delete", "update")
        assert delete["identifier"] == update["identifier"]
        assert delete["event"]["identifier"] == update["event"]["identifier"]
        assert delete["name"] != update["name"].replace(" ", "_")

    def test_text_comes_from_real_articles_when_given(self, tmp_path: Path) -> None:
        line = {
            "name": "Seal",
            "abstract": "Seals swim.",
            "article_body": {"html": "<p>sea\u0085l</p>\n", "wikitext": "''seal''\n"},
        }
        (tmp_path / "a.ndjson").write_bytes(dumps(line) + b"\n")
        records = [
            ArticleGenerator(base=base).article(0, size=20_000) for base in (tmp_path, tmp_path / "a.ndjson", [line])
        ]
        assert records[0] == records[1] == records[2]
        assert records[0]["article_body"]["html"].startswith("<p>sea\u0085l</p>\n<p>")
        assert records[0]["name"] == "Seal 0"


class TestStructuredContents:
    def test_nested_tables_are_text_in_snapshots_and_objects_on_demand(self) -> None:
        def nested(record: dict[str, Any]) -> list[Any]:
            return [
                cell["nested_table"] for row in record["tables"][0]["rows"] for cell in row if "nested_table" in cell
            ]

        assert isinstance(nested(GENERATOR.structured(1))[0], dict)
        (text,) = nested(GENERATOR.structured(1, where="snapshot"))
        assert json.loads(text)["rows"]

    def test_events_are_in_snapshots_and_attribution_on_demand(self) -> None:
        assert {"attribution"} == {"attribution", "event"} & set(GENERATOR.structured(1))
        assert {"event"} == {"attribution", "event"} & set(GENERATOR.structured(1, where="snapshot"))

    def test_older_shapes_come_on_request(self) -> None:
        record = GENERATOR.structured(1, old_names=True, null_parts=True, snake_case=True)
        assert "sections" not in record
        assert record["infoboxes"][-1] is None
        names = [part["name"] for part in record["article_sections"] if part]
        assert "early_life" in names

    def test_references_may_hang_below_another(self) -> None:
        references = GENERATOR.structured(1)["references"]
        assert references[-1]["parent_reference"] == references[0]["identifier"]

    def test_fields_agree_with_the_article(self) -> None:
        article, record = GENERATOR.article(8), GENERATOR.structured(8)
        shared = set(article) & set(record)
        assert shared >= {"name", "identifier", "version", "url"}
        assert all(article[key] == record[key] for key in shared)
        assert "article_body" not in record


class TestArchives:
    def members(self, data: bytes) -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            return {info.name: file.read() for info in archive if (file := archive.extractfile(info))}

    @given(
        st.lists(st.lists(st.binary(max_size=2000), max_size=4), max_size=3),
        st.integers(0, 9),
        st.integers(1, 4),
        st.booleans(),
    )
    def test_any_content_comes_back_from_a_standard_reader(
        self, contents: Any, level: Any, gzip_members: Any, pax: Any
    ) -> None:
        given_members = [(f"enwiki_namespace_0_{n}.ndjson", pieces) for n, pieces in enumerate(contents)]
        data = build_archive(given_members, level=level, gzip_members=gzip_members, pax=pax)
        assert self.members(data) == {name: b"".join(pieces) for name, pieces in given_members}

    def test_records_become_the_lines_of_a_member(self) -> None:
        record = {"name": "a<b", "identifier": 1}
        article = msgspec.defstruct("Page", [("name", str)])("Moon")
        line = b'{"name":"a\\u003cb","identifier":1}\n'
        assert self.members(build_archive([record, article])) == {"records_0.ndjson": line + b'{"name":"Moon"}\n'}
        assert self.members(build_archive([("mine", [record, b"raw"])])) == {"mine": line + b"raw"}
        assert self.members(build_archive(iter([record]))) == {"records_0.ndjson": line}
        with pytest.raises(TypeError, match="records or of members"):
            build_archive([record, ("mine", [record])])

    def test_one_gzip_member_with_the_exporters_head_and_a_sync_flush_for_each_mebibyte(self) -> None:
        raw = bytes(range(256)) * 4096 * 3
        data = build_archive([("m_0.ndjson", [raw])], level=1)
        assert data[:10] == bytes.fromhex("1f8b080000096e8800ff")
        reader = zlib.decompressobj(31)
        assert len(reader.decompress(data)) == 512 + len(raw) + 1024
        assert reader.eof
        assert reader.unused_data == b""
        assert data.count(b"\x00\x00\xff\xff") == 3

    def test_headers_are_plain_ustar_with_the_exporters_mode(self) -> None:
        data = build_archive([("a_0.ndjson", [b"{}\n"]), ArchiveMember("b", [b"x"], mode=0o600)])
        raw = gzip.decompress(data)
        assert raw[257:263] == b"ustar\x00"
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            infos = archive.getmembers()
        assert [(info.mode, info.uid, info.gid, info.mtime, info.uname) for info in infos] == [
            (0o766, 0, 0, 0, ""),
            (0o600, 0, 0, 0, ""),
        ]
        assert len(raw) == 2 * (512 + 512) + 1024

    def test_no_member_at_all_is_a_valid_archive_of_a_few_bytes(self) -> None:
        data = build_archive([])
        assert len(data) < 40
        assert self.members(data) == {}

    def test_several_gzip_members_are_several(self) -> None:
        data = build_archive([("a", [b"line\n" * 1000])], gzip_members=3)
        assert data.count(bytes.fromhex("1f8b080000096e8800ff")) == 3

    def test_hostile_members_are_written_as_asked(self) -> None:
        data = build_archive(
            [
                ArchiveMember("/etc/passwd", [b"x"]),
                ArchiveMember("../up", [b"y"]),
                ArchiveMember("link", kind="symlink", link="/etc/passwd"),
                ArchiveMember("hard", kind="hardlink", link="../up"),
                ArchiveMember("dir", kind="directory"),
            ]
        )
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            infos = archive.getmembers()
        assert [info.name for info in infos] == ["/etc/passwd", "../up", "link", "hard", "dir"]
        assert [info.linkname for info in infos] == ["", "", "/etc/passwd", "../up", ""]
        assert (infos[2].issym(), infos[3].islnk(), infos[4].isdir()) == (True, True, True)

    def test_a_declared_size_goes_into_the_header_alone(self) -> None:
        raw = gzip.decompress(build_archive([ArchiveMember("a", [b"12345"], declared=9_000_000)]))
        assert int(raw[124:135], 8) == 9_000_000
        assert len(raw) == 512 + 512 + 1024

    def test_garbage_and_cuts_come_after_the_archive(self) -> None:
        archive = build_archive([("a", [b"12345"])])
        assert build_archive([("a", [b"12345"])], trailing=b"garbage") == archive + b"garbage"
        assert build_archive([("a", [b"12345"])], keep=-5) == archive[:-5]
        assert build_archive([("a", [b"12345"])], keep=5) == archive[:5]

    def test_less_than_one_gzip_member_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            build_archive([], gzip_members=0)

    def test_lines_end_with_a_line_feed_and_hold_one_record_each(self) -> None:
        lines = list(GENERATOR.lines(30, start=5, project="dewiki", size="small"))
        assert all(line.endswith(b"}\n") and line.count(b"\n") == 1 for line in lines)
        assert [json.loads(line)["name"] for line in lines] == [GENERATOR.title(n) for n in range(5, 35)]

    def test_duplicates_and_deletes_have_their_shares(self) -> None:
        records = [json.loads(line) for line in GENERATOR.lines(1000, size="small", duplicates=0.2, deletes=0.1)]
        repeated = 1 - len({record["identifier"] for record in records}) / len(records)
        deleted = sum(record["event"]["type"] == "delete" for record in records) / len(records)
        assert math.isclose(repeated, 0.2, abs_tol=0.06)
        assert math.isclose(deleted, 0.1, abs_tol=0.05)
        assert len({(record["identifier"], record["version"]["identifier"]) for record in records}) > 950

    def test_structured_lines_are_structured(self) -> None:
        (line,) = GENERATOR.lines(1, structured=True)
        assert "infoboxes" in json.loads(line)
