"""`python -m colalib bench`: the project's own benchmarks, each a ratio to a reference in the same run.

Inputs are made on the spot (random segments, random weights, noise). What is written goes to temporary
folders.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import psutil
import soundfile
import soxr
import torch
from efficientnet_pytorch import EfficientNet
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from colalib.cola import Cola
from colalib.collection.opening import blocks, scale_of, similarities
from colalib.data import audio, corpora, segments, store
from colalib.data.audio import MelConfig
from colalib.data.clips import Clips, pretraining_clips
from colalib.encoder import Encoder, choose_cpu_precision
from colalib.fast_cpu import encode_batches, fold_batch_norms, in_batches
from colalib.files import write_json
from colalib.settings import PretrainConfig

# operator names of the profiler → what a reader would call them; a 1x1 convolution is a matrix
# product (`mm`)
OPERATORS = {
    "convolutions": ("conv", "aten::mm", "aten::addmm", "aten::bmm"),
    "norm": ("batch_norm",),
    "activation": ("silu", "sigmoid", "swish"),
    "optimiser": ("adamw", "optimizer"),
}


class PlainEncoder(nn.Module):
    """The reference: an encoder's weights in efficientnet_pytorch's network as it comes.

    float32, channels first, the package's "memory-efficient" swish; after the same input scaling, and
    before the same max pooling.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.net = EfficientNet(encoder.net._blocks_args, encoder.net._global_params)
        self.net._change_in_channels(1)
        self.net.load_state_dict(encoder.net.state_dict())
        self.register_buffer("std", encoder.std.clone())

    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.mean(dim=(1, 2), keepdim=True)) / self.std  # [B, T, M]
        return self.net.extract_features(x[:, None]).amax(dim=(2, 3))  # [B, dim]


def training_throughput(
    archs: tuple[str, ...] = ("b0", "b0-small"), batch: int = 64, seconds: float = 20.0
) -> list[dict]:
    """Return how many segments per second a training step takes, for the reference and for each precision.

    A step is forward, backward and AdamW on `batch` anchors and as many positives, [batch, 98, 64] each. The
    reference is `PlainEncoder` on one batch after the other, and `torch.optim.AdamW` as it comes. Steps are
    interleaved, for about `seconds` per architecture. The best round counts, as in `timeit`: another
    program can only make a step slower. Rows: arch, precision, segments_per_s, ratio, and gflops:
    the GFLOP/s that the network's matrix products and convolutions amount to.
    """
    rows = []
    for arch in archs:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            PlainEncoder(Encoder(arch))(torch.randn(1, 98, 64))
        # of a segment; backward is twice forward (it counts groups wrongly there)
        work = 3 * counter.get_total_flops() / 1e9
        steps = {"reference": _step(arch, None, batch)}
        steps |= {
            precision: _step(arch, precision, batch)
            for precision in dict.fromkeys(("float32", choose_cpu_precision()))
        }
        best = _best_of(steps, seconds)
        for precision, t in best.items():
            rate, ratio = 2 * batch / t, best["reference"] / t
            rows.append(
                {
                    "arch": arch,
                    "precision": precision,
                    "segments_per_s": rate,
                    "ratio": ratio,
                    "gflops": rate * work,
                }
            )
    return rows


def embedding_speed(segments: int = 256, seconds: float = 4.0) -> dict[str, float]:
    """Return seconds for the block features of random segments.

    "as trained": with batch norms, 64 segments at a time; "folded": as `embed_frames` computes them.
    """
    torch.manual_seed(0)
    encoder = Encoder("b0-small").eval()
    folded = fold_batch_norms(encoder)
    x = torch.randn(segments, 98, 64)
    with torch.no_grad():
        return _best_of(
            {
                "as trained": lambda: in_batches(encoder.block_features, x, 64),
                "folded": lambda: in_batches(folded.block_features, x),
            },
            seconds,
        )


