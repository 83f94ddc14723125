"""Public archives: fetched, continued where they broke off, checked, unpacked whole or not at all.

`ARCHIVES` says where each lies. The checksums of FMA are its authors' (repository mdeff/fma). Those
of ESC-50, FSDD, Speech Commands and NSynth are the ones that soundata, TensorFlow Datasets and
hear-preprocess check against.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3
from tqdm.auto import tqdm

from colalib.data.corpora.unpacking import CHUNK, GB, unpack
from colalib.errors import UserError
from colalib.files import locked

TRIES = 5  # connections in a row that may break without a new byte
# what requests lets through when a connection breaks, or a redirect leads nowhere
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, UnicodeError)


@dataclass(frozen=True)
class Archive:
    """An archive on a server, and the folder that it becomes."""

    url: str
    checksum: str  # "algorithm:hexadecimal digits"
    folder: str  # in the data folder, to unpack to
    packed: int  # bytes of the archive; 0: not known
    unpacked: int  # bytes that it unpacks to, at most
    inside: str = ""  # the folder of the archive to take; "": everything
    licence: str = ""  # "by track": the artist of each track chose one

    @property
    def name(self) -> str:
        return self.folder.replace("/", "-")

    def work(self, data: Path) -> Path:
        """Return the folder that keeps the download until it is unpacked."""
        return data / f".{self.name}.fetching"

    @property
    def file(self) -> str:
        """Name of the archive itself."""
        return self.url.rsplit("/", 1)[1]

    def remove_work(self, data: Path) -> None:
        """Remove what a download leaves; the folder stays if other files lie in it."""
        for name in ("part", "whole", "wrong", self.file):
            (self.work(data) / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.work(data).rmdir()


def _fma(name: str, sha1: str, packed: float, unpacked: float) -> Archive:
    url = f"https://os.unil.cloud.switch.ch/fma/{name}.zip"
    return Archive(url, f"sha1:{sha1}", name, int(packed * GB), int(unpacked * GB), name, "by track")


def _nsynth(part: str, md5: str, packed: float, unpacked: float) -> Archive:
    url = f"http://download.magenta.tensorflow.org/datasets/nsynth/nsynth-{part}.jsonwav.tar.gz"
    sizes = int(packed * GB), int(unpacked * GB)
    return Archive(url, f"md5:{md5}", f"nsynth/{part}", *sizes, f"nsynth-{part}", "CC BY 4.0")


ARCHIVES = {
    "fma_metadata": _fma("fma_metadata", "f0df49ffe5f2a6008d7dc83c6915b31835dfe733", 0.36, 3),
    "fma_small": _fma("fma_small", "ade154f733639d52e35e32f5593efe5be76c6d70", 7.7, 9),
    "fma_medium": _fma("fma_medium", "c67b69ea232021025fca9231fc1c7c1a063ab50b", 24, 27),
    "fma_large": _fma("fma_large", "497109f4dd721066b5ce5e5f250ec604dc78939e", 100, 110),
    "esc50": Archive(
        url="https://github.com/karolpiczak/ESC-50/archive/master.zip",
        checksum="md5:7771e4b9d86d0945acce719c7a59305a",
        folder="esc50",
        packed=int(0.65 * GB),
        unpacked=2 * GB,
        inside="ESC-50-master",
        licence="CC BY-NC 3.0",
    ),
    "fsdd": Archive(
        url="https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.9.tar.gz",
        checksum="sha256:8bc44cde129d505cbbb6b365c09f80c663f2aa77578afc634e6141a2f87100c0",
        folder="fsdd",
        packed=11_975_353,
        unpacked=100_000_000,
        inside="free-spoken-digit-dataset-1.0.9",
        licence="CC BY-SA 4.0",
    ),
    "speech_commands": Archive(
        url="https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        checksum="sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        folder="speech_commands",
        packed=2_428_923_189,
        unpacked=5 * GB,
        licence="CC BY 4.0",
    ),
    "nsynth_valid": _nsynth("valid", "87e94a00a19b6dbc99cf6d4c0c0cae87", 1.1, 2),
    "nsynth_test": _nsynth("test", "5e6f8719bf7e16ad0a00d518b78af77d", 0.35, 1),
}


def fetch(archive: Archive, data: Path, progress: bool = True) -> Path:
    """Fetch and unpack an archive to `data / archive.folder`; return that folder.

    A folder that is there already is left as it is. If the connection breaks or the process ends,
    the bytes that have come are kept, and the next call continues behind them. The folder appears
    when the checksum is right and all files are unpacked. Raises `UserError` if the disk is too
    small, the server does not answer, the checksum is wrong or the archive is not safe.
    """
    target = data / archive.folder
    work = archive.work(data)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, but the folder of the corpus belongs there: move it away")
    if target.is_dir() and not work.exists():
        return target
    with locked(data / archive.name):
        # what a process left that was killed while it unpacked takes room
        shutil.rmtree(work / f".{target.name}.unpacking", ignore_errors=True)
        # another process has fetched it meanwhile, or was killed before it could clean up
        if target.is_dir():
            archive.remove_work(data)
            return target
        check_disk_space(data, [archive])
        packed = _download(archive, data, progress)
        unpack(packed, target, archive.inside, archive.unpacked, progress)
        archive.remove_work(data)
    return target


def check_disk_space(data: Path, archives: list[Archive]) -> None:
    """Raise `UserError` if the disk is too small for those of `archives` that are not there yet.

    An archive and what it unpacks to both need room. Bytes that have come already count.
    """
    missing = [archive for archive in archives if not (data / archive.folder).is_dir()]
    needed = 0
    for archive in missing:
        have = max((f.stat().st_size for f in archive.work(data).glob("*") if f.is_file()), default=0)
        needed += archive.packed + archive.unpacked - have
    free = shutil.disk_usage(data).free
    if free < needed:
        urls = " and ".join(archive.url for archive in missing)
        raise UserError(
            f"{data}: {free / GB:.1f} GB are free, but {urls} needs {needed / GB:.1f} GB: "
            "make room, or choose another folder with --data"
        )


def _download(archive: Archive, data: Path, progress: bool) -> Path:
    """Fetch the file of an archive and check its checksum; return its path. Raises `UserError`."""
    part = archive.work(data) / "part"
    packed = part.with_name(archive.file)
    if packed.exists():  # an earlier call has checked it, and could not unpack it
        return packed
    download = Download(archive.url, part, archive.packed)
    with tqdm(unit="B", unit_scale=True, desc=archive.name, disable=not progress) as bar:
        download.run(bar)
    algorithm, wanted = archive.checksum.split(":")
    with open(part, "rb") as file:
        checksum = hashlib.file_digest(file, algorithm).hexdigest()
    if checksum != wanted:
        aside = part.with_name("wrong")
        os.replace(part, aside)  # may be right all the same: a newer version
        raise UserError(
            f"{archive.url}: what came has the {algorithm} {checksum}, not {wanted}: call again. If it "
            f"happens twice, the file on the server has changed: it is kept as {aside}, and you may unpack "
            f"it as {data / archive.folder} yourself"
        )
    os.replace(part, packed)
    return packed


class Interrupted(Exception):
    """A connection that broke, or an answer that is not the file; another try may help."""


class Download:
    """A file that is fetched to `part`, as often interrupted as may be.

    What is kept in `part` is only ever replaced by something longer. An answer that is not the file is not
    taken: of more than twice `expected` bytes (0: any), or that does not begin where `part` ends.
    """

    def __init__(self, url: str, part: Path, expected: int = 0):
        self.url = url
        self.part = part
        self.expected = expected

    def run(self, bar: tqdm) -> None:
        """Connect until all bytes have come. Raises `UserError` after `TRIES` connections without a byte."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        failures = 0  # in a row
        while True:
            before = self.size()
            try:
                if self.connect(bar):
                    return
                reason = "the connection breaks"
            except (Interrupted, *BROKEN) as error:
                reason = str(error) if isinstance(error, Interrupted) else _reason(error)
            failures = 0 if self.size() > before else failures + 1
            if failures >= TRIES:
                raise UserError(f"{self.url}: {reason}: call again to go on where it stopped")
            time.sleep(min(0.2 * 2**failures, 10))  # seconds

    def size(self) -> int:
        """Return the number of bytes that are kept."""
        return self.part.stat().st_size if self.part.exists() else 0

    def connect(self, bar: tqdm) -> bool:
        """Take what one connection brings; return whether the file is whole."""
        size = self.size()
        headers = {"Accept-Encoding": "identity"}  # the bytes as they lie on the server
        if size:
            headers["Range"] = f"bytes={size}-"
        try:
            answer = requests.get(self.url, headers=headers, stream=True, timeout=30)
        except ValueError as error:  # requests lets some of urllib's through
            raise Interrupted(f"the server leads to an address that is none ({error})") from None
        with answer:
            code = answer.status_code
            begin, total = _content_range(answer)
            if code == 416:  # nothing lies behind `size`
                if total in (size, None):
                    return True  # the checksum decides
                raise Interrupted(f"the server has {total} bytes, but {size} are kept in {self.part}")
            if 400 <= code < 500 and code != 429:  # 429: too many requests
                raise UserError(f"{self.url}: the server says {code} {answer.reason}")
            if code == 206 and begin == size:
                self.append(answer, total, bar)
            elif code == 200:
                total = _length(answer)
                self.replace(answer, total, bar)
                if answer.headers.get("Transfer-Encoding") == "chunked":
                    return True  # its end is marked: requests raises if it does not come
            else:
                raise Interrupted(f"the server says {code} {answer.reason}, which is not the file")
        # of an unknown length the next connection asks whether more lies behind
        return total is not None and self.size() >= total

    def append(self, answer: requests.Response, total: int | None, bar: tqdm) -> None:
        """Append the rest of the file to what is kept."""
        self.check_total(total)
        size = self.size()
        try:
            with open(self.part, "ab") as file:
                self.copy(answer, file, bar, total)
        except Interrupted:  # not the file: back to what was there
            os.truncate(self.part, size)
            raise

    def replace(self, answer: requests.Response, total: int | None, bar: tqdm) -> None:
        """Fetch the whole file from its start beside what is kept; it is taken if it is longer."""
        self.check_total(total)
        if not self.size():
            self.part.touch()
            self.append(answer, total, bar)
            return
        whole = self.part.with_name("whole")
        try:
            with open(whole, "wb") as file:
                self.copy(answer, file, bar, total)
        finally:
            if whole.exists() and whole.stat().st_size >= self.size():
                os.replace(whole, self.part)
            whole.unlink(missing_ok=True)
        if total is not None and total < self.size():
            raise Interrupted(f"the server sends {total} bytes, but {self.size()} are kept in {self.part}")

    def check_total(self, total: int | None) -> None:
        """Raise `Interrupted` if so many bytes cannot be the file."""
        if self.expected and (total or 0) > 2 * self.expected:
            raise Interrupted(f"the server sends {total} bytes, far more than the {self.expected} expected")

    def copy(self, answer: requests.Response, file: BinaryIO, bar: tqdm, total: int | None) -> None:
        """Write the bytes of an answer to a file."""
        bar.total = total
        bar.n = file.tell()
        for chunk in answer.iter_content(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
            self.check_total(file.tell())


def _length(answer: requests.Response) -> int | None:
    """Return the Content-Length of an answer, None if it is not told."""
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _content_range(answer: requests.Response) -> tuple[int | None, int | None]:
    """Return where the bytes of an answer begin in the file, and the file's length; None for unknown."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    begin, total = match.groups() if match else (None, None)
    return begin and int(begin), int(total) if total and total.isdigit() else None


def _reason(error: Exception) -> str:
    """Return a few words on an error of a connection."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "no safe connection"
    return "no connection, or it broke too often"
