"""Decoding: from an audio file to blocks of samples, whatever its header says.

libsndfile decodes what it decodes right: it is fast, and installed everywhere. FFmpeg (by PyAV)
decodes the rest: files that libsndfile cannot read (m4a, webm, wma, …) and files that it would cut
short without a word, such as an MP3 without a table of contents or an Ogg file that holds several
recordings. `inspect` tells the two apart by a look at the container. Blocks go to `audio`, which
mixes and resamples them.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from colalib.errors import first_line

BLOCK_SECONDS = 30  # ten hours need no more memory than a minute
BLOCK_VALUES = 12_000_000  # samples × channels of a block: 48 MB, whatever a header claims
MAX_HOURS = 48  # of one clip; no recorder writes longer files, but damaged headers claim them
SYSTEM_ERROR = 2  # libsndfile's code for an error of the operating system
SPARSE = 10  # a file with less than a tenth of its bytes on disk is mostly holes
TRUNCATED = 0.9  # share of the promised length that must be there, if more than a second is missing
HEADER_GUESSES = {"mp3", "aac", "ogg", "ac3"}  # FFmpeg's formats whose length is only estimated
# sizes in a WAV whose recorder was switched off, or that came through a pipe (the last by SoX)
WAV_UNKNOWN = {0, 0xFFFF_FFFF, 0x7FFF_F000}


class Unusable(Exception):
    """A clip that cannot be used; its text is the reason that the quarantine list shows."""


def decode(path: Path) -> tuple[int, Iterator[np.ndarray]]:
    """Return a file's sample rate in Hz and its samples in blocks, float32 [samples, channels].

    ±1 is full scale, which files of floats may exceed.

    Raises `Unusable`, now or while blocks are read, if the file is missing, not audio, or cut
    short. Raises `OSError` for errors of the machine: no permission, too many open files, a broken
    disk.
    """
    blocks = _decode(path)
    return next(blocks), blocks


def _decode(path: Path) -> Iterator:
    """Yield the sample rate, then the blocks. The file is open as long as the generator lives."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise Unusable("unreadable: a pipe or a device, not a file")  # opening it might wait for ever
        file = open(path, "rb")  # by Python, so that errors of the machine are told as such
    except (FileNotFoundError, NotADirectoryError):
        raise Unusable("file not found") from None
    except IsADirectoryError:
        raise Unusable("unreadable: a folder, not a file") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Unusable("unreadable: a link to itself") from None
        raise
    with file:
        state = os.fstat(file.fileno())
        if state.st_size == 0:
            raise Unusable("empty file")
        # a compressed file, or one not yet written out, has few blocks too
        few = getattr(state, "st_blocks", 0) and state.st_blocks * 512 * SPARSE < state.st_size
        if few and _has_holes(file.fileno(), state.st_size):
            raise Unusable("most of the file is missing (holes): copy or download it again")
        try:
            reader = _with_ffmpeg if inspect(file) == "ffmpeg" else _with_libsndfile
            file.seek(0)
            yield from reader(file)
        except (Unusable, OSError, MemoryError, GeneratorExit):
            raise
        except Exception as error:  # decoders raise many kinds for damaged files
            raise Unusable(f"unreadable: {first_line(error).rstrip('.')}") from None


def _has_holes(file: int, size: int) -> bool:
    hole = os.lseek(file, 0, os.SEEK_HOLE)
    os.lseek(file, 0, os.SEEK_SET)
    return hole < size


# ----------------------------------------------------------------------------------------- decoders