def step_shares(arch: str, precision: str | None = None, batch: int = 64, steps: int = 3) -> dict[str, float]:
    """Return the shares of a training step's time on one thread, by kind of work (torch.profiler).

    `precision` None is the reference.
    """
    step, threads = _step(arch, precision, batch), torch.get_num_threads()
    torch.set_num_threads(1)  # the profiler sees only the thread that starts it
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(steps):
            step()
    torch.set_num_threads(threads)
    shares = dict.fromkeys((*OPERATORS, "other"), 0.0)
    for event in profile.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, names in OPERATORS.items() if any(n in name for n in names)), "other")
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: t / total for kind, t in shares.items()}


def gemm_peak(seconds: float = 2.0) -> dict[str, float]:
    """Return the GFLOP/s of one 2048×2048 matrix product in float32 and bfloat16.

    It is what the convolutions could reach at best.
    """
    n = 2048

    def product(dtype: torch.dtype) -> Callable[[], object]:
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        return lambda: a @ b

    dtypes = {"float32": torch.float32}
    if choose_cpu_precision() == "bf16":  # minutes without the hardware
        dtypes["bf16"] = torch.bfloat16
    best = _best_of({name: product(dtype) for name, dtype in dtypes.items()}, seconds)
    return {name: 2 * n**3 / t / 1e9 for name, t in best.items()}


