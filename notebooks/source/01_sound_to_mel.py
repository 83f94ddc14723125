# ---
# jupyter:
#   jupytext:
#     formats: ipynb,source//py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 From sound to log-mel: hear what the network sees
#
# You hear what an encoder makes of music that was never told anything about it, follow one tune from air
# pressure to the picture that a neural network gets, listen after every step to what is still there, and put a whole
# corpus on disk in that form.
#
# **Run time** about a minute on 2 cores. The very first run also renders the demo corpus, once, in two minutes.
#
# You will be able to
# - say what a frame, a spectrum, a mel band and a log-mel spectrogram are, with shapes and units;
# - compute a log-mel spectrogram by hand, and check it against the library's;
# - choose window, hop, FFT length, bands, range and floor, knowing by eye and ear what each costs;
# - turn a folder of recordings into a store, know its size and its rounding error, and read what it refused.

# %%
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import librosa
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import soundfile
from IPython.display import display

from colalib import course, evaluation, widgets
from colalib.data import audio, corpora, store
from colalib.data.audio import MelConfig
from colalib.evaluation import plots

plots.style()
profile = course.profile()
print("Profile:", course.describe())

# %% [markdown]
# ## Where this leads
#
# The demo corpus holds eight kinds of music, rendered on your own machine from real scores and sampled instruments.
# `corpus.clips` is a table with one row per clip.
#
# With the course comes an encoder that has listened to such music for an hour and a quarter, without being told of any kind,
# composer or tune. Show it a clip it has never heard, and ask which other clip is most like it, takes of the same
# tune left out. Listen to what it finds.

# %%
corpus, mels = course.corpus(), course.store()
# embeddings are computed once; later runs load them from this folder
keep = course.runs() / "supervised" / "features"
features = evaluation.feature_source("default").of_store(mels, keep)  # [clips, d]
near = evaluation.neighbours(features, mels.clips["group"].values, k=1)[:, 0]
unheard = np.flatnonzero(mels.clips["split"] == "test")
for i in np.random.default_rng(0).choice(unheard, 2, replace=False):
    for name, j in (("asked for", i), ("found", near[i])):
        print(f"{name}: {mels.clips['title'][j]} ({mels.clips['label'][j]}, {mels.clips['family'][j]})")
        display(plots.player(audio.load_audio(corpus.root / mels.clips["path"][j])[: 5 * 16_000]))

# %%
labels = mels.clips["label"].values
kinds, same = len(set(labels)), np.mean(labels[near[unheard]] == labels[unheard])
print(f"{100 * same:.0f}% of {len(unheard)} unheard clips find one of their own kind")
print(f"by chance it would be {100 / kinds:.1f}%")

# %% [markdown]
# Far more than chance, and wrong often enough to be interesting. How a network comes to such an ear without
# a teacher, and how to know that it has one, is this course. It begins with what the network is given to hear.
#
# ## A recording is a row of numbers
#
# We take a jig with a drum kit, because it has both things that a spectrogram must show: tones that last, and
# strokes that don't.

# %%
jigs = corpus.clips.query("label == 'jig' and drums == 'kit'")
clip = jigs.iloc[0]
wave = audio.load_audio(corpus.root / clip["path"])[: 4 * 16_000]  # the first four seconds
print(f"{clip['title']} ({clip['label']}, {clip['family']})")
print(f"{wave.shape[0]} samples, {wave.dtype}, 16,000 per second")
display(plots.player(wave))

# %% [markdown]
# `load_audio` decoded the file, mixed it to mono and resampled it to 16 kHz. A sample is the air pressure at one
# moment, scaled to ±1. Sixteen thousand samples per second can carry frequencies up to 8 kHz, half the rate. That is
# enough for speech, and for most of what tells one kind of music from another. It is not enough for the highest
# sounds of a cymbal.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 2.8), width_ratios=[2, 1], sharey=True)
plots.waveform(wave, ax=axes[0], title="4 seconds")
start = 20_000  # 1.25 s: a note that lasts
zoom = plots.waveform(wave[start : start + 800], ax=axes[1], title="50 ms of it", lw=1.2)
_ = zoom.set(ylabel="")

# %% [markdown]
# On the left you see strokes, but no pitch; on the right you see a period, but no tune. Hearing sits in between:
# pitch *over* time. That is what a short-time spectrum shows.
#
# ## The short-time Fourier transform
#
# Cut the sound into frames of 25 ms, one every 10 ms. Let each frame fade in and out under a Hann window, because a
# frame cut off abruptly spreads every tone over the whole spectrum. Then take the magnitude of its Fourier
# transform. Look at one frame first, with the window and without.

