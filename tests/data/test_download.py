"""Public corpora, as miniatures of their archives, from a local server that can misbehave."""

import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import requests
import soundfile

from colalib.data import corpora, store
from colalib.data.corpora import download, unpacking
from colalib.errors import UserError


class Server(http.server.ThreadingHTTPServer):
    """Server of the bytes in `files`, by path."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.cuts = []  # bytes after which the next connections break
        self.ranges = True  # whether it knows the header Range
        self.requested = []  # the header Range of every request
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.files.get(self.path)
        self.server.requested.append(self.headers.get("Range"))
        if content is None:
            self.send_error(404)
            return
        begin = int(self.headers["Range"][6:-1]) if self.headers.get("Range") and self.server.ranges else 0
        if begin and begin >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(content[begin : None if cut is None else begin + cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    running = Server()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


def wav(seconds=0.2, seed=0):
    """Return the bytes of a file of noise."""
    noise = 0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))
    out = io.BytesIO()
    soundfile.write(out, noise, 16_000, format="WAV")
    return out.getvalue()


def zip_of(files):
    """Return the bytes of a .zip file of {name: content}."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def tar_of(files):
    """Return the bytes of a .tar.gz file of {name: content}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def esc50():
    rows = [
        f"1-{i}-A-{i % 2}.wav,{i % 5 + 1},{i % 2},{('dog', 'rain')[i % 2]},{i < 10},{i},A" for i in range(20)
    ]
    table = "\n".join(["filename,fold,target,category,esc10,src_file,take", *rows])
    sounds = {f"ESC-50-master/audio/{row.split(',')[0]}": wav(1.0, i) for i, row in enumerate(rows)}
    return zip_of({"ESC-50-master/meta/esc50.csv": table, "ESC-50-master/README.md": "x", **sounds})


def fsdd():
    names = [f"{d}_{s}_{i}.wav" for d in range(3) for s in ("ann", "bob", "eve") for i in range(2)]
    top = "free-spoken-digit-dataset-1.0.9"
    return tar_of({f"{top}/recordings/{n}": wav(1.0) for n in names} | {f"{top}/recordings/odd.wav": wav()})


def speech_commands():
    names = [
        f"{w}/{s}_nohash_{i}.wav" for w in ("yes", "no") for s in ("a1", "b2", "c3", "d4") for i in range(2)
    ]
    lists = {
        f"./{name}": "\n".join(n for n in names if f"/{s}_" in n).encode()
        for name, s in (("validation_list.txt", "c3"), ("testing_list.txt", "d4"))
    }
    noise = {"./_background_noise_/tap.wav": wav()}
    return tar_of({f"./{n}": wav(1.0) for n in names} | lists | noise)


def nsynth(part):
    names = [
        f"{f}_acoustic_{i:03d}-{p:03d}-100" for f in ("brass", "organ") for i in range(8) for p in (60, 72)
    ]
    table = {
        f"{n}-{part}": {
            "instrument_family_str": n.split("_")[0],
            "instrument_str": n.rsplit("-", 2)[0],
            "instrument_source_str": "acoustic",
            "pitch": int(n.split("-")[1]),
            "velocity": 100,
        }
        for n in names
    }
    return tar_of(
        {f"nsynth-{part}/examples.json": json.dumps(table).encode()}
        | {f"nsynth-{part}/audio/{n}.wav": wav(1.0) for n in table}
    )


def serve(server, monkeypatch, name, content):
    """Let `server` serve `content` as the archive `name`; return the archive."""
    server.files[f"/{name}.packed"] = content
    checksum = "sha256:" + hashlib.sha256(content).hexdigest()
    address = f"http://127.0.0.1:{server.server_port}/{name}.packed"
    archive = replace(
        download.ARCHIVES[name], url=address, checksum=checksum, packed=len(content), unpacked=10_000_000
    )
    monkeypatch.setitem(download.ARCHIVES, name, archive)
    return archive


# corpus → its archives, and the numbers of clips and excluded files and the splits that it has
MINIATURES = {
    "esc50": ({"esc50": esc50}, 20, 0, {"1", "2", "3", "4", "5"}),
    "esc10": ({"esc50": esc50}, 10, 0, {"1", "2", "3", "4", "5"}),
    "fsdd": ({"fsdd": fsdd}, 18, 1, {"ann", "bob", "eve"}),
    "speech_commands": ({"speech_commands": speech_commands}, 16, 1, {"train", "valid", "test"}),
    "nsynth": (
        {"nsynth_valid": lambda: nsynth("valid"), "nsynth_test": lambda: nsynth("test")},
        64,
        0,
        {"train", "valid", "test"},
    ),
}


@pytest.mark.parametrize("name", MINIATURES)
def test_a_corpus_is_fetched_once_and_prepared(server, monkeypatch, tmp_path, name):
    archives, clips, excluded, splits = MINIATURES[name]
    for archive, content in archives.items():
        serve(server, monkeypatch, archive, content())
    licence = download.ARCHIVES[corpora.ARCHIVES_OF[name][0]].licence
    with pytest.raises(UserError, match="under another licence"):
        corpora.fetch(name, "MIT", tmp_path)
    assert not server.requested
    with pytest.raises(UserError, match="fetch"):
        corpora.load(name, data=tmp_path)
    corpora.fetch(name, licence, tmp_path, progress=False)
    requests = len(server.requested)
    corpus = corpora.load(name, data=tmp_path)
    assert len(corpus.clips) == clips
    assert len(corpus.excluded) == excluded
    assert set(corpus.clips["split"]) == splits
    built = store.build(corpus, tmp_path / "s", progress=False)
    assert len(built) == clips
    assert len(built.quarantine) == excluded
    corpora.fetch(name, licence, tmp_path, progress=False)
    assert len(server.requested) == requests, "a corpus that is there is not requested again"
    assert not list(tmp_path.glob(".*.fetching"))


def test_fma_is_fetched_as_two_archives(server, monkeypatch, fma, tmp_path):
    for name in corpora.ARCHIVES_OF["fma_small"]:
        files = {
            p.relative_to(fma).as_posix(): p.read_bytes()
            for p in sorted((fma / name).rglob("*"))
            if p.is_file()
        }
        serve(server, monkeypatch, name, zip_of(files))
    corpora.fetch("fma_small", "by track", tmp_path / "fetched", progress=False)
    fetched = corpora.load("fma_small", data=tmp_path / "fetched")
    assert len(fetched.clips) == 3
    assert fetched.clips.equals(corpora.load("fma_small", data=fma).clips)
    assert all((fetched.root / path).is_file() for path in fetched.clips["path"])


def test_a_download_goes_on_after_broken_connections(server, monkeypatch, tmp_path):
    archive = serve(server, monkeypatch, "fsdd", content := fsdd())
    assert len(content) > 4 * download.CHUNK
    server.cuts = [100_000, 0, 150_000, 5, 0]
    assert (download.fetch(archive, tmp_path, progress=False) / "recordings" / "0_ann_0.wav").is_file()
    starts = [int(r[6:-1]) for r in server.requested if r]
    assert starts == [n * download.CHUNK for n in (1, 1, 3, 3, 3)]


def test_a_later_call_goes_on(server, monkeypatch, tmp_path):
    archive = serve(server, monkeypatch, "fsdd", fsdd())
    server.cuts = [100_000] + [0] * 10
    with pytest.raises(UserError, match="call again"):
        download.fetch(archive, tmp_path, progress=False)
    assert not (tmp_path / "fsdd").exists()
    server.cuts.clear()
    server.requested.clear()
    download.fetch(archive, tmp_path, progress=False)
    assert server.requested == [f"bytes={download.CHUNK}-"]


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_part_that_needs_no_more_bytes(server, monkeypatch, tmp_path, ranges):
    """As a process leaves it that is killed just before the checksum."""
    archive = serve(server, monkeypatch, "fsdd", content := fsdd())
    (tmp_path / ".fsdd.fetching").mkdir()
    (tmp_path / ".fsdd.fetching" / "part").write_bytes(content)
    server.ranges = ranges
    assert (download.fetch(archive, tmp_path, progress=False) / "recordings").is_dir()


def test_what_cannot_be_unpacked_is_not_fetched_again(server, monkeypatch, tmp_path):
    archive = serve(server, monkeypatch, "fsdd", fsdd())
    with monkeypatch.context() as full:
        full.setattr(download.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space"):
            download.fetch(archive, tmp_path, progress=False)
    server.files.clear()  # the server is gone
    (tmp_path / ".fsdd.fetching" / "part").rename(tmp_path / ".fsdd.fetching" / "fsdd.packed")
    assert (download.fetch(archive, tmp_path, progress=False) / "recordings").is_dir()


def answer(status, content=b"", length=True, **headers):
    """Return an answer of a server: status, headers and bytes."""
    if length:
        headers["Content-Length"] = str(len(content))
    return status, headers, content


KEPT = 100_000  # bytes that are there when the server begins to misbehave
MISBEHAVIOURS = {
    "login page": lambda c: answer(200, b"<html>log in</html>"),
    "login page without a length": lambda c: answer(200, b"<html>log in</html>", length=False),
    "no content": lambda c: answer(204),
    "whole file, cut off": lambda c: (200, {"Content-Length": str(len(c))}, c[: KEPT // 2]),
    "whole file without a length, cut off": lambda c: answer(200, c[: KEPT // 2], length=False),
    "another offset": lambda c: answer(206, c, **{"Content-Range": f"bytes 0-{len(c) - 1}/{len(c)}"}),
    "part without a range": lambda c: answer(206, c[KEPT:]),
    "part with a nonsense range": lambda c: answer(206, c[KEPT:], **{"Content-Range": "bytes x-y/z"}),
    "part of a far longer file": lambda c: answer(
        206, b"x" * 10, **{"Content-Range": f"bytes {KEPT}-{KEPT + 9}/{10**12}"}
    ),
    "nothing behind, shorter file": lambda c: answer(416, **{"Content-Range": "bytes */1000"}),
    "redirect to nowhere": lambda c: answer(302, Location="http://"),
    "redirect to nonsense": lambda c: answer(302, Location="http://[::bad"),
    "redirect in a circle": lambda c: answer(302, Location="/fsdd.packed"),
    "server error": lambda c: answer(500, b"sorry"),
    "too busy": lambda c: answer(429, b"later"),
    "not found": lambda c: answer(404, b"gone"),
    "forbidden": lambda c: answer(403, b"no"),
    "multiple choices": lambda c: answer(300, b"choose"),
    "no answer": lambda c: None,
    "not HTTP": lambda c: b"220 smtp ready\r\n",
}


@pytest.mark.parametrize("kind", MISBEHAVIOURS)
def test_a_bad_answer_takes_nothing_of_what_is_kept(server, monkeypatch, tmp_path, kind):
    """And when the server behaves again, the next call goes on where the download stopped."""
    archive = serve(server, monkeypatch, "fsdd", content := fsdd())
    part = tmp_path / ".fsdd.fetching" / "part"
    part.parent.mkdir()
    part.write_bytes(content[:KEPT])

    def misbehave(handler):
        bad = MISBEHAVIOURS[kind](content)
        if bad is None:
            handler.close_connection = True
        elif isinstance(bad, bytes):
            handler.wfile.write(bad)
        else:
            status, headers, body = bad
            handler.send_response_only(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)

    with monkeypatch.context() as bad:
        bad.setattr(Handler, "do_GET", misbehave)
        with pytest.raises(UserError) as error:
            download.fetch(archive, tmp_path, progress=False)
    assert "\n" not in str(error.value)
    assert part.read_bytes()[:KEPT] == content[:KEPT]
    server.requested.clear()
    download.fetch(archive, tmp_path, progress=False)
    assert server.requested[0] == f"bytes={KEPT}-"


def test_nothing_behind_without_a_range_is_decided_by_the_checksum(server, monkeypatch, tmp_path):
    archive = serve(server, monkeypatch, "fsdd", content := fsdd())
    part = tmp_path / ".fsdd.fetching" / "part"
    part.parent.mkdir()
    part.write_bytes(content[:KEPT])

    def no_range(handler):
        handler.send_response(416)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with monkeypatch.context() as bad:
        bad.setattr(Handler, "do_GET", no_range)
        with pytest.raises(UserError, match="what came has the sha256"):
            download.fetch(archive, tmp_path, progress=False)
    assert part.with_name("wrong").read_bytes() == content[:KEPT], "kept aside"


def test_a_file_of_unknown_length_is_whole_when_nothing_lies_behind(server, monkeypatch, tmp_path):
    archive = serve(server, monkeypatch, "fsdd", content := fsdd())
    usual = Handler.do_GET

    def no_length(handler):
        if handler.headers.get("Range"):
            usual(handler)
            return
        handler.send_response_only(200)
        handler.end_headers()
        handler.wfile.write(content[:KEPT])

    monkeypatch.setattr(Handler, "do_GET", no_length)
    assert (download.fetch(archive, tmp_path, progress=False) / "recordings").is_dir()


def test_a_file_in_chunks_is_whole_when_their_end_has_come(server, monkeypatch, tmp_path):
    archive = serve(server, monkeypatch, "fsdd", content := fsdd())

    def in_chunks(handler):  # as a server sends what it makes on the way: no length, and no ranges
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in (content[:KEPT], content[KEPT:], b""):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.close_connection = True

    monkeypatch.setattr(Handler, "do_GET", in_chunks)
    assert (download.fetch(archive, tmp_path, progress=False) / "recordings").is_dir()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (requests.ReadTimeout(), "no answer in time"),
        (requests.ConnectTimeout(), "no answer in time"),
        (requests.exceptions.SSLError(), "no safe connection"),
        (requests.ConnectionError(), "no connection"),
    ],
)
def test_what_broke_a_download_is_said(error, words):
    assert download._reason(error).startswith(words)


def test_refusals_leave_nothing(server, monkeypatch, tmp_path):
    archive = serve(server, monkeypatch, "fsdd", content := fsdd())
    for wrong, message in (
        (replace(archive, checksum="sha256:" + "0" * 64), "what came has the sha256"),
        (replace(archive, url=archive.url + "x"), "the server says 404"),
        (replace(archive, url="http://127.0.0.1:9/fsdd.packed"), "no connection"),
        (replace(archive, packed=10**18), "make room"),
        (replace(archive, packed=len(content) // 3), "far more than"),
        (replace(archive, unpacked=20_000), "unpacks to more than"),
        (replace(archive, inside="elsewhere"), "no files in it below elsewhere"),
    ):
        with pytest.raises(UserError, match=message):
            download.fetch(wrong, tmp_path, progress=False)
        assert not (tmp_path / "fsdd").exists()
        assert not list(tmp_path.rglob(".*unpacking"))
    download.fetch(archive, tmp_path, progress=False)
    assert (tmp_path / "fsdd").is_dir()


def tar_with_link(kind):
    """Return a tar whose only member is a link or device."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        member = tarfile.TarInfo("top/link")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    return out.getvalue()