def preparing(clips: int = 1200, seconds: float = 8.0) -> dict[str, float]:
    """Return the seconds that `prepare` takes for `clips` clips with one process and with two, best of two.

    The clips are MP3 at 16 kHz, as in the demo corpus: a hundred files over and over.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = write_noise(Path(folder), 100, seconds, "mp3")
        rows = [f"{i},{i % 100}.mp3\n" for i in range(clips)]
        (root / "index.csv").write_text("clip_id,path\n" + "".join(rows))
        corpus = corpora.load(root)
        first = dataclasses.replace(corpus, clips=corpus.clips[:32])
        store.build(first, Path(folder) / "warm", jobs=2, progress=False)  # starts the processes
        names = iter(range(1000))

        def prepare(jobs: int) -> None:
            store.build(corpus, Path(folder) / str(next(names)), jobs=jobs, progress=False)

        times = {"one process": partial(prepare, 1), "two processes": partial(prepare, 2)}
        return {name: min(timeit.repeat(call, number=1, repeat=2)) for name, call in times.items()}


def write_noise(folder: Path, files: int, seconds: float, suffix: str) -> Path:
    """Write files of noise, 16 kHz, mono, and return their folder."""
    root = folder / "noise"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(files):
        wave = 0.1 * rng.standard_normal(int(16_000 * seconds)).astype(np.float32)
        soundfile.write(root / f"{i}.{suffix}", wave, 16_000)
    return root


def loader_share(steps: int = 10) -> float:
    """Return the share of a pre-training step (default settings) that drawing its pairs takes."""
    config = PretrainConfig()
    module = Cola(config, 1.0)
    optimizer = module.configure_optimizers()
    drawing = working = 0.0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = write_noise(Path(folder), 2 * config.batch_size, 2.0, "wav")
        clips = Clips.of_store(
            store.build(corpora.load(root), Path(folder) / "store", jobs=2, progress=False)
        )
        for step in range(steps + 1):
            begun = time.perf_counter()
            pair = segments.pair_batch(clips, step, config.batch_size, 0, config.filter_db, config.mask_bands)
            drawn = time.perf_counter()
            optimizer.zero_grad()
            module.objective(*encode_batches(module.encoder, [*pair]))[0].backward()
            optimizer.step()
            if step:  # the first one warms up
                drawing += drawn - begun
                working += time.perf_counter() - drawn
    return drawing / (drawing + working)


def preparing_parts(seconds: float = 30.0, rounds: int = 5) -> dict[str, float]:
    """Return the seconds that one core needs for a stereo MP3 at 44.1 kHz, as FMA has, by part.

    Decoding, mixing to mono, resampling, log-mel; the whole as `prepare` does it; and a plain pair of
    librosa calls to the same end. Best of `rounds`.
    """
    config, rng = MelConfig(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        path = Path(folder) / "a.mp3"
        soundfile.write(path, 0.1 * rng.standard_normal((int(44_100 * seconds), 2)), 44_100)
        channels = soundfile.read(path, dtype="float32", always_2d=True)[0]
        mono, wave = audio.to_mono(channels), audio.load_audio(path)

        def plain() -> np.ndarray:
            y, rate = librosa.load(path, sr=config.sample_rate)
            sizes = {"n_fft": config.n_fft, "win_length": config.window, "hop_length": config.hop}
            bands = {"n_mels": config.n_mels, "fmin": config.fmin, "fmax": config.fmax}
            mel = librosa.feature.melspectrogram(y=y, sr=rate, power=1.0, **sizes, **bands)
            return np.log(np.maximum(mel, config.floor)).T

        worst = np.abs(plain() - audio.log_mel(wave, config)).max()
        if not worst < 1e-3:
            raise AssertionError(f"prepare and librosa differ by {worst}")
        parts = {
            "decoding": lambda: soundfile.read(path, dtype="float32", always_2d=True),
            "mixing": lambda: audio.to_mono(channels),
            "resampling": lambda: soxr.resample(mono, 44_100, config.sample_rate),
            "transform": lambda: audio.log_mel(wave, config),
            "prepare": lambda: list(audio.log_mel_stream(audio.stream(path, config.sample_rate), config)),
            "librosa": plain,
        }
        # in turn, so that other programs on the machine slow all alike
        times = [[timeit.timeit(part, number=1) for part in parts.values()] for _ in range(rounds)]
        return dict(zip(parts, map(min, zip(*times))))


# clips of FMA-large; on Windows, whose disks keep the holes of a file, 2 GB of them
LARGE = 5_000 if os.name == "nt" else 106_574


def sparse_store(folder: Path, clips: int = LARGE, frames: int = 3_000) -> Path:
    """Make a store of FMA-large's size under `folder` and return its path.

    It takes no room on disk: its shards are holes in sparse files (zeros).
    """
    config, size = MelConfig(), store.shard_size(clips)
    place = folder / "large"
    place.mkdir()
    number = np.arange(clips)
    for shard in range(-(-clips // size)):
        n = min(size, clips - shard * size) * frames
        with open(store.shard_path(place, shard), "wb") as file:
            store.write_shard_header(file, n, config.n_mels)
            file.truncate(file.tell() + 2 * n * config.n_mels)
    table = {"shard": number // size, "start": number % size * frames, "frames": frames, "clip_id": number}
    table |= {
        "path": [f"{i // 1000:03d}/{i:06d}.mp3" for i in number],
        "label": "",
        "group": number // 7,
        "split": "train",
    }
    pd.DataFrame(table).to_csv(place / "clips.csv", index=False)
    (place / "quarantine.csv").write_text("path,reason\n")
    write_json(place / "config.json", {"corpus": "large", "mel": dataclasses.asdict(config)})
    return place


def large_store(pairs: int = 1024) -> dict[str, float]:
    """Return what a `sparse_store` costs: seconds and memory (MB) to open it and number its clips.

    And the seconds to draw `pairs` pairs, with the default augmentations and without, best of three.
    """
    config, process, times = PretrainConfig(), psutil.Process(), {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = sparse_store(Path(folder))
        before, begun = process.memory_info().rss, time.perf_counter()
        clips = pretraining_clips([store.MelStore(path)])
        times["open"] = time.perf_counter() - begun
        times["memory"] = (process.memory_info().rss - before) / 1e6
        for name, augmentations in (("draw", (config.filter_db, config.mask_bands)), ("draw plain", ())):
            draw = partial(segments.pair_batch, clips, 0, pairs, 0, *augmentations)
            draw()  # reads the frames into memory
            times[name] = min(timeit.repeat(draw, number=1, repeat=3))
        size = sum(p.stat().st_size for p in path.iterdir()) / 1e9
    return times | {"clips": len(clips), "size": size}


def searching(clips: int = 100_000, size: int = 4032, seconds: float = 4.0) -> dict[str, float]:
    """Return the seconds of a search among `clips` embeddings of `size` numbers that lie on disk.

    "first": with their scale, which is then kept; "later"; "product": of the embeddings, all in memory, with
    one vector, which no exact search can do without.
    """
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "vectors.npy"
        vectors = np.lib.format.open_memmap(file, "w+", np.float32, (clips, size))
        for _, block in blocks(vectors):
            block[:] = rng.standard_normal(block.shape, np.float32)
        vectors = np.load(file, mmap_mode="r")

        def search() -> np.ndarray:
            scale = scale_of(vectors)
            return similarities(vectors, scale, scale.transform(vectors[0]))

        start = time.perf_counter()
        search()
        first = time.perf_counter() - start
        whole = np.array(vectors)
        return {"first": first} | _best_of({"later": search, "product": lambda: whole @ whole[0]}, seconds)


# run in a process of its own, because a peak never falls again
MEMORY = """
import sys, torch
from pathlib import Path
from colalib.cola import Cola
from colalib.fast_cpu import encode_batches
from colalib.settings import PretrainConfig

