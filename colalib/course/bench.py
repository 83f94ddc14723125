"""`python -m colalib bench`: the project's own benchmarks, each a ratio to a reference timed in the
same run.

Everything here is made up on the spot (random segments, random weights, noise); only `preparing`
writes, to a temporary folder.
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
from colalib.data import audio, corpora, segments, store
from colalib.data.audio import MelConfig
from colalib.data.clips import Clips, pretraining_clips
from colalib.encoder import Encoder, choose_cpu_precision
from colalib.fast_cpu import encode_batches
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
    """The reference: an encoder's weights in efficientnet_pytorch's network as delivered (float32,
    NCHW, its own "memory-efficient" swish), after the same input scaling and before the same max
    pooling."""

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
    """Segments a second of forward + backward + AdamW step on `batch` anchors and as many
    positives, `[batch, 98, 64]` float32, for the reference (`PlainEncoder` on one after the other,
    `torch.optim.AdamW` as it comes) and for each recipe (`encode_batches`, fused AdamW).

    Steps are interleaved, for about `seconds` an architecture and at least three rounds. The best
    round counts, as in `timeit`: another program can only make a step slower. → rows with arch,
    recipe, segments_per_s, ratio, and the gflops a second that the network's matrix products and
    convolutions amount to.
    """
    rows = []
    for arch in archs:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            PlainEncoder(Encoder(arch))(torch.randn(1, 98, 64))
        # of a segment; backward is twice forward (it counts groups wrongly there)
        work = 3 * counter.get_total_flops() / 1e9
        steps = {"reference": _step(arch, None, batch)}
        steps |= {
            recipe: _step(arch, recipe, batch)
            for recipe in dict.fromkeys(("float32", choose_cpu_precision()))
        }
        best = _best_of(steps, seconds)
        for recipe, t in best.items():
            rate, ratio = 2 * batch / t, best["reference"] / t
            rows.append(
                {
                    "arch": arch,
                    "recipe": recipe,
                    "segments_per_s": rate,
                    "ratio": ratio,
                    "gflops": rate * work,
                }
            )
    return rows


def step_shares(arch: str, recipe: str | None = None, batch: int = 64, steps: int = 3) -> dict[str, float]:
    """Fractions of a training step's time on one thread by kind of work (torch.profiler); recipe
    None is the reference.
    """
    step, threads = _step(arch, recipe, batch), torch.get_num_threads()
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


def gemm_peak(n: int = 2048, seconds: float = 2.0) -> dict[str, float]:
    """GFLOP/s of one n×n matrix product in float32 and bfloat16: what the convolutions could reach
    at best.
    """

    def product(dtype: torch.dtype) -> Callable[[], object]:
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        return lambda: a @ b

    dtypes = {"float32": torch.float32}
    if choose_cpu_precision() == "bf16":  # minutes without the hardware
        dtypes["bf16"] = torch.bfloat16
    best = _best_of({name: product(dtype) for name, dtype in dtypes.items()}, seconds)
    return {name: 2 * n**3 / t / 1e9 for name, t in best.items()}


def preparing(clips: int = 1200, seconds: float = 8.0) -> dict[str, float]:
    """Seconds of `prepare` on `clips` clips (MP3, 16 kHz, mono, as the demo corpus has; a hundred
    files over and over) with one process and with two, best of two each after the processes have
    started."""
    with tempfile.TemporaryDirectory() as folder:
        root, rng = Path(folder) / "noise", np.random.default_rng(0)
        root.mkdir()
        for i in range(100):
            wave = 0.1 * rng.standard_normal(int(16_000 * seconds)).astype(np.float32)
            soundfile.write(root / f"{i}.mp3", wave, 16_000)
        rows = [f"{i},{i % 100}.mp3\n" for i in range(clips)]
        (root / "index.csv").write_text("clip_id,path\n" + "".join(rows))
        corpus, times = corpora.load(root), {"one process": [], "two processes": []}
        first = dataclasses.replace(corpus, clips=corpus.clips[:32])
        store.build(first, Path(folder) / "warm", jobs=2, progress=False)
        for turn in range(2):
            for jobs, name in enumerate(times, start=1):
                t = time.perf_counter()
                store.build(corpus, Path(folder) / f"{jobs}-{turn}", jobs=jobs, progress=False)
                times[name].append(time.perf_counter() - t)
        return {name: min(values) for name, values in times.items()}


def loader_share(steps: int = 10) -> float:
    """Share of a pre-training step (default settings) that drawing its pairs from a store takes."""
    config = PretrainConfig()
    with tempfile.TemporaryDirectory() as folder:
        root, rng = Path(folder) / "noise", np.random.default_rng(0)
        root.mkdir()
        for i in range(2 * config.batch_size):
            soundfile.write(root / f"{i}.wav", 0.1 * rng.standard_normal(32_000), 16_000)
        made = store.build(corpora.load(root), Path(folder) / "store", jobs=2, progress=False)
        clips = Clips([made], [np.arange(len(made))])
        module = Cola(config, 1.0)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
        drawing = working = 0.0
        for step in range(steps + 1):
            t = time.perf_counter()
            pair = segments.pair_batch(clips, step, config.batch_size, 0, config.filter_db, config.mask_bands)
            drawn = time.perf_counter()
            optimizer.zero_grad()
            module.objective(*encode_batches(module.encoder, list(pair)))[0].backward()
            optimizer.step()
            if step:  # the first one warms up
                drawing, working = drawing + drawn - t, working + time.perf_counter() - drawn
        return drawing / (drawing + working)


def preparing_parts(seconds: float = 30.0, rounds: int = 5) -> dict[str, float]:
    """Seconds that one core needs for a stereo MP3 at 44.1 kHz of `seconds`, as FMA has: decoding,
    mixing to mono, resampling, log-mel, the whole as `prepare` does it, and a plain pair of librosa
    calls to the same end; best of `rounds`."""
    config, rng = MelConfig(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        path = Path(folder) / "a.mp3"
        soundfile.write(path, 0.1 * rng.standard_normal((int(44_100 * seconds), 2)), 44_100)
        channels = soundfile.read(path, dtype="float32", always_2d=True)[0]
        mono, wave = audio.to_mono(channels), audio.load_audio(path)

        def plain() -> np.ndarray:
            y, rate = librosa.load(path, sr=config.sample_rate)
            sizes = {
                "n_fft": config.n_fft,
                "win_length": config.window,
                "hop_length": config.hop,
                "n_mels": config.n_mels,
            }
            mel = librosa.feature.melspectrogram(
                y=y, sr=rate, power=1.0, fmin=config.fmin, fmax=config.fmax, **sizes
            )
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
        # in turn, so that whoever else uses the machine slows all alike
        times = [[timeit.timeit(part, number=1) for part in parts.values()] for _ in range(rounds)]
        return dict(zip(parts, map(min, zip(*times))))


def sparse_store(folder: Path, clips: int = 106_574, frames: int = 3_000) -> Path:
    """A store of FMA-large's size under `folder` that takes no room: its shards are holes in sparse
    files (zeros).
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
    """A `sparse_store`: seconds to open it and number its clips, the memory (MB) that this adds,
    and the seconds to draw `pairs` pairs with the default augmentations and without, best of three
    once their frames are in memory."""
    with tempfile.TemporaryDirectory() as folder:
        place, process = sparse_store(Path(folder)), psutil.Process()
        before, t = process.memory_info().rss, time.perf_counter()
        made = store.MelStore(place)
        clips = pretraining_clips([made])
        found = {"open": time.perf_counter() - t, "memory": (process.memory_info().rss - before) / 1e6}
        config = PretrainConfig()
        for name, augment in (("draw", (config.filter_db, config.mask_bands)), ("draw plain", ())):
            call = partial(segments.pair_batch, clips, 0, pairs, 0, *augment)
            call()
            found[name] = min(timeit.repeat(call, number=1, repeat=3))
        return found | {"clips": len(made), "size": sum(p.stat().st_size for p in place.iterdir()) / 1e9}


