"""Public corpora by one call: archives fetched with pooch, resumed, checked, and unpacked whole or
not at all.

`ARCHIVES` says what lies where. Checksums: FMA's are its authors' (repository mdeff/fma); those of
ESC-50, FSDD, Speech Commands and NSynth are the ones that soundata, TensorFlow Datasets and
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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch
import requests
from tqdm.auto import tqdm

from colalib.errors import UserError
from colalib.files import locked

TRIES = 5  # connections that may break one after the other without a byte coming
CHUNK = 1 << 16  # bytes: what is lost where a connection breaks
DAMAGED = (  # what the standard library raises at archives that are damaged, encrypted or packed in unknown ways
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
)


@dataclass(frozen=True)
class Archive:
    """One archive: where it lies, its checksum ("algorithm:hex"), bytes as packed (0: not known
    beforehand) and a bound on the bytes unpacked, the folder inside it that becomes `folder` in the
    data folder ("": everything), and the licence ("by track": each track has its artist's)."""

    url: str
    checksum: str
    folder: str
    packed: int
    unpacked: int
    inside: str = ""
    licence: str = ""


GB = 10**9
_FMA = "https://os.unil.cloud.switch.ch/fma"
_NSYNTH = "http://download.magenta.tensorflow.org/datasets/nsynth"
ARCHIVES = {
    name: Archive(f"{_FMA}/{name}.zip", f"sha1:{checksum}", name, packed, unpacked, name, "by track")
    for name, checksum, packed, unpacked in (
        ("fma_metadata", "f0df49ffe5f2a6008d7dc83c6915b31835dfe733", int(0.36 * GB), 3 * GB),
        ("fma_small", "ade154f733639d52e35e32f5593efe5be76c6d70", int(7.7 * GB), 9 * GB),
        ("fma_medium", "c67b69ea232021025fca9231fc1c7c1a063ab50b", int(24 * GB), 27 * GB),
        ("fma_large", "497109f4dd721066b5ce5e5f250ec604dc78939e", int(100 * GB), 110 * GB),
    )
} | {
    "esc50": Archive(
        "https://github.com/karolpiczak/ESC-50/archive/master.zip",
        "md5:7771e4b9d86d0945acce719c7a59305a",
        "esc50",
        int(0.65 * GB),
        2 * GB,
        "ESC-50-master",
        "CC BY-NC 3.0",
    ),
    "fsdd": Archive(
        "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.9.tar.gz",
        "sha256:8bc44cde129d505cbbb6b365c09f80c663f2aa77578afc634e6141a2f87100c0",
        "fsdd",
        11_975_353,
        100_000_000,
        "free-spoken-digit-dataset-1.0.9",
        "CC BY-SA 4.0",
    ),
    "speech_commands": Archive(
        "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        "speech_commands",
        2_428_923_189,
        5 * GB,
        "",
        "CC BY 4.0",
    ),
    "nsynth_valid": Archive(
        f"{_NSYNTH}/nsynth-valid.jsonwav.tar.gz",
        "md5:87e94a00a19b6dbc99cf6d4c0c0cae87",
        "nsynth/valid",
        int(1.1 * GB),
        2 * GB,
        "nsynth-valid",
        "CC BY 4.0",
    ),
    "nsynth_test": Archive(
        f"{_NSYNTH}/nsynth-test.jsonwav.tar.gz",
        "md5:5e6f8719bf7e16ad0a00d518b78af77d",
        "nsynth/test",
        int(0.35 * GB),
        GB,
        "nsynth-test",
        "CC BY 4.0",
    ),
}


def fetch(archive: Archive, data: Path, progress: bool = True) -> Path:
    """Fetch and unpack one archive to `data / archive.folder`; returns that folder. One that is
    there is taken as it is.

    What was fetched is kept in the folder `.NAME.fetching` when the connection breaks or the
    process ends, and the next call goes on behind it. The folder appears whole, after every byte
    has been checked. Raises `UserError` where the disk is too small, the server does not answer,
    the checksum is wrong or the archive is not safe.
    """
    target, name = data / archive.folder, archive.folder.replace("/", "-")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, where the corpus' folder should be: move it away")
    if target.is_dir() and not (data / f".{name}.fetching").exists():
        return target
    with locked(data / name):
        work = data / f".{name}.fetching"
        # of a call that was killed
        shutil.rmtree(work / f".{target.name}.unpacking", ignore_errors=True)
        if target.is_dir():  # another process was here, or was killed before it had cleaned up
            shutil.rmtree(work, ignore_errors=True)
            return target
        packed, part = work / archive.url.rsplit("/", 1)[1], work / "part"
        check_room(data, [archive])
        try:
            pooch.retrieve(
                archive.url,
                archive.checksum,
                packed.name,
                work,
                downloader=Resuming(part, archive.packed, progress),
            )
        except requests.RequestException as error:
            raise UserError(
                f"{archive.url}: {_reason(error)}: call again to go on where it stopped"
            ) from None
        except ValueError:
            shutil.rmtree(work)
            raise UserError(
                f"{archive.url}: what came is not what its checksum says, and was removed: call again; if it happens "
                f"twice, the file there has changed: unpack a copy as {target}"
            ) from None
        unpack(packed, target, archive.inside, archive.unpacked, progress)
        shutil.rmtree(work)
    return target


def check_room(data: Path, archives: list[Archive]) -> None:
    """Raises `UserError` where the disk is too small for those of `archives` that are not there
    yet, packed and unpacked.
    """
    need, wanted = 0, [a for a in archives if not (data / a.folder).is_dir()]
    for archive in wanted:
        work = data / f".{archive.folder.replace('/', '-')}.fetching"
        have = (p.stat().st_size for p in (work / archive.url.rsplit("/", 1)[1], work / "part") if p.exists())
        need += archive.packed + archive.unpacked - next(have, 0)
    free = shutil.disk_usage(data).free
    if free < need:
        what = " and ".join(archive.url for archive in wanted)
        raise UserError(
            f"{data}: {free / GB:.1f} GB are free, {what} needs {need / GB:.1f} GB: make room, or use --data"
        )


def _reason(error: requests.RequestException) -> str:
    """One line for an error of requests."""
    if error.response is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    return {requests.Timeout: "no answer in time", requests.exceptions.SSLError: "no safe connection"}.get(
        type(error), "no connection, or it broke too often"
    )


class Resuming:
    """A downloader for pooch that goes on behind the bytes in `part`; at most twice `expected`
    bytes are taken (0: any).
    """

    def __init__(self, part: Path, expected: int = 0, progress: bool = True):
        self.part, self.expected, self.progress = part, expected, progress

    def __call__(self, url: str, output_file: str, mover: pooch.Pooch) -> None:
        failures = 0
        while True:
            before = self.have()
            try:
                if self.piece(url):
                    break
                failures = 0 if self.have() > before else failures + 1
                error = requests.ConnectionError("cut off")
            except requests.HTTPError:
                raise
            except requests.RequestException as broken:
                failures, error = 0 if self.have() > before else failures + 1, broken
            if failures >= TRIES:
                raise error
            time.sleep(min(0.2 * 2**failures, 10))
        os.unlink(output_file)  # empty
        try:
            os.link(self.part, output_file)  # a second name, until the checksum has been taken
        except OSError:  # a disk without links
            os.replace(self.part, output_file)

    def have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def piece(self, url: str) -> bool:
        """One connection; true when the file is whole."""
        have = self.have()
        headers = (
            {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
            if have
            else {"Accept-Encoding": "identity"}
        )
        with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
            if answer.status_code == 416:  # nothing lies behind what we have
                total = answer.headers.get("Content-Range", "").rpartition("/")[2]
                if total.isdigit() and int(total) == have:
                    return True
                self.part.unlink()  # longer than what the server has: begin anew
                return False
            answer.raise_for_status()
            if answer.status_code == 200:  # all of it, from the start
                have = 0
            length = answer.headers.get("Content-Length", "")
            total = have + int(length) if length.isdigit() else None
            bar = tqdm(
                total=total,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=self.part.parent.name[1:-9],  # .NAME.fetching
                disable=not self.progress,
            )
            with open(self.part, "ab" if have else "wb") as file, bar:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
                    have += len(chunk)
                    bar.update(len(chunk))
                    if self.expected and have > 2 * self.expected:
                        raise ValueError("far too long")
        return total is None or have >= total


def unpack(packed: Path, target: Path, inside: str = "", limit: int = 0, progress: bool = True) -> None:
    """Unpack a zip or tar file, or of it the folder `inside`, to the folder `target`, which appears
    when all is there.

    Only plain files and folders are taken. Raises `UserError`, and leaves nothing, where the
    archive is damaged, a member would lie outside the folder or is a link or device, or there would
    be more than `limit` bytes (0: any).
    """
    work = packed.with_name(f".{target.name}.unpacking")
    shutil.rmtree(work, ignore_errors=True)
    written = 0
    try:
        work.mkdir(parents=True)
        bar = tqdm(desc=f"unpacking {packed.name}", unit=" files", disable=not progress)
        for name, stream in members(packed):
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
                raise UserError(f"{packed}: not safe: {name!r} would lie outside its folder")
            parts = PurePosixPath(inside).parts
            if path.parts[: len(parts)] != parts or len(path.parts) == len(parts):
                continue
            file = work.joinpath(*path.parts[len(parts) :])
            if stream is None:
                file.mkdir(parents=True, exist_ok=True)
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "wb") as out:
                while chunk := stream.read(CHUNK):  # what a header says of the size is not believed
                    written += len(chunk)
                    if limit and written > limit:
                        raise UserError(f"{packed}: not safe: it unpacks to more than {limit / GB:.1f} GB")
                    out.write(chunk)
            bar.update()
        bar.close()
        if not written:
            raise UserError(f"{packed}: no files in it{f' below {inside}' if inside else ''}")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work, target)
    except DAMAGED as error:
        raise UserError(f"{packed}: cannot be unpacked: {str(error) or type(error).__name__}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def members(packed: Path):
    """(name, open stream; None for a folder) of everything in an archive, in its order; a link or
    device raises `UserError`.
    """
    if zipfile.is_zipfile(packed):
        with zipfile.ZipFile(packed) as archive:
            for member in archive.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
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
