"""Every sound file comes out at its true length, or with a true reason, whatever its header says."""

import errno
import os
import struct

import av
import numpy as np
import pytest
import soundfile

from colalib.data.decoding import Unusable, decode, inspect

RATE = 16_000
SECONDS = 4.0


def wave(seconds: float = SECONDS, channels: int = 1) -> np.ndarray:
    """A tone in noise, float32 [samples, channels]."""
    t = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).standard_normal((len(t), channels))
    return (0.2 * np.sin(2 * np.pi * 440 * t)[:, None] + 0.02 * noise).astype(np.float32)


def write(path, x: np.ndarray | None = None, **options):
    """Write a file by libsndfile and return its path."""
    soundfile.write(path, wave() if x is None else x, RATE, **options)
    return path


def encode(path, codec: str, x: np.ndarray | None = None, rate: int = RATE, kbit: int = 64, **options):
    """Write a file by FFmpeg and return its path."""
    x = wave() if x is None else x
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        layout = "mono" if x.shape[1] == 1 else "stereo"
        stream.layout = layout
        stream.bit_rate = 1000 * kbit
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x.T), format="fltp", layout=layout)
        frame.sample_rate = RATE
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate)
        fifo = av.AudioFifo()
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            piece.pts = None
            fifo.write(piece)
        size = stream.codec_context.frame_size or 1024
        while (piece := fifo.read(size, partial=True)) is not None:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def seconds(path) -> float:
    rate, blocks = decode(path)
    return sum(map(len, blocks)) / rate


def reason(path) -> str:
    with pytest.raises(Unusable) as caught:
        seconds(path)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "rf64"])
def test_what_libsndfile_decodes_right_it_decodes(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}")
    assert seconds(path) == pytest.approx(SECONDS, abs=0.15)
    with open(path, "rb") as file:
        assert inspect(file) == "libsndfile"


@pytest.mark.parametrize(
    "suffix, codec",
    [
        ("m4a", "aac"),
        ("aac", "aac"),
        ("webm", "libopus"),
        ("mka", "flac"),
        ("wv", "wavpack"),
        ("wma", "wmav2"),
    ],
)
def test_other_formats_are_decoded_by_ffmpeg(tmp_path, suffix, codec):
    rate = 48_000 if codec == "libopus" else RATE
    left, right = wave(channels=2).T
    x = np.stack([left, right / 2], axis=1)
    rate, blocks = decode(encode(tmp_path / f"a.{suffix}", codec, x, rate=rate))
    found = np.concatenate([*blocks])  # [samples, 2]
    assert len(found) / rate == pytest.approx(SECONDS, abs=0.15)
    if codec == "flac":  # lossless, of 16 bits
        assert np.abs(found - x).max() < 1e-3
    for channel, of in zip(found.T, x.T):
        assert np.sqrt(np.mean(channel**2)) == pytest.approx(np.sqrt(np.mean(of**2)), rel=0.1)
        strongest = np.abs(np.fft.rfft(channel)).argmax() * rate / len(channel)
        assert strongest == pytest.approx(440, abs=1)