def zip_with_link():
    """Return a zip whose only member is a symbolic link."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        member = zipfile.ZipInfo("top/link")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/passwd")
    return out.getvalue()


def damaged_xz():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        member = tarfile.TarInfo("top/a.wav")
        member.size = 200_000
        archive.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(200_000)))
    content = bytearray(out.getvalue())
    content[50_000:50_100] = bytes(100)
    return bytes(content)


def null_in_a_name():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("top/a.wav")
        member.size, member.pax_headers = 1, {"path": "top/a\0b.wav"}
        archive.addfile(member, io.BytesIO(b"x"))
    return out.getvalue()


def huge_header():
    """Return a tar that begins with an extended header of 3 GB."""
    member = tarfile.TarInfo("x")
    member.type = tarfile.XHDTYPE
    member.size = 3_000_000_000
    return member.tobuf() + bytes(10_000)


BAD = {
    "outside.zip": (lambda: zip_of({"../evil.wav": b"x"}), "outside its folder"),
    "outside.tar.gz": (lambda: tar_of({"top/../../evil.wav": b"x"}), "outside its folder"),
    "absolute.tar.gz": (lambda: tar_of({"/tmp/evil.wav": b"x"}), "outside its folder"),
    "drive.zip": (lambda: zip_of({"C:\\evil.wav": b"x"}), "outside its folder"),
    "stream.zip": (lambda: zip_of({"top/a.wav:evil": b"x"}), "outside its folder"),
    "link.tar.gz": (lambda: tar_with_link(tarfile.SYMTYPE), "link or device"),
    "hard.tar.gz": (lambda: tar_with_link(tarfile.LNKTYPE), "link or device"),
    "device.tar.gz": (lambda: tar_with_link(tarfile.CHRTYPE), "link or device"),
    "link.zip": (zip_with_link, "link or device"),
    "bomb.zip": (lambda: zip_of({"top/a.wav": bytes(30_000_000)}), "unpacks to more than"),
    "bomb.tar.gz": (lambda: tar_of({"top/a.wav": bytes(30_000_000)}), "unpacks to more than"),
    "cut.zip": (lambda: zip_of({"top/a.wav": wav()})[:-30], "cannot be unpacked"),
    "cut.tar.gz": (lambda: tar_of({"top/a.wav": wav(5)})[:9000], "cannot be unpacked"),
    "noise.zip": (lambda: bytes(range(256)) * 40, "cannot be unpacked"),
    "twice.zip": (lambda: zip_of({"top/a.wav": b"x", "top/A.wav": b"y"}), "two members are named"),
    "lzma.tar.xz": (lambda: damaged_xz(), "cannot be unpacked"),
    "header.tar": (lambda: huge_header(), "a header of"),
    "null.tar": (lambda: null_in_a_name(), "cannot be unpacked"),
    "empty.zip": (lambda: zip_of({}), "no files in it"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_archives_are_refused_and_leave_nothing(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content())
    with pytest.raises(UserError, match=message):
        unpacking.unpack(tmp_path / name, tmp_path / "in" / "target", limit=10_000_000, progress=False)
    assert {p.name for p in tmp_path.iterdir()} == {name}


def test_a_zip_with_changed_bytes_is_refused(tmp_path):
    content = bytearray(zip_of({"top/a.wav": wav(2)}))
    content[2000:2100] = bytes(100)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpacking.unpack(tmp_path / "a.zip", tmp_path / "target", progress=False)
    assert not (tmp_path / "target").exists()