# %%
config = MelConfig()
frame = wave[start : start + config.window]
hann = librosa.filters.get_window("hann", config.window)  # [400]
hertz = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)  # [513]

fig, axes = plt.subplots(1, 2, figsize=(10, 3), width_ratios=[1, 1.6])
windows = (("cut off", np.ones(config.window), "#999999"), ("Hann window", hann, plots.PALETTE[0]))
for name, taps, colour in windows:
    spectrum = np.abs(np.fft.rfft(frame * taps, config.n_fft)) / taps.sum()
    axes[0].plot(1000 * np.arange(config.window) / config.sample_rate, frame * taps, color=colour, label=name)
    axes[1].plot(hertz, 20 * np.log10(spectrum + 1e-9), color=colour, label=name, lw=1.2)
axes[0].set(xlabel="time (ms)", ylabel="amplitude", title="one frame")
axes[1].set(xlabel="frequency (Hz)", ylabel="magnitude (dB)", title="its spectrum", ylim=(-120, None))
_ = axes[1].legend()

# %% [markdown]
# Between the harmonics the windowed spectrum falls deeper: what filled the gaps before was not in the music, but in
# the cut. Now all frames. The whole short-time Fourier transform is these three lines.

# %%
padded = np.pad(wave, config.n_fft // 2)  # so that frame t is centred on sample t · hop
centred = np.pad(hann, (config.n_fft - config.window) // 2)  # the window in the middle of n_fft samples
frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop]  # [frames, n_fft]
spectrum = np.fft.rfft(frames * centred)  # complex [frames, n_fft/2 + 1]
magnitude = np.abs(spectrum)
print(f"waveform {wave.shape} → frames {frames.shape} → spectrum {spectrum.shape}")

# %% [markdown]
# A complex number has a magnitude and a phase. Magnitudes say how much of a frequency there is; phases say where in
# its period it stands, and they change so fast that hardly any model looks at them. What is lost without them?
# Listen: this sound was rebuilt from the magnitudes alone, with phases guessed by the Griffin-Lim algorithm, which
# seeks phases that fit from one overlapping frame to the next.

# %%
sizes = {"hop_length": config.hop, "win_length": config.window, "n_fft": config.n_fft}
rebuilt = librosa.griffinlim(magnitude.T, n_iter=32, random_state=0, **sizes)
print("magnitudes of the spectrum, phases guessed:")
display(plots.player(rebuilt))

# %% [markdown]
# ## Mel bands
#
# We hear the step from 100 to 200 Hz as an octave, and the step from 5,000 to 5,100 Hz as next to nothing. The **mel
# scale** spaces frequencies as the ear does: evenly at first, then ever more widely. 64 triangles, even on that
# scale, turn 513 frequencies into 64 bands.

# %%
filters = audio.mel_filters(config)  # [64, 513]
fig, ax = plt.subplots(figsize=(10, 2.6))
for i in range(0, 64, 3):
    ax.plot(hertz, filters[i] / filters[i].max(), color=plots.PALETTE[i % 2], lw=1)
ax.set(xlabel="frequency (Hz)", ylabel="weight", xlim=(0, 8000))
_ = ax.set_title("every third of the 64 mel bands, each scaled to a peak of 1")

# %%
mel = magnitude @ filters.T  # [frames, 64]
print(
    f"{magnitude.shape[1]} frequencies → {mel.shape[1]} bands: {mel.size / len(wave):.2f} numbers per sample"
)

fig, axes = plt.subplots(1, 2, figsize=(10, 3))
axes[0].imshow(magnitude.T, origin="lower", aspect="auto", extent=(0, 4, 0, 8000))
axes[0].set(xlabel="time (s)", ylabel="frequency (Hz)", title="magnitudes of the spectrum")
_ = plots.spectrogram(mel, config, ax=axes[1], title="the same in mel bands")

# %% [markdown]
# ## The logarithm
#
# Both pictures are nearly black, though you heard everything. Loudness is to the ear what frequency is: it counts
# ratios, not differences. A few numbers are large and the rest is crowded near zero. The logarithm spreads them, and
# a **floor** keeps it finite where there is silence.

# %%
log_mel = np.log(np.maximum(mel, config.floor))  # [frames, 64]

fig, axes = plt.subplots(1, 3, figsize=(10, 3), width_ratios=[1, 1, 2.2])
for ax, values, name in ((axes[0], mel, "mel magnitude"), (axes[1], log_mel, "ln of it")):
    ax.hist(values.ravel(), bins=60, color=plots.PALETTE[0], lw=0)
    ax.set(xlabel=name, ylabel="how many" if ax is axes[0] else "")
plots.spectrogram(log_mel, config, ax=axes[2], title="log-mel spectrogram")
_ = fig.colorbar(axes[2].images[0], ax=axes[2], label="ln magnitude", pad=0.01)

# %% [markdown]
# Now it is all there: horizontal lines are tones, vertical ones are strokes, and their texture is the rhythm. This
# is what the encoder gets, and nothing else. `audio.resynthesise` goes the way back as far as one can: mel bands
# spread to frequencies, phases guessed. The roughness comes from the guessed phases; but what is missing now, no
# network can know either.

# %%
print("from 64 mel bands:")
display(plots.player(audio.resynthesise(log_mel, config)))

# %% [markdown]
# ## By hand, in one piece
#
# Here are the steps from above, gathered. The course uses `audio.log_mel` of `colalib.data`. It does the same in
# blocks, so that an hour of sound doesn't fill the memory. The two must agree.


# %%
def log_mel_by_hand(wave: np.ndarray, config: MelConfig = MelConfig()) -> np.ndarray:
    """Waveform [samples] → natural-log mel magnitudes [frames, n_mels]."""
    window = np.pad(np.hanning(config.window + 1)[:-1], (config.n_fft - config.window) // 2)  # periodic Hann
    padded = np.pad(wave, config.n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop]
    magnitude = np.abs(np.fft.rfft(frames * window))  # [frames, n_fft/2 + 1]
    return np.log(np.maximum(magnitude @ audio.mel_filters(config).T, config.floor))


difference = np.abs(log_mel_by_hand(wave) - audio.log_mel(wave)).max()
assert difference < 1e-3, difference
print(f"largest difference between by hand and library: {difference:.1e} (1e-3 would be inaudible)")

# %% [markdown]
# ## What every parameter does
#
# The settings are those of the COLA paper (Saeed et al., [arXiv 2010.10915](https://arxiv.org/abs/2010.10915)): 64
# bands from 60 to 7,800 Hz, 25 ms windows every 10 ms. Turn one at a time and see what it buys.
#
# **Window.** A long window tells close tones apart; a short one tells close moments apart. You can't have both: with
# a window of $N$ samples two tones need a distance of about $2 f_s / N$ to $2.5 f_s / N$, here 80 to 100 Hz, before they part.

# %%
part = wave[16_000:32_000]  # one second


def turned(names_and_changes: list[tuple[str, dict]]) -> list[tuple]:
    """(title, frames, config) of one second of the clip under changed settings."""
    configs = [(name, replace(config, **change)) for name, change in names_and_changes]
    return [(name, audio.log_mel(part, c), c) for name, c in configs]


sizes = (("window 5 ms", 80, 1024), ("25 ms (ours)", 400, 1024), ("100 ms", 1600, 2048))
_ = plots.panels(turned([(name, {"window": window, "n_fft": n_fft}) for name, window, n_fft in sizes]))

# %% [markdown]
# **Hop.** How often a frame is taken. Shorter than about half a window, neighbouring frames say much the same again,
# and cost all the same: the encoder's work grows with the number of frames.

# %%
_ = plots.panels(turned([("hop 40 ms", {"hop": 640}), ("10 ms (ours)", {}), ("2.5 ms", {"hop": 40})]))

# %% [markdown]
# **FFT length.** The window is 400 samples, yet the transform has 1,024: the rest is zeros. They add no information,
# but they sample the same spectrum more finely, so that the narrow bands at the bottom get enough points to be
# triangles.

# %%
rows = []
for n_fft in (400, 512, 1024, 2048):
    bank = audio.mel_filters(replace(config, n_fft=n_fft))
    rows.append((n_fft, 16_000 / n_fft, (bank > 0).sum(axis=1).min()))
columns = ["FFT length", "Hz per point", "points in the narrowest band"]
pd.DataFrame(rows, columns=columns).set_index("FFT length").round(1)

# %% [markdown]
# **Bands and range.** Fewer bands blur neighbouring pitches into one. A lower upper edge throws the brightness away
# and leaves the tune. See it, then hear it.

# %%
changes = [("16 bands", {"n_mels": 16}), ("64 bands (ours)", {}), ("64 bands up to 2 kHz", {"fmax": 2000.0})]
_ = plots.panels(turned(changes))

# %%
for name, changed in (("16 bands", {"n_mels": 16}), ("64 bands, but only up to 2 kHz", {"fmax": 2000.0})):
    c = replace(config, **changed)
    print(f"{name}:")
    display(plots.player(audio.resynthesise(audio.log_mel(wave, c), c)))

# %% [markdown]
# **Floor.** It decides how quiet a detail may be and still count. A high floor keeps only the peaks. A very low one
# makes much of what nobody hears. Here the tune stops after half a second, and what follows is noise at −120 dB, far
# below what any loudspeaker renders: a low floor paints it as a texture all the same, and a network will look at it.

# %%
noise = 1e-6 * np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
part = np.concatenate([wave[16_000:24_000], noise])
_ = plots.panels(turned([("floor 1e-1", {"floor": 1e-1}), ("1e-5 (ours)", {}), ("1e-9", {"floor": 1e-9})]))

# %%
for name, floor in (("floor 0.1", 0.1), ("floor 1e-5", 1e-5)):
    c = replace(config, floor=floor)
    print(f"{name}:")
    display(plots.player(audio.resynthesise(audio.log_mel(wave, c), c)))

# %% [markdown]
# ## Turn it yourself
#
# The same parameters as sliders. The re-synthesis has nothing but the picture to go by, and its phases are guessed:
# what you don't hear in it, no network will learn from it. How few bands can a jig lose before it is no jig? And
# what does a long hop do to a drum?

# %% tags=["widget"]
kinds = corpus.clips.drop_duplicates("label").sort_values("label")
widgets.mel_laboratory({kind: corpus.root / path for kind, path in zip(kinds["label"], kinds["path"])})

# %% [markdown]
# ## A whole corpus, ready to train on
#
# Training asks for thousands of random one-second pieces per minute. Decoding a file for each of them would keep the
# processor busy with the wrong thing. So we do this once: `store.build` writes the log-mel frames of all clips to
# disk, in float16. It opens them by memory map, which reads only what is asked for. (`course.store()`, above, called
# it for the demo corpus.)

# %%
begun = time.perf_counter()
mels = course.store()
hours = mels.mel.seconds(mels.clips["frames"].sum()) / 3600
megabytes = sum(f.stat().st_size for f in mels.path.iterdir()) / 1e6
print(
    f"{len(mels)} clips, {hours:.2f} hours, {megabytes:.0f} MB on disk: {megabytes / hours:.0f} MB per hour"
)
print(f"an hour as 16-bit sound: {16_000 * 2 * 3600 / 1e6:.0f} MB")
print(f"opened in {time.perf_counter() - begun:.1f} s")
counts = pd.crosstab(mels.clips["label"], mels.clips["split"], margins=True)
display(counts[["train", "valid", "test", "All"]])

# %% [markdown]
# `group` is the tune that a clip comes from. All clips of a tune lie on one side of the split, because a network
# that has heard a tune in training would recognise it in the test, and we would take memory for understanding.

# %%
display(mels.clips[["clip_id", "start", "frames", "label", "group", "split", "family", "metre"]].head(4))
first = mels.frames(0)
seconds = mels.mel.seconds(len(first))
print(f"clip 0: {type(first).__name__} {first.shape} {first.dtype}; seconds: {seconds:.2f}")

# %% [markdown]
# Two seconds of each class, as picture and as sound. All families of instruments play all classes, so don't listen
# for the instrument; listen for how the notes follow each other.

# %%
examples = mels.clips.index[~mels.clips["label"].duplicated()]  # the first clip of each class
pictures = [(mels.clips["label"][i], mels.frames(i)[300:500].astype(np.float32)) for i in examples]
fig = plots.panels(pictures, columns=4, height=2.3)

# %%
gap, pieces = np.zeros(4_000, np.float32), []
for i in examples:
    pieces += [audio.load_audio(corpus.root / mels.clips["path"][i])[48_000:80_000], gap]
print("two seconds each:", ", ".join(mels.clips["label"][examples]))
display(plots.player(np.concatenate(pieces)))

# %% [markdown]
# ### Does float16 hurt?
#
# Half the bytes of float32 for a rounding error. Most log-mel values lie between −11.5 and 5, where float16 numbers
# are at most 1/128 apart: rounding moves a value by at most half of that, 0.0039, or 0.034 dB. Measured on a few
# clips:

# %%
errors = []
for i in range(0, len(mels), len(mels) // 8):
    exact = audio.log_mel(audio.load_audio(corpus.root / mels.clips["path"][i]))
    errors.append(np.abs(mels.frames(i).astype(np.float32) - exact).ravel())
errors = np.concatenate(errors)
decibel = 20 / np.log(10)  # dB per unit of natural logarithm
print(f"largest error {errors.max():.4f} ({errors.max() * decibel:.3f} dB), mean {errors.mean():.4f}")
assert errors.max() < 0.004

# %% [markdown]
# A person notices a change of level from about 1 dB. This is safe.
#
# ## What a store refuses
#
# Real folders hold broken files. One silent clip teaches a network that all silent clips are alike, and one NaN
# ruins a training for good. The store decodes everything once, so this is the place to look. We make a folder with
# one good file and four bad ones, and build a store of it.

# %%
with tempfile.TemporaryDirectory() as folder:
    sounds = Path(folder) / "sounds"
    sounds.mkdir()
    soundfile.write(sounds / "good.wav", wave, 16_000)
    soundfile.write(sounds / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(sounds / "ten_milliseconds.wav", wave[:160], 16_000)
    soundfile.write(
        sounds / "not_a_number.wav", np.where(np.arange(16_000) == 99, np.nan, 0.1), 16_000, subtype="FLOAT"
    )
    (sounds / "letter.mp3").write_text("Dear listener, this is text with the wrong name.")
    small = store.build(corpora.load(sounds), Path(folder) / "small.store", jobs=1, progress=False)
    print(f"{len(small)} clip in the store: {small.clips['clip_id'].tolist()}")
    display(small.quarantine)
print(f"of the demo corpus, {len(mels.quarantine)} clips are in quarantine")

# %% [markdown]
# A clip is refused if it can't be decoded, is shorter than 0.1 s, never gets louder than −80 dBFS, or holds NaN or
# infinite samples. (A decoder may print warnings of its own before it gives up.) The build goes on with the other
# clips. Each refused clip has a line in `quarantine.csv`.
#
# ## Recap
# You can now
# - say what a frame, a spectrum, a mel band and a log-mel spectrogram are, with shapes and units: 25 ms under a window, how
#   much of each frequency is in it, 64 bands that gather 513 frequencies as the ear does, `[frames, 64]`, a hundred per second;
# - compute a log-mel spectrogram by hand, and check it against the library's: equal to a thousandth;
# - choose window, hop, FFT length, bands, range and floor, knowing by eye and ear what each costs: the window trades pitch
#   against time, the hop costs work, zeros add nothing, the floor decides what counts as silence;
# - turn a folder of recordings into a store, know its size and its rounding error, and read what it refused.
#
# **Next**, [notebook 2](02_segment_pairs.ipynb): a task made out of these frames, without a single label.

# %% [markdown]
# ## Exercises
#
# Replace `raise NotImplementedError` and run the cell below it. The lesson doesn't depend on it.
#
# ### 1.1 How many frames? · easy · 5 minutes
# How many log-mel frames has a sound of so many samples?


# %%
def count_frames(samples: int, config: MelConfig) -> int:
    """Number of frames of `audio.log_mel` for a waveform of `samples` samples."""
    raise NotImplementedError


# %%
def check_1(answer):
    assert answer(16_000, config) == 101, (
        "A second has 101 frames, not 100: one is centred on its very first sample."
    )
    for samples, c in ((15_999, config), (160, config), (159, config), (48_000, replace(config, hop=200))):
        expected = len(audio.log_mel(np.ones(samples, np.float32), c))
        assert answer(samples, c) == expected, f"{samples} samples at hop {c.hop} have {expected} frames."


course.check_exercise(check_1, count_frames)

# %% [markdown]
# <details><summary>Hint 1</summary>Frame t is centred on sample t · hop. Which is the last t that still lies in the
# sound?</details>
# <details><summary>Hint 2</summary>Neither the window nor the FFT length matters, because the sound is padded by
# half of it on both sides.</details>
# <details><summary>Solution</summary>
#
# ```python
# def count_frames(samples: int, config: MelConfig) -> int:
#     return 1 + samples // config.hop
# ```
# </details>
#
# ### 1.2 A window for two tones · medium · 10 minutes
# Two flutes play 440 Hz and 440 + `gap` Hz. How long must a Hann window be, in samples, to show two peaks? Give a
# length that surely suffices, but not more than one and a half times of what is needed.


# %%
def window_for(gap: float, sample_rate: int) -> int:
    """Length in samples of a Hann window that shows two equally loud tones, `gap` Hz apart, as two peaks."""
    raise NotImplementedError


# %%
def depth(gap: float, window: int, sample_rate: int) -> float:
    """How deep the spectrum falls between the two tones: 0 is not at all, 1 is to nothing."""
    n = np.arange(window) - window / 2
    tone = [np.hanning(window) @ np.exp(2j * np.pi * n * (at / sample_rate)) for at in (0, gap / 2, gap)]
    peak = abs(tone[0]) + abs(tone[2])  # of both tones, at one of them
    middle = 2 * abs(tone[1])  # of both tones, half-way between them
    return 1 - middle / peak


def check_2(answer):
    for gap, rate in ((80.0, 16_000), (20.0, 16_000), (80.0, 48_000)):
        window = answer(gap, rate)
        assert depth(gap, window, rate) > 0.05, (
            f"{window} samples blur tones {gap:g} Hz apart at {rate} Hz: longer."
        )
        assert window <= 3.1 * rate / gap, (
            f"{window} samples for {gap:g} Hz at {rate} Hz are more than needed: shorter."
        )


course.check_exercise(check_2, window_for)

# %% [markdown]
# <details><summary>Hint 1</summary>A tone under a Hann window is no line but a hill. Its width in Hz is inversely
# proportional to the window's length.</details>
# <details><summary>Hint 2</summary>The hill falls to zero 2 · sample_rate / window away from its top, on either
# side.</details>
# <details><summary>Hint 3</summary>If the top of one hill stands where the other has fallen to zero, the valley
# between them shows just barely; give it a little more.</details>
# <details><summary>Solution</summary>
#
# ```python
# def window_for(gap: float, sample_rate: int) -> int:
#     return int(np.ceil(2.5 * sample_rate / gap))
# ```
# Our own 400 samples therefore part tones from about 100 Hz apart. Two low notes a semitone apart are a few hertz
# apart: the encoder knows them only by their harmonics and by how they beat against each other.
# </details>
#
# ### 1.3 One triangle of the filterbank · hard · 15 minutes
# Write mel band number `i` as weights over the frequencies of the FFT. You get the mel scale as
# `librosa.mel_frequencies(n, fmin=…, fmax=…)`, n frequencies in Hz evenly spaced in mel.


# %%
def mel_band(i: int, config: MelConfig) -> np.ndarray:
    """Weights [n_fft/2 + 1] of mel band `i`: a triangle, scaled to an area of 1 (Slaney)."""
    raise NotImplementedError


# %%
def check_3(answer):
    for c in (config, replace(config, n_mels=20, fmin=0.0, fmax=4000.0)):
        for i in (0, 7, 19):
            mine, theirs = answer(i, c), audio.mel_filters(c)[i]
            assert mine.shape == theirs.shape, (
                f"The shape is {mine.shape}; one weight for each of {theirs.shape[0]} points."
            )
            assert (mine >= 0).all(), "A weight is negative: outside the triangle it is 0."
            assert mine.argmax() == theirs.argmax(), (
                f"Band {i} has its peak elsewhere: n_mels bands need n_mels + 2 edges."
            )
            assert np.allclose(mine / mine.max(), theirs / theirs.max(), atol=1e-4), (
                f"Band {i} is no straight triangle."
            )
            assert np.allclose(mine, theirs, rtol=1e-3, atol=1e-6), (
                "The area is not 1: a triangle's is width times height / 2."
            )


course.check_exercise(check_3, mel_band)

# %% [markdown]
# <details><summary>Hint 1</summary>n_mels triangles overlap by half: band i rises from edge i to edge i + 1 and
# falls to edge i + 2. So you need n_mels + 2 edges.</details>
# <details><summary>Hint 2</summary>Write both slopes as straight lines over all frequencies. The triangle is the
# lower of the two, but never under 0.</details>
# <details><summary>Hint 3</summary>With a peak of 1 its area is (right − left) / 2; divide by that.</details>
# <details><summary>Solution</summary>
#
# ```python
# def mel_band(i: int, config: MelConfig) -> np.ndarray:
#     left, centre, right = librosa.mel_frequencies(config.n_mels + 2, fmin=config.fmin, fmax=config.fmax)[i : i + 3]
#     hertz = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)
#     up, down = (hertz - left) / (centre - left), (right - hertz) / (right - centre)
#     return np.maximum(0, np.minimum(up, down)) * 2 / (right - left)
# ```
# </details>