MEMORY = """
import sys, torch
from pathlib import Path
from colalib.cola import Cola
from colalib.fast_cpu import encode_batches
from colalib.settings import PretrainConfig
from colalib.cola import Cola
from colalib.settings import PretrainConfig
from colalib.data.clips import pretraining_clips

def peak():  # MB; what getrusage says on Linux may be the parent's
    if Path("/proc/self/status").exists():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

batch, chunk = map(int, sys.argv[1:])
module = Cola(PretrainConfig(chunk=chunk), 1.0)
encode_batches(module.encoder, list(torch.randn(2, 2, 98, 64)), chunk=1)
before = peak()
module.objective(*encode_batches(module.encoder, list(torch.randn(2, batch, 98, 64)), chunk))[0].backward()
print(peak() - before)
"""


def peak_memory(batch: int = 256, chunk: int = 32) -> dict[str, float]:
    """Peak memory (MB) that forward and backward of `batch` pairs add to a process, whole and in
    chunks (`--chunk`).
    """
    found = {}
    for name, size in (("whole", 0), ("chunks", chunk)):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(batch), str(size)], capture_output=True, text=True, check=True
        )
        found[name] = float(done.stdout)
    return found


def activations(arch: str = "b0-small") -> float:
    """Memory (MB) that one segment's forward pass keeps for the backward pass, in float32, on any
    device.
    """
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
    """Print all sections as plain text; about 3 minutes, 1 with quick (b0-small only, fewer rounds
    and clips).
    """
    archs = ("b0-small",) if quick else ("b0", "b0-small")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, recipe {choose_cpu_precision()}")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows has none
    if load > 1:
        # a thread that lost its core holds up all the others: ratios drift, and OMP_NUM_THREADS=1
        # is steadier
        print(f"note: other programs are running (load {load:.1f}); the figures below are less certain")
    peak = gemm_peak(seconds=1.0 if quick else 2.0)
    print("\nMatrix product, GFLOP/s: " + ", ".join(f"{name} {value:.0f}" for name, value in peak.items()))

    print("\nTraining, segments/s (0.98 s each, 64 pairs; best round; ratio to the plain package, same run)")
    print(
        f"{'encoder':<10}{'recipe':<11}{'segments/s':>11}{'ratio':>8}{'GFLOP/s':>9}{'of the matrix product':>23}"
    )
    for row in training_throughput(archs, seconds=6.0 if quick else 20.0):
        share = row["gflops"] / peak.get(row["recipe"], peak["float32"])
        print(
            f"{row['arch']:<10}{row['recipe']:<11}{row['segments_per_s']:>11.0f}{row['ratio']:>7.2f}x", end=""
        )
        print(f"{row['gflops']:>9.0f}{100 * share:>22.0f}%")

    kinds = (*OPERATORS, "other")
    print("\nShares of a training step on one thread, %")
    print(f"{'encoder':<10}{'recipe':<11}" + "".join(f"{kind:>14}" for kind in kinds))
    for arch in archs:
        for recipe in (None, choose_cpu_precision()):
            shares = step_shares(arch, recipe)
            print(
                f"{arch:<10}{recipe or 'reference':<11}"
                + "".join(f"{100 * shares[kind]:>14.0f}" for kind in kinds)
            )

    share = loader_share()
    print(f"\nDrawing the pairs: {100 * share:.1f}% of a pre-training step with default settings")

    clips = 300 if quick else 1200
    times = preparing(clips)
    one, two = times.values()
    print(f"\nPreparing {clips} clips of 8 s: one process {one:.1f} s, two {two:.1f} s ({one / two:.2f}x)")

    parts = preparing_parts()
    whole = parts["prepare"]
    shares = ", ".join(
        f"{n} {100 * parts[n] / whole:.0f}%" for n in ("decoding", "mixing", "resampling", "transform")
    )
    print(
        f"\nA stereo MP3 of 30 s at 44.1 kHz, one core: {1000 * whole:.0f} ms ({30 / whole:.0f} times real time), of which"
    )
    print(
        f"{shares}; librosa.load and melspectrogram {1000 * parts['librosa']:.0f} ms ({parts['librosa'] / whole:.2f}x)"
    )

    found = large_store()
    print(
        f"\nA store of {found['clips']:,} clips ({found['size']:.0f} GB, sparse): opened in {found['open']:.2f} s with",
        end=" ",
    )
    print(f"{found['memory']:.0f} MB; 1,024 pairs drawn in {1000 * found['draw plain']:.0f} ms,", end=" ")
    print(f"augmented in {1000 * found['draw']:.0f} ms")

    memory = peak_memory()
    print(
        f"\nPeak memory of forward and backward of 256 pairs: {memory['whole']:.0f} MB, in chunks of 32 segments",
        end=" ",
    )
    print(f"{memory['chunks']:.0f} MB ({memory['chunks'] / memory['whole']:.2f}x)")


def _step(arch: str, recipe: str | None, batch: int) -> Callable[[], object]:
    """One training step of an encoder (recipe None: of the reference) on random pairs; the loss is
    immaterial.
    """
    torch.manual_seed(0)
    pair = torch.randn(2, batch, 98, 64)
    model: nn.Module = Encoder(arch, cpu_precision=recipe or "float32")
    if recipe is None:
        model = PlainEncoder(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=recipe is not None or None)

    def step() -> None:
        optimizer.zero_grad()
        anchors, positives = map(model, pair) if recipe is None else encode_batches(model, list(pair))
        (anchors * positives).mean().backward()
        optimizer.step()

    return step


def _best_of(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Seconds of each function's fastest call, called in turn for `seconds`, after one call each to
    warm up.
    """
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