def _with_libsndfile(file: BinaryIO) -> Iterator:
    try:
        sound = soundfile.SoundFile(file.fileno(), closefd=False)
    except (soundfile.LibsndfileError, TypeError):  # a format that it does not know, or knows but cannot read
        file.seek(0)
        yield from _with_ffmpeg(file)
        return
    with sound:
        rate = check_rate(sound.samplerate)
        yield rate
        size = max(1, min(BLOCK_SECONDS * rate, BLOCK_VALUES // sound.channels))
        samples = 0
        while True:
            try:
                block = sound.read(size, dtype="float32", always_2d=True)  # [samples, channels]
            except soundfile.LibsndfileError as error:
                if error.code == SYSTEM_ERROR:
                    raise OSError(
                        None, f"the file cannot be read ({error.error_string})", file.name
                    ) from None
                raise Unusable(f"unreadable: {error.error_string.strip().rstrip('.')}") from None
            samples += len(block)
            check_length(samples / rate)
            yield block
            if len(block) < size:
                break
        check_whole(samples / rate, sound.frames / rate)


def _with_ffmpeg(file: BinaryIO) -> Iterator:
    import av  # takes 0.1 s to import, and most files do not need it

    av.logging.set_level(av.logging.PANIC)  # the reason goes to quarantine.csv
    try:
        container = av.open(file, metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError):
        raise Unusable("unreadable: not audio, or of a format that FFmpeg does not know") from None
    with container:
        if not container.streams.audio:
            raise Unusable("unreadable: no sound in it")
        stream = container.streams.audio[0]
        rate = check_rate(stream.codec_context.sample_rate)
        yield rate
        held, values, samples, channels = [], 0, 0, 0
        for frame in _frames(container, stream):
            if frame.sample_rate != rate:
                raise Unusable("several recordings with different sample rates in one file: split it")
            block = _samples_of(frame)  # [samples, channels]
            channels = channels or block.shape[1]  # those of the first frame
            if block.shape[1] != channels:
                block = block.mean(axis=1, keepdims=True).repeat(channels, axis=1)
            held.append(block)
            values += block.size
            samples += len(block)
            check_length(samples / rate)
            if values >= BLOCK_VALUES or sum(map(len, held)) >= BLOCK_SECONDS * rate:
                yield np.concatenate(held)
                held, values = [], 0
        if not samples:
            raise Unusable("unreadable: no sound could be decoded")
        if held:
            yield np.concatenate(held)
        promised = float(stream.duration * stream.time_base) if stream.duration else 0.0
        if not promised and container.duration:
            promised = container.duration / av.time_base
        if container.format.name not in HEADER_GUESSES:
            check_whole(samples / rate, promised)


def _frames(container, stream) -> Iterator:
    """Yield the decoded frames of a stream; damaged packets in between are passed over."""
    import av

    with suppress(av.error.EOFError):
        for packet in container.demux(stream):
            with suppress(av.error.InvalidDataError):
                yield from packet.decode()


def _samples_of(frame) -> np.ndarray:
    """Return a frame of FFmpeg as float32 [samples, channels]."""
    x = frame.to_ndarray()  # [channels, samples], or [1, samples × channels]
    channels = frame.layout.nb_channels
    x = x.T if frame.format.is_planar else x.reshape(-1, channels)
    if x.dtype.kind == "f":
        return x.astype(np.float32)
    if x.dtype == np.uint8:
        return (x.astype(np.float32) - 128) / 128
    return x.astype(np.float32) / -float(np.iinfo(x.dtype).min)


def check_rate(rate: int) -> int:
    """Return a sample rate that can be true, else raise `Unusable`: with a wrong one, a second
    becomes hours.
    """
    if not 1000 <= rate <= 1_000_000:
        raise Unusable(f"sample rate of {rate} Hz")
    return rate


def check_length(seconds: float) -> None:
    """Raise `Unusable` for a clip that is longer than any recording."""
    if seconds > 3600 * MAX_HOURS:
        raise Unusable(f"longer than {MAX_HOURS} hours: split it")


def check_whole(seconds: float, promised: float) -> None:
    """Raise `Unusable` if much of the promised length is missing; an MP3's promise is off by up to 0.25 s."""
    if seconds < TRUNCATED * promised and promised - seconds > 1:
        raise Unusable(f"truncated: {seconds:.1f} of {promised:.1f} s could be decoded")


# --------------------------------------------------------------------------------------- containers


def inspect(file: BinaryIO) -> str:
    """Return which decoder reads a file right, "libsndfile" or "ffmpeg", by a look at its container.

    Raises `Unusable` if the container shows that the file was cut short.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] in (b"RIFF", b"RIFX") and data[8:12] == b"WAVE":
            return _inspect_chunks(data, "<" if data[:4] == b"RIFF" else ">", b"data")
        if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
            return _inspect_chunks(data, ">", b"SSND")
        if data[:4] == b"fLaC":
            return _inspect_flac(data)
        if data[:4] == b"OggS":
            return _inspect_ogg(data)
        start = _after_id3(data)
        if data[start : start + 4] == b"fLaC":
            return "ffmpeg"  # libsndfile does not look behind the tag
        if data[start : start + 1] == b"\xff" and len(data) > start + 1 and data[start + 1] & 0xE0 == 0xE0:
            return _inspect_mp3(data, start)
    return "libsndfile"


def _inspect_chunks(data: mmap.mmap, order: str, wanted: bytes) -> str:
    """WAV and AIFF: compare the size of the chunk with the samples with what is there."""
    position = 12
    while position + 8 <= len(data):
        name = data[position : position + 4]
        (size,) = struct.unpack(order + "I", data[position + 4 : position + 8])
        there = len(data) - position - 8
        if name == wanted:
            if size in WAV_UNKNOWN:
                return "ffmpeg"
            if size > there + 1:  # the padding byte at the end is often missing
                raise Unusable(f"truncated: {there:,} of {size:,} bytes of sound are there")
            rest = data[position + 8 + size : position + 8 + size + 9]
            if data[:4] in rest:
                raise Unusable("several recordings in one file: split it")
            return "libsndfile"
        position += 8 + size + size % 2
    return "libsndfile"


def _inspect_flac(data: mmap.mmap) -> str:
    """FLAC: a length of 0 means unknown (written to a pipe); a second header means a second recording."""
    # STREAMINFO, 4 bytes behind the magic: the low 36 bits of its bytes 10 to 18 are the number of
    # samples
    total = int.from_bytes(data[18:26], "big") & (1 << 36) - 1
    second = data.find(b"fLaC\x00\x00\x00\x22", 4)
    return "ffmpeg" if total == 0 or second > 0 else "libsndfile"


def _inspect_ogg(data: mmap.mmap) -> str:
    """Ogg: a stream that begins behind the first page of sound is another recording; the last page
    tells the end.
    """
    position = flags = 0
    sounded = several = False
    while position + 27 <= len(data) and data[position : position + 4] == b"OggS":
        flags = data[position + 5]
        granule = data[position + 6 : position + 14]
        several |= bool(flags & 2) and sounded
        sounded |= granule not in (bytes(8), b"\xff" * 8)  # headers stand at 0
        segments = data[position + 26]
        position += 27 + segments + sum(data[position + 27 : position + 27 + segments])
    if position > len(data) or not flags & 4:  # the last page is cut, or is not the last one of its stream
        raise Unusable("truncated: the end of the recording is missing")
    return "ffmpeg" if several else "libsndfile"


def _after_id3(data: mmap.mmap) -> int:
    """Return where an ID3v2 tag at the beginning ends."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    a, b, c, d = data[6:10]  # seven bits each
    return 10 + (a << 21 | b << 14 | c << 7 | d)


def _inspect_mp3(data: mmap.mmap, start: int) -> str:
    """MP3: libsndfile needs a Xing, Info or VBRI header to know the length, and believes it."""
    first = data[start : start + 256]
    place = max(first.find(b"Xing"), first.find(b"Info"))
    if place > 0 and first[place + 7] & 3 == 3:  # it tells frames and bytes
        (size,) = struct.unpack(">I", first[place + 12 : place + 16])
    elif (place := first.find(b"VBRI")) > 0:
        (size,) = struct.unpack(">I", first[place + 10 : place + 14])
    else:
        return "ffmpeg"
    # tags at the end hold a few kB, and a second recording more; FFmpeg reads both right
    return "libsndfile" if len(data) - start - size < 4096 else "ffmpeg"