def test_an_mp3_of_varying_bitrate_without_a_xing_header_has_its_true_length(tmp_path):
    """As encoders write it to a pipe: libsndfile would guess the length from the first frames."""
    parts = []
    for bitrate, loud in ((160, 1.0), (8, 0.001), (8, 0.001)):
        path = tmp_path / f"{bitrate}-{loud}.mp3"
        encode(path, "libmp3lame", wave() * np.float32(loud), kbit=bitrate, write_xing="0", id3v2_version="0")
        parts.append(path.read_bytes())
    joined = tmp_path / "vbr.mp3"
    joined.write_bytes(b"".join(parts))
    assert seconds(joined) == pytest.approx(3 * SECONDS, abs=0.4)  # each has its padding
    assert soundfile.info(joined).duration < 2.5 * SECONDS  # what libsndfile believes


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path):
    content = bytearray(write(tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0  # the low 36 bits of STREAMINFO's sample count
    content[22:26] = bytes(4)
    (tmp_path / "b.flac").write_bytes(content)
    assert seconds(tmp_path / "b.flac") == pytest.approx(SECONDS, abs=0.01)


@pytest.mark.parametrize("suffix", ["ogg", "flac", "mp3"])
def test_recordings_one_after_the_other_in_a_file_are_all_read(tmp_path, suffix):
    content = write(tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"two.{suffix}").write_bytes(2 * content)
    assert seconds(tmp_path / f"two.{suffix}") == pytest.approx(
        2 * SECONDS, abs=0.3
    )  # an MP3 has its padding


@pytest.mark.parametrize("suffix", ["wav", "aiff"])
def test_recordings_that_cannot_be_read_one_after_the_other_are_told(tmp_path, suffix):
    content = write(tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"two.{suffix}").write_bytes(2 * content)
    assert "several recordings" in reason(tmp_path / f"two.{suffix}")


@pytest.mark.parametrize("suffix", ["wav", "aiff", "ogg", "flac", "mp3"])
def test_half_a_file_is_told(tmp_path, suffix):
    content = write(tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"half.{suffix}").write_bytes(content[: len(content) // 2])
    assert any(word in reason(tmp_path / f"half.{suffix}") for word in ("truncated", "lost sync"))


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_F000])
def test_a_wav_whose_recorder_was_switched_off_is_read(tmp_path, size):
    content = bytearray(write(tmp_path / "a.wav").read_bytes())
    data = content.index(b"data")
    for place in (4, data + 4):
        content[place : place + 4] = struct.pack("<I", size)
    (tmp_path / "b.wav").write_bytes(content)
    assert seconds(tmp_path / "b.wav") == pytest.approx(SECONDS, abs=0.01)


def test_a_header_that_claims_a_thousand_channels_takes_little_memory(tmp_path):
    content = bytearray(write(tmp_path / "a.w64", format="W64").read_bytes())
    place = content.index(b"fmt ") + 24  # behind the chunk's 16-byte name and 8-byte size
    struct.pack_into("<HHI", content, place, 1, 1024, 1_000_000)
    (tmp_path / "b.w64").write_bytes(content[:4096])
    try:
        _, blocks = decode(tmp_path / "b.w64")
        assert max((block.nbytes for block in blocks), default=0) < 100e6
    except Unusable:
        pass


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no music",
        b"\xff\xfb" + bytes(100),
        b"OggS" + bytes(40),
        b"fLaC" + bytes(60),
        b"RIFF" + bytes(8) + b"WAVE",
    ],
)
@pytest.mark.parametrize("suffix", ["wav", "mp3", "raw", ""])
def test_what_is_no_sound_has_a_reason(tmp_path, content, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    assert reason(path)


def test_a_missing_file_and_a_folder_have_a_reason(tmp_path):
    assert reason(tmp_path / "none.wav") == "file not found"
    (tmp_path / "folder.wav").mkdir()
    assert "folder" in reason(tmp_path / "folder.wav")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_errors_of_the_machine_are_raised(tmp_path, monkeypatch, number):
    path = write(tmp_path / "a.wav")

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(OSError) as caught:
        decode(path)
    assert caught.value.errno == number


@pytest.mark.skipif(not hasattr(os.stat_result, "st_blocks"), reason="this system does not tell holes")
def test_a_file_of_holes_is_told(tmp_path):
    content = write(tmp_path / "a.wav").read_bytes()
    path = tmp_path / "holes.wav"
    path.write_bytes(content[:4096])
    os.truncate(path, 100_000_000)
    if path.stat().st_blocks * 512 > 1_000_000:
        pytest.skip("this file system has no holes")
    assert "missing" in reason(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    for name, reason in (("pipe.wav", "a pipe or a device"), ("loop.wav", "a link to itself")):
        with pytest.raises(Unusable, match=reason):
            decode(tmp_path / name)