def peak():  # MB; what getrusage says on Linux may be the parent's
    if Path("/proc/self/status").exists():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
    try:
        import resource
    except ImportError:  # Windows
        import psutil
        return psutil.Process().memory_info().peak_wset / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

batch, chunk = map(int, sys.argv[1:])
module = Cola(PretrainConfig(chunk=chunk), 1.0)
encode_batches(module.encoder, [*torch.randn(2, 2, 98, 64)], chunk=1)
before = peak()
h = encode_batches(module.encoder, [*torch.randn(2, batch, 98, 64)], chunk)
module.objective(*h)[0].backward()
print(peak() - before)
"""


def peak_memory(batch: int = 256, chunk: int = 32) -> dict[str, float]:
    """Return the peak memory (MB) that forward and backward of `batch` pairs add to a process.

    Whole, and in chunks of `chunk` segments (`--chunk`).
    """
    peaks = {}
    for name, size in (("whole", 0), ("chunks", chunk)):
        command = [sys.executable, "-c", MEMORY, str(batch), str(size)]
        peaks[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return peaks


def activations(arch: str = "b0-small") -> float:
    """Return the memory (MB) that one segment keeps for the backward pass, in float32, on any device."""
    encoder, kept = Encoder(arch, cpu_precision="float32").train(), {}
    weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x  # held, so that no address is used twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        encoder(torch.randn(8, 98, 64))
    return sum(x.untyped_storage().nbytes() for x in kept.values()) / 8 / 1e6


def run(quick: bool = False) -> None:
    """Print all sections as plain text; takes about 3 minutes.

    `quick` takes 1: only b0-small, fewer rounds and clips.
    """
    archs = ("b0-small",) if quick else ("b0", "b0-small")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {choose_cpu_precision()}")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows has none
    if load > 1:
        # a thread that lost its core holds up all others: ratios drift, and OMP_NUM_THREADS=1 is steadier
        print(f"note: other programs are running (load {load:.1f}); the figures below are less certain")
    report_training(archs, seconds=6.0 if quick else 20.0)
    print(f"\nDrawing the pairs: {100 * loader_share():.1f}% of a pre-training step with default settings")
    speed = embedding_speed()
    print(
        f"\nEmbedding 256 segments of 0.49 s, batch norms folded: {1000 * speed['folded']:.0f} ms, "
        f"{256 * 0.49 / speed['folded']:.0f} times real time; as trained, 64 at a time: "
        f"{1000 * speed['as trained']:.0f} ms ({speed['as trained'] / speed['folded']:.2f}x)"
    )
    report_preparing(clips=300 if quick else 1200)
    times = large_store()
    print(
        f"\nA store of {times['clips']:,} clips ({times['size']:.0f} GB, sparse): opened in "
        f"{times['open']:.2f} s with {times['memory']:.0f} MB; 1,024 pairs drawn in "
        f"{1000 * times['draw plain']:.0f} ms, augmented in {1000 * times['draw']:.0f} ms"
    )
    clips = 10_000 if quick else 100_000
    times = searching(clips)
    print(
        f"\nSearch among {clips:,} embeddings of 4,032 numbers: the first {times['first']:.2f} s, later "
        f"ones {times['later']:.2f} s, {times['later'] / times['product']:.1f}x the product in memory"
    )
    memory = peak_memory()
    print(
        f"\nPeak memory of forward and backward of 256 pairs: {memory['whole']:.0f} MB, in chunks of 32 "
        f"segments {memory['chunks']:.0f} MB ({memory['chunks'] / memory['whole']:.2f}x)"
    )


def report_training(archs: tuple[str, ...], seconds: float) -> None:
    """Print the speed of training, and what a step's time is spent on."""
    peak = gemm_peak(seconds / 10)
    print("\nMatrix product, GFLOP/s: " + ", ".join(f"{name} {value:.0f}" for name, value in peak.items()))
    rows = pd.DataFrame(training_throughput(archs, seconds=seconds))
    rows["of the matrix product"] = rows["gflops"] / rows["precision"].map(peak).fillna(peak["float32"])
    print("\nTraining, segments/s (0.98 s each, 64 pairs; best round; ratio to the plain package, same run)")
    print(rows.to_string(index=False, float_format="{:.2f}".format))
    shares = [
        {"arch": arch, "precision": precision or "reference"} | step_shares(arch, precision)
        for arch in archs
        for precision in (None, choose_cpu_precision())
    ]
    print("\nShares of a training step on one thread, %")
    print((100 * pd.DataFrame(shares).set_index(["arch", "precision"])).round().to_string())


