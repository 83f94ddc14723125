"""Public archives: fetched with pooch, continued where they broke off, checked, and unpacked whole
or not at all.

`ARCHIVES` says where each lies. The checksums of FMA are its authors' (repository mdeff/fma). Those
of ESC-50, FSDD, Speech Commands and NSynth are the ones that soundata, TensorFlow Datasets and
hear-preprocess check against.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pooch
import requests
from tqdm.auto import tqdm

from colalib.errors import UserError
from colalib.files import locked

TRIES = 5  # connections in a row that may break without a new byte
CHUNK = 1 << 16  # bytes: what is lost when a connection breaks
GB = 10**9  # bytes
# what the standard library raises for archives that are damaged, encrypted or of an unknown kind
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError)


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
        # another process has fetched it meanwhile, or was killed before it could clean up
        if target.is_dir():
            shutil.rmtree(work, ignore_errors=True)
            return target
        # what a process left that was killed while it unpacked takes room
        shutil.rmtree(work / f".{target.name}.unpacking", ignore_errors=True)
        check_disk_space(data, [archive])
        packed = _download(archive, data, progress)
        unpack(packed, target, archive.inside, archive.unpacked, progress)
        shutil.rmtree(work)
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
    url = archive.url
    work = archive.work(data)
    packed = work / url.rsplit("/", 1)[1]
    downloader = ResumingDownloader(work / "part", archive.packed, archive.name, progress)
    try:
        pooch.retrieve(url, archive.checksum, packed.name, work, downloader=downloader)
    except requests.RequestException as error:
        raise UserError(f"{url}: {_reason(error)}: call again to go on where it stopped") from None
    except ValueError:
        shutil.rmtree(work)
        raise UserError(
            f"{url}: what came is not what its checksum says, and was removed: call again. If it happens "
            f"twice, the file on the server has changed: unpack a copy of yours as {data / archive.folder}"
        ) from None
    return packed


def _reason(error: requests.RequestException) -> str:
    """Return a few words on an error of requests."""
    if error.response is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    reasons = {requests.Timeout: "no answer in time", requests.exceptions.SSLError: "no safe connection"}
    return reasons.get(type(error), "no connection, or it broke too often")


class ResumingDownloader:
    """Downloader for pooch that continues behind the bytes in the file `part`.

    It takes at most twice `expected` bytes (0: any). `name` stands before the progress bar.
    """

    def __init__(self, part: Path, expected: int = 0, name: str = "", progress: bool = True):
        self.part = part
        self.expected = expected
        self.name = name
        self.progress = progress

    def __call__(self, url: str, output_file: str, mover: pooch.Pooch) -> None:
        """Connect until all bytes have come, then give them the name `output_file`."""
        failures = 0  # in a row
        while True:
            before = self.size()
            try:
                if self.receive(url):
                    break
                error = requests.ConnectionError("cut off")
            except requests.HTTPError:  # the server refuses: another try would not help
                raise
            except requests.RequestException as broken:
                error = broken
            failures = 0 if self.size() > before else failures + 1
            if failures >= TRIES:
                raise error
            time.sleep(min(0.2 * 2**failures, 10))  # seconds
        # a second name: pooch deletes its file if it is interrupted while it checks the checksum
        os.unlink(output_file)
        try:
            os.link(self.part, output_file)
        except OSError:  # a disk without links
            os.replace(self.part, output_file)

    def size(self) -> int:
        """Return the number of bytes that have come."""
        return self.part.stat().st_size if self.part.exists() else 0

    def receive(self, url: str) -> bool:
        """Append what one connection brings; return whether the file is whole."""
        size = self.size()
        headers = {"Accept-Encoding": "identity"}  # the bytes as they lie on the server
        if size:
            headers["Range"] = f"bytes={size}-"
        with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
            if answer.status_code == 416:  # nothing lies behind `size`
                total = answer.headers.get("Content-Range", "").rpartition("/")[2]
                if total.isdigit() and int(total) == size:
                    return True
                self.part.unlink()  # longer than the file on the server: begin again
                return False
            answer.raise_for_status()
            if answer.status_code == 200:  # the whole file from its start
                size = 0
            length = answer.headers.get("Content-Length", "")
            total = size + int(length) if length.isdigit() else None
            bar = tqdm(
                total=total,
                initial=size,
                unit="B",
                unit_scale=True,
                desc=self.name,
                disable=not self.progress,
            )
            with open(self.part, "ab" if size else "wb") as file, bar:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
                    size += len(chunk)
                    bar.update(len(chunk))
                    if self.expected and size > 2 * self.expected:
                        raise ValueError("far too long")
        return total is None or size >= total


# Why not pooch's processors or tarfile's filter "data": they allow links, make a safe path of an
# unsafe one instead of refusing it, do not bound the size, and leave half a folder after an error.
def unpack(packed: Path, target: Path, inside: str = "", limit: int = 0, progress: bool = True) -> None:
    """Unpack a zip or tar file to the folder `target`, which appears when everything is in it.

    `inside`: take only this folder of the archive. Raises `UserError`, and leaves nothing behind,
    if the archive is damaged, if a member is a link, a device or outside its folder, or if it
    unpacks to more than `limit` bytes (0: any).
    """
    work = packed.with_name(f".{target.name}.unpacking")
    shutil.rmtree(work, ignore_errors=True)
    written = 0  # bytes
    try:
        work.mkdir(parents=True)
        with tqdm(desc=f"unpacking {packed.name}", unit=" files", disable=not progress) as bar:
            for name, stream in members(packed):
                parts = _parts_below(name, inside, packed)
                if not parts:
                    continue
                file = work.joinpath(*parts)
                if stream is None:
                    file.mkdir(parents=True, exist_ok=True)
                    continue
                file.parent.mkdir(parents=True, exist_ok=True)
                with open(file, "wb") as out:
                    while chunk := stream.read(CHUNK):  # counted: the size in a header may be wrong
                        written += len(chunk)
                        if limit and written > limit:
                            raise UserError(
                                f"{packed}: not safe: it unpacks to more than {limit / GB:.1f} GB"
                            )
                        out.write(chunk)
                bar.update()
        if not written:
            raise UserError(f"{packed}: no files in it{f' below {inside}' if inside else ''}")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work, target)
    except DAMAGED as error:
        raise UserError(f"{packed}: cannot be unpacked: {str(error) or type(error).__name__}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _parts_below(name: str, inside: str, packed: Path) -> tuple[str, ...]:
    """Return the parts of a member's path below the folder `inside`; () if it is not in there.

    Raises `UserError` for a path that leaves the archive's folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:  # ":" for drives
        raise UserError(f"{packed}: not safe: {name!r} would lie outside its folder")
    top = PurePosixPath(inside).parts
    return path.parts[len(top) :] if path.parts[: len(top)] == top else ()


def members(packed: Path) -> Iterator[tuple[str, BinaryIO | None]]:
    """Yield (name, open stream) of all members of an archive in order; the stream of a folder is
    None.

    Raises `UserError` for a link or device.
    """
    if zipfile.is_zipfile(packed):
        with zipfile.ZipFile(packed) as archive:
            for member in archive.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):  # 0: unknown
                    raise UserError(f"{packed}: not safe: {member.filename!r} is a link or device")
                if member.is_dir():
                    yield member.filename, None
                else:
                    with archive.open(member) as stream:
                        yield member.filename, stream
        return
    with tarfile.open(packed, "r|*") as archive:
        for member in archive:
            if not (member.isfile() or member.isdir()):
                raise UserError(f"{packed}: not safe: {member.name!r} is a link or device")
            yield member.name, archive.extractfile(member) if member.isfile() else None
