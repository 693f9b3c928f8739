"""The commands `read` and `download`: archives of the disk and the service, chosen records, fields and archives."""

import json
import re

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from wme_async.cli.root import root
from wme_async.simulator import Simulator

ARCHIVE = "enwiki_namespace_0"
NAME = ("name", None)
REVISION = ("version", ["identifier"])


@pytest.fixture(scope="module")
def world():
    with Simulator.run_in_thread(articles=7) as simulator:
        yield simulator


@pytest.fixture
def run(world, tmp_path, monkeypatch):
    for name, value in {**world.environment(), "WME_TOKEN_FILE": str(tmp_path / "tokens.json")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0, **options):
        result = CliRunner().invoke(root, arguments, catch_exceptions=False, **options)
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def archive(run, tmp_path):
    """The path of a downloaded archive."""
    run("snapshots", "download", ARCHIVE, "--to", "data/", "--quiet")
    return str(tmp_path / "data" / "snapshots" / f"{ARCHIVE}.tar.gz")


def lines(result):
    return [json.loads(line) for line in result.stdout.split("\n") if line]


def test_an_archive_of_the_disk_is_read_as_one_of_the_service(run, archive):
    served = run("snapshots", "read", ARCHIVE).stdout
    assert run("read", archive).stdout == served
    assert served.count("\n") >= 7
    assert run("read", archive, "--count").stdout == f"{len(served.splitlines())}\n"
    assert len(lines(run("read", archive, "--limit", "2"))) == 2


@pytest.mark.parametrize("source", ["file", "service"])
def test_records_and_fields_are_chosen(run, archive, source):
    command = ("read", archive) if source == "file" else ("snapshots", "read", ARCHIVE)
    records = lines(run(*command))
    chosen = records[2]
    where = ("--where", f"identifier={chosen['identifier']}", "--where", "is_part_of.identifier=enwiki")
    assert lines(run(*command, *where)) == [chosen]
    fields = ("--fields", "name,version.identifier")
    expected = {"name": chosen["name"], "version": {"identifier": chosen["version"]["identifier"]}}
    assert lines(run(*command, *where, *fields)) == [expected]
    assert lines(run(*command, *fields))[2] == expected
    raw = run(*command, *where, *fields, "--raw").stdout
    assert raw == f"{chosen['name']}\t{chosen['version']['identifier']}\n"
    assert lines(run(*command, "--fields", "name"))[2] == {"name": chosen["name"]}
    assert not lines(run(*command, "--where", "is_part_of.identifier=dewiki"))


def test_wrong_names_and_values_are_errors_before_anything_is_requested(run, world, archive):
    before = len(world.requests)
    assert "nothing" in run("snapshots", "read", ARCHIVE, "--fields", "nothing", code=2).stderr
    assert "nothing" in run("projects", "ls", "--sort", "nothing", code=2).stderr
    assert "whole number" in run("read", archive, "--where", "identifier=x", code=2).stderr
    assert "--raw" in run("read", archive, "--raw", code=2).stderr
    assert "--count" in run("read", archive, "--to", "x.parquet", "--count", code=2).stderr
    assert len(world.requests) == before
    assert "none.tar.gz" in run("read", "none.tar.gz", code=1).stderr


def test_the_kind_of_records_follows_from_the_path(run, tmp_path):
    identifier = lines(run("structured-snapshots", "ls"))[0]["identifier"]
    run("structured-snapshots", "download", identifier, "--to", "data/", "--quiet")
    path = tmp_path / "data" / "structured_snapshots" / f"{identifier}.tar.gz"
    assert run("read", str(path)).stdout == run("structured-snapshots", "read", identifier).stdout
    names = lines(run("read", str(path), "--fields", "name,infoboxes"))
    assert names[0]["name"]
    renamed = path.rename(tmp_path / "x.tar.gz")
    assert lines(run("read", str(renamed), "--kind", "structured", "--fields", "name,infoboxes")) == names