def report_preparing(clips: int) -> None:
    """Print the speed of preparing a store."""
    one, two = preparing(clips).values()
    print(f"\nPreparing {clips} clips of 8 s: one process {one:.1f} s, two {two:.1f} s ({one / two:.2f}x)")
    parts = preparing_parts()
    whole, librosa_s = parts["prepare"], parts["librosa"]
    names = ("decoding", "mixing", "resampling", "transform")
    shares = ", ".join(f"{name} {100 * parts[name] / whole:.0f}%" for name in names)
    print(
        f"\nA stereo MP3 of 30 s at 44.1 kHz, one core: {1000 * whole:.0f} ms "
        f"({30 / whole:.0f} times real time), of which\n{shares}; "
        f"librosa.load and melspectrogram {1000 * librosa_s:.0f} ms ({librosa_s / whole:.2f}x)"
    )


def _step(arch: str, precision: str | None, batch: int) -> Callable[[], object]:
    """Return one training step of an encoder on random pairs; `precision` None is the reference.

    The loss does not matter.
    """
    torch.manual_seed(0)
    pair = torch.randn(2, batch, 98, 64)
    model: nn.Module = Encoder(arch, cpu_precision=precision or "float32")
    if precision is None:
        model = PlainEncoder(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=precision is not None or None)

    def step() -> None:
        optimizer.zero_grad()
        anchors, positives = map(model, pair) if precision is None else encode_batches(model, [*pair])
        (anchors * positives).mean().backward()
        optimizer.step()

    return step


def _best_of(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the seconds of each function's fastest call; they are called in turn for `seconds`."""
    for function in functions.values():
        function()
    best = dict.fromkeys(functions, float("inf"))
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - start < seconds:
        for name, function in functions.items():
            t = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - t)
        rounds += 1
    return best
