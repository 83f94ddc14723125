"""Unpacking archives that may be damaged or hostile: whole or not at all."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm.auto import tqdm

from colalib.errors import UserError

CHUNK = 1 << 16  # bytes that are copied at a time; also what is lost when a connection breaks
GB = 10**9  # bytes
# what the standard library raises for archives that are damaged, encrypted or of an unknown kind
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    RuntimeError,
)


# Why not tarfile's filter "data": it allows links, makes a safe path of an unsafe one instead of refusing
# it, does not bound the size, and leaves half a folder after an error.
def unpack(packed: Path, target: Path, inside: str = "", limit: int = 0, progress: bool = True) -> None:
    """Unpack a zip or tar file to the folder `target`, which appears when everything is in it.

    `inside`: take only this folder of the archive. Raises `UserError`, and leaves nothing behind,
    if the archive is damaged, if a member is a link, a device or outside its folder, or if it
    unpacks to more than `limit` bytes (0: any).
    """
    work = packed.with_name(f".{target.name}.unpacking")
    shutil.rmtree(work, ignore_errors=True)
    written = 0  # bytes
    names = set()
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
                if (folded := "/".join(parts).casefold()) in names:
                    raise UserError(f"{packed}: not safe: two members are named {name!r}")
                names.add(folded)
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
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(f"{packed}: cannot be unpacked: {str(error) or type(error).__name__}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _parts_below(name: str, inside: str, packed: Path) -> tuple[str, ...]:
    """Return the parts of a member's path below the folder `inside`; () if it is not in there.

    Raises `UserError` for a path that leaves the archive's folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name:  # C:a.wav, a.wav:stream
        raise UserError(f"{packed}: not safe: {name!r} would lie outside its folder")
    top = PurePosixPath(inside).parts
    return path.parts[len(top) :] if path.parts[: len(top)] == top else ()


class BoundedTarInfo(tarfile.TarInfo):
    """Member of a tar file whose extended headers fit in memory, whatever size they claim."""

    MOST = 1_000_000  # bytes; real ones hold a name and a few attributes

    def _proc_member(self, archive):
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.type in (*extended, tarfile.SOLARIS_XHDTYPE) and self.size > self.MOST:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)


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
    with tarfile.open(packed, "r|*", tarinfo=BoundedTarInfo) as archive:
        for member in archive:
            if not (member.isfile() or member.isdir()):
                raise UserError(f"{packed}: not safe: {member.name!r} is a link or device")
            yield member.name, archive.extractfile(member) if member.isfile() else None