def test_chosen_records_go_to_parquet(run, archive, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    records = lines(run("read", archive))
    chosen = records[1]
    target = tmp_path / "x.parquet"
    where = ("--where", f"identifier={chosen['identifier']}")
    assert "1 record," in run("read", archive, *where, "--fields", "name,identifier", "--to", str(target)).stdout
    table = parquet.read_table(target)
    assert table.to_pylist() == [{"name": chosen["name"], "identifier": chosen["identifier"]}]
    run("read", archive, "--fields", "name", "--limit", "3", "--to", str(target))
    assert parquet.read_table(target).column_names == ["name"]
    assert parquet.read_table(target).num_rows == 3
    assert "folder" in run("read", archive, *where, "--to", f"{tmp_path}/folder/", code=2).stderr


@pytest.mark.parametrize("more", [(), ("--limit", "3")], ids=["all", "some"])
@pytest.mark.parametrize(
    ("kind", "fields", "columns"),
    [
        ("snapshots", "version.identifier,name,identifier", [REVISION, NAME, ("identifier", None)]),
        ("snapshots", "name,version.editor.name,version.comment", [NAME, ("version", ["editor", "comment"])]),
        ("snapshots", "categories.name,name", [("categories", ["name"]), ("name", None)]),
        ("structured-snapshots", "name,version.identifier,identifier", [NAME, REVISION, ("identifier", None)]),
    ],
)
def test_parquet_has_the_columns_of_json_lines_in_the_order_of_the_fields(run, world, kind, fields, columns, more):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    identifier = ARCHIVE if kind == "snapshots" else lines(run(kind, "ls"))[0]["identifier"]
    run(kind, "read", identifier, "--fields", fields, *more, "--to", "x.parquet")
    table = parquet.read_table("x.parquet")

    def parts(column):
        inner = column.value_type if pa.types.is_list(column) else column
        return [part.name for part in inner] if pa.types.is_struct(inner) else None

    assert [(field.name, parts(field.type)) for field in table.schema] == columns
    records = lines(run(kind, "read", identifier, "--fields", fields, *more))
    assert [row["name"] for row in table.to_pylist()] == [record["name"] for record in records]
    for row, record in zip(table.to_pylist(), records, strict=True):
        for name in set(record) - {"name", "version"}:
            assert row[name] == record[name]
        if "identifier" in record.get("version", {}):
            assert row["version"] == record["version"]


def test_downloads_are_chosen_by_filter_by_file_or_all(run, world, tmp_path):
    hour = world.hours[-1]
    everything = {row["identifier"] for row in lines(run("batches", "ls", hour))}
    english = {row["identifier"] for row in lines(run("batches", "ls", hour, "--where", "in_language.identifier=en"))}
    assert english < everything

    def there(folder):
        return {path.name.removesuffix(".tar.gz") for path in (tmp_path / folder).rglob("*.tar.gz")}

    result = run("batches", "download", hour, "--where", "in_language.identifier=en", "--to", "english", "--quiet")
    assert there("english") == english
    assert result.stdout.count("MD5 matches") == len(english)
    names = "\n".join(sorted(english)[:2])
    run("batches", "download", hour, "-i", "-", "--to", "piped", input=names)
    assert there("piped") == set(names.split())
    (tmp_path / "names.txt").write_text(f"{ARCHIVE}\n\n{ARCHIVE}\n")
    run("batches", "download", hour, "--input", "names.txt", "--to", "file")
    assert there("file") == {ARCHIVE}
    run("batches", "download", hour, "--all", "--to", "all", "--quiet")
    assert there("all") == everything
    assert "--all" in run("batches", "download", hour, code=2).stderr
    assert "one archive" in run("batches", "download", hour, "--all", "--to", "-", code=2).stderr


def test_a_target_without_an_extension_is_a_folder(run, world, tmp_path):
    run("batches", "download", world.hours[-1], ARCHIVE, "--to", "data", "--quiet")
    assert list((tmp_path / "data").rglob(f"{ARCHIVE}.tar.gz"))
    run("batches", "download", world.hours[-1], ARCHIVE, "--to", "x.tar.gz", "--quiet")
    assert (tmp_path / "x.tar.gz").is_file()


def test_errors_name_options_and_no_arguments_of_functions(run, world, tmp_path):
    command = ("batches", "download", world.hours[-1], ARCHIVE, "--to", "x.tar.gz")
    (tmp_path / "x.tar.gz").write_bytes(b"mine")
    errors = [
        run(*command, code=1).stderr,
        run(*command[:4], "--to", "data/", "--name", "{title}", code=2).stderr,
        run("batch", "submit", "https://127.0.0.1/x", code=2).stderr,
        run("wikidata", "items", "P31", code=2).stderr,
    ]
    for error, option in zip(
        errors, ("--force", "--name", "--allow-host 127.0.0.1", "wikidata properties"), strict=True
    ):
        assert option in error
        assert not re.search(r"\w=(True|'|\{)|wme\.|`name`|\(--", error), error


def test_the_failure_of_one_download_does_not_stop_the_others(run, world, tmp_path):
    command = ("batches", "download", world.hours[-1], "nothing_here", ARCHIVE, "--to", "data", "--quiet")
    result = run(*command, code=3)
    assert "nothing_here: " in result.stderr
    assert "1 of 2 archives; 1 failed" in result.stderr
    assert len(list((tmp_path / "data").rglob("*.tar.gz"))) == 1


def test_a_query_of_records_is_explained(run):
    text = run("explain", "read", "--where", "is_part_of.identifier=enwiki", "--fields", "name").stdout
    assert "an archive comes whole" in text
    assert "here: filter is_part_of.identifier = 'enwiki'" in text
    assert "here: reduced to name" in text
    assert "to on-demand articles" in run("explain", "lookup").stdout
    assert "did you mean lookup" in run("explain", "lookups", code=2).stderr


def test_a_batch_takes_urls_from_a_file_or_a_pipe(run, world, tmp_path):
    folder = ("batch", "--directory", str(tmp_path / "jobs"), "submit", "--detach")
    urls = [f"https://example.org/{number}" for number in range(3)]
    (tmp_path / "urls.txt").write_text("\n".join(urls[1:]))
    status = ("batch", "--directory", str(tmp_path / "jobs"), "status")

    def urls_of(result):
        return [job["url"] for job in lines(run(*status, result.stdout.split()[0]))[0]["jobs"]]

    assert urls_of(run(*folder, urls[0], "-i", "urls.txt")) == urls
    assert urls_of(run(*folder, "-", input="\n".join(urls))) == urls
    assert urls_of(run(*folder, input="\n".join(urls))) == urls
    assert "no URLs" in run(*folder, code=2).stderr


def test_all_ids_are_checked_before_the_first_is_paid_for(run, world):
    before = len(world.requests)
    assert "not 'q42'" in run("wikidata", "items", "Q42", "q42", code=2).stderr
    assert "wme-async wikidata properties" in run("wikidata", "items", "Q42", "P31", code=2).stderr
    assert not [request for request in list(world.requests)[before:] if "wikidata" in request.path]


def test_archives_of_wikidata_have_the_same_verbs(run, tmp_path):
    identifier = lines(run("wikidata", "snapshots", "ls"))[0]["identifier"]
    run("wikidata", "snapshots", "download", identifier, "--to", "data/", "--quiet")
    path = tmp_path / "data" / "wikidata" / "snapshots" / f"{identifier}.tar.gz"
    served = run("wikidata", "snapshots", "read", identifier, "--limit", "3").stdout
    assert run("read", str(path), "--limit", "3").stdout == served
    assert lines(run("wikidata", "chunks", "ls", identifier))
    assert lines(run("wikidata", "batches", "ls", "latest"))


def test_a_media_file_says_which_hash_matches(run):
    assert "SHA-1 matches" in run("files", "download", "Ottawa 0757.jpg", "--to", "media/", "--quiet").stdout
