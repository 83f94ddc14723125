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
# You hear which sounds an encoder finds alike, although it learned without labels. You follow one tune from air
# pressure to the picture that a neural network gets, and listen after every step to what is still there. Then you put
# a whole corpus on disk in that form. The method of this course is **COLA**
# ([2010.10915](https://arxiv.org/abs/2010.10915)),
# a way to train an encoder without labels; **colalib** is the course's package.
#
# **Run time** about a minute on 2 cores. The very first run also renders the demo corpus, once, in two minutes.
#
# You will be able to
# - say what a frame, a spectrum, a mel band and a log-mel spectrogram are, with shapes and units;
# - write the framing and the mel bands yourself, and check the log-mel spectrogram made of them against the library's;
# - choose window, hop, FFT length, bands, range and floor, knowing by eye and ear what each costs;
# - turn a folder of recordings into a store, know its size and its rounding error, and read what it refused.
#
# ## Before you begin
#
# **What you need to know.** Python functions, NumPy arrays and their shapes, the logarithm, and what a mean and a
# standard deviation are. From notebook 2 on also a little PyTorch: tensors, a module, a loss. You need no signal
# processing and no music theory. Headphones help.
#
# **How an exercise works.** You replace `raise NotImplementedError` by your code, and run the cell and the check below
# it. If your function passes, the lesson uses it from there on. If not, the lesson goes on with colalib's. An exercise
# marked *core* has an idea that later cells need; one marked *worth it* can be left out. Hints and
# a solution are folded below. A box that says *Guess first* asks you what the next figure will show. At the end of notebook
# 8 is a glossary of all terms.
#
# **The course**, with the time that each notebook computes on 2 cores, in the usual size (the profile `quick`). The
# hours are our estimate for reading, listening and guessing, without and with all exercises. Nobody has measured them.
#
# | notebook | its question | computes | without exercises | with |
# |---|---|---|---|---|
# | 1 Sound to mel | What does the network get to hear? | 1 min | ¾ h | 1½ h |
# | [2 Segment pairs](02_segment_pairs.ipynb) | What can be learned from without a label? | 1 min | ¾ h | 2 h |
# | [3 Contrastive pre-training](03_contrastive_pretraining.ipynb) | How does an encoder learn from pairs? | 5 min | 1 h | 2½ h |
# | [4 Fine-tuning](04_fine_tuning.ipynb) | What is the encoder worth when there are labels? | 4 min | ¾ h | 1½ h |
# | [5 Evaluation](05_evaluation.ipynb) | What is the encoder worth, by which reading of it? | 6 min | ¾ h | 1 h |
# | [6 What a result can show](06_what_a_result_shows.ipynb) | Which differences are real? | 1 min | ¾ h | 2 h |
# | [7 Embedding map](07_embedding_map.ipynb) | What lies next to what? | 2 min | ¾ h | 2¼ h |
# | [8 Scaling up](08_scaling_up.ipynb) | What does a larger project cost? | 2 min | ¾ h | 1½ h |
#
# So the whole course is about 6 hours of reading, or 14 hours with everything.

# %%
import time
from dataclasses import replace

import librosa
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

from colalib import course, evaluation, widgets
from colalib.data import audio, corpora, store
from colalib.data.audio import MelConfig
from colalib.evaluation import plots
from colalib.training.runs import open_run

plots.style()
profile = course.profile()
print(f"profile {profile.name}: {profile.clips_per_class} clips of each of 8 kinds of music")

# %% [markdown]
# A **profile** says how much of everything the course does: how many clips, how long a training. Yours is printed above.
# The variable `COLA_PROFILE` picks another: `test` is tiny, `quick` is usual, `full` takes hours.
#
# ## Where this leads
#
# The demo corpus holds eight **kinds** of music, rendered on your own machine from real scores and sampled instruments.
# A tune comes in several **takes**: instruments, tempo and key are drawn anew for each.
# `corpus.clips` is a table with one row per clip. Its column `label` is the kind, `group` is the tune, and `family`
# is the family of instruments. These are the kinds:
#
# | kind | what you hear |
# |---|---|
# | chorale | hymns by J. S. Bach: four voices that move together, phrase by phrase |
# | trecento | Italian polyphony of the 14th and early 15th century: two to four voices, each with a melody of its own |
# | quartet | string quartets by Haydn, Mozart, Beethoven and Schumann: four voices, ever changing |
# | air | slow song tunes from Ireland |
# | jig, slip-jig | fast dances whose notes run in threes: two threes in each bar of a jig, three in a slip-jig |
# | reel | fast dances whose notes run evenly in twos |
# | hornpipe | dances in twos too, but slower, and with a long and a short note in turn |
#
# Two of them, to begin with:

# %%
corpus, mels = course.corpus(), course.store()


def play(row: int, words: str) -> None:
    """Say what a clip is, and show a player of its first five seconds."""
    clip = mels.clips.iloc[row]
    print(f"{words}: {clip['title']} ({clip['label']}, {clip['family']})")
    display(plots.player(audio.load_audio(corpus.root / clip["path"])[: 5 * 16_000]))


for kind in ("chorale", "reel"):
    play(np.flatnonzero((mels.clips["label"] == kind) & (mels.clips["split"] == "train"))[0], "hear")

# %% [markdown]
# With the course comes an **encoder**: a network that turns a clip into a row of numbers, its features. It has listened
# to such music and to other recordings, and nobody told it of any kind, composer or tune. We take its features as they
# are, and ask which other clip is most like a given one. Takes of the same tune are left out.
#
# Each clip is one take, and the tunes are divided into three **splits**: to train on, to look and choose with
# (**validation**), and to test with at the very end. We ask with the clips of the validation split. The test clips stay
# closed until notebook 5. You need not understand the code of the next cells yet: run them, and listen.

# %%
widgets.guess(
    "1-neighbours",
    "There are eight kinds, so a random clip is of the same kind in about 12.5% of the cases. "
    "How often is the clip that the encoder finds most alike of the same kind?",
    {
        "about as often, 12.5%": "That is what you would get if its features had nothing to do with the kind.",
        "much more often, but far from always": "It was never told the kinds, yet much of what makes a kind is "
        "in its features. So are other things, such as the instruments, and these lead it astray.",
        "nearly always": "Its task was never to tell kinds apart. It had to recognise recordings.",
    },
    "much more often, but far from always",
)

# %%
# features are computed once, in half a minute; later runs load them from this folder
keep = course.runs() / "supervised" / "features"
features = evaluation.feature_source("default").of_store(mels, keep)  # [clips, d]
rows = np.flatnonzero(mels.clips["split"] != "test")
near = rows[evaluation.neighbours(features[rows], mels.clips["group"].values[rows], k=1)[:, 0]]
nearest = dict(zip(rows, near))
asked = np.flatnonzero(mels.clips["split"] == "valid")
for i in np.random.default_rng(0).choice(asked, 2, replace=False):
    play(i, "asked for")
    play(nearest[i], "found")

# %%
labels = mels.clips["label"].values
same = np.mean([labels[nearest[i]] == labels[i] for i in asked])
print(f"{100 * same:.0f}% of {len(asked)} validation clips find one of their own kind")
print(f"by chance it would be about {100 / len(set(labels)):.1f}%")
heard = sum(clip_id in open_run("default").seen_clip_ids for clip_id in mels.ids[asked])
print(f"{heard} of these clips were among what the encoder listened to, without their labels")

# %% [markdown]
# The last line says why this number proves little: the encoder may know these recordings. Notebook 5 asks it about
# tunes that it has never heard. How can a network learn this without labels, and how can you check that it did? That is
# this course. It begins with what the network is given to hear.
#
# ## A recording is a row of numbers
#
# We take a reel with a drum kit, because it has both things that a spectrogram must show: tones that last, and
# strokes that don't.

# %%
reels = corpus.clips.query("label == 'reel' and drums == 'kit' and family == 'keyboard' and split == 'train'")
clip = reels.iloc[0]
wave = audio.load_audio(corpus.root / clip["path"])[: 4 * 16_000]  # the first four seconds
print(f"{clip['title']} ({clip['label']}, {clip['family']})")
print(f"{wave.shape[0]} samples, {wave.dtype}, 16,000 per second")
display(plots.player(wave))

# %% [markdown]
# `load_audio` decoded the file, mixed it to mono and resampled it to 16 kHz. A sample is the air pressure at one
# moment, scaled to ±1. Sixteen thousand samples per second can carry frequencies up to 8 kHz, half the rate. The
# highest note of a piano lies near 4.2 kHz, and speech stays easy to understand. What is lost is brilliance: the
# highest overtones, and the upper half of a cymbal's sound.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 2.8), width_ratios=[2, 1], sharey=True)
plots.waveform(wave, ax=axes[0], title="4 seconds")
start = 22_400  # 1.4 s: a note that lasts
zoom = plots.waveform(wave[start : start + 800], ax=axes[1], title="50 ms of it", lw=1.2)
_ = zoom.set(ylabel="")

# %% [markdown]
# On the left you see strokes, but no pitch; on the right you see a period, but no tune. Hearing sits in between:
# pitch *over* time. That is what a short-time spectrum shows.
#
# ## The short-time Fourier transform
#
# Cut the sound into **frames** of 25 ms, one every 10 ms. Let each frame fade in and out under a **Hann window**,
# because a frame that is cut off abruptly spreads every tone over the whole spectrum. Then take its Fourier
# transform (by the *fast Fourier transform*, **FFT**): the **spectrum**, a number for each frequency. Look at the
# magnitudes of one frame first, with the
# window and without. Their axis is in **decibels** (dB), which count ratios: 20 dB more is ten times the amplitude,
# and 40 dB more is a hundred times.

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
# An instrument's tone sounds at one frequency and at its multiples, the **harmonics** (or overtones): these are the
# peaks. Between them the windowed spectrum falls deeper. What filled the gaps before was not in the music, but in the
# cut. Now all frames.
#
# ### Your turn: frames_of · easy · 10 minutes · core
# Cut a waveform into frames of `n_fft` samples, one every `hop` samples. `n_fft` is the length of the Fourier
# transform, 1,024 samples here. We look at 25 ms (400 samples) only: the longer piece has the same centre, and the window
# is zero outside its 400 samples. *FFT length* below says what the
# rest is for.
#
# Frame t has sample t · hop as its centre. The first and the last frames stick out of the sound: fill with zeros. Take
# every t for which t · hop is at most the number of samples.


# %%
def frames_of(wave: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """Waveform [samples] → frames [1 + samples // hop, n_fft], frame t centred on sample t · hop (n_fft is even)."""
    raise NotImplementedError


# %%
def frames_by_stride(wave: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    padded = np.pad(wave, n_fft // 2)
    return np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]


# %%
def check_frames(answer):
    ramp = np.arange(1.0, 101.0)  # sample i is i + 1, so that no sample is zero
    cut = answer(ramp, 8, 5)
    assert np.ndim(cut) == 2 and cut.shape[1] == 8, f"the shape is {np.shape(cut)}, not [frames, n_fft]"
    assert np.array_equal(cut[4], ramp[16:24]), (
        "frame 4 at hop 5 should hold samples 16 to 23: 20 is its centre"
    )
    assert np.array_equal(cut[0], [0, 0, 0, 0, 1, 2, 3, 4]), "frame 0 should begin with n_fft / 2 zeros"
    assert len(cut) == 21, f"100 samples at hop 5 have 21 frames, not {len(cut)}"
    for n_fft, hop, samples in ((8, 3, 100), (16, 7, 41), (6, 10, 55)):
        same = np.array_equal(
            answer(ramp[:samples], n_fft, hop), frames_by_stride(ramp[:samples], n_fft, hop)
        )
        assert same, f"other frames than expected at n_fft {n_fft}, hop {hop}, {samples} samples"


frames_of = course.exercise(frames_of, check_frames, instead=frames_by_stride)

# %% [markdown]
# <details><summary>Hint 1</summary>Put n_fft / 2 zeros on either side of the sound first: <code>np.pad</code>. Then
# frame t simply begins at sample t · hop of what you have.</details>
# <details><summary>Hint 2</summary>Make a list of slices, one for each t from 0 to samples // hop, and
# <code>np.stack</code> them.</details>
# <details><summary>Hint 3</summary>Without a loop: <code>np.lib.stride_tricks.sliding_window_view(padded,
# n_fft)</code> holds the frames at every hop of 1. Take every hop-th.</details>
# <details><summary>Solution</summary>
#
# ```python
# def frames_of(wave: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
#     padded = np.pad(wave, n_fft // 2)
#     return np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
# ```
# </details>
#
# The short-time Fourier transform is your frames, the window, and one call of the FFT. The window of 400 samples
# stands in the middle of the 1,024 samples of a frame.

# %%
centred = np.pad(hann, (config.n_fft - config.window) // 2)  # [1024]
frames = frames_of(wave, config.n_fft, config.hop)  # [frames, n_fft]
spectrum = np.fft.rfft(frames * centred)  # complex [frames, n_fft/2 + 1]
magnitude = np.abs(spectrum)
print(f"waveform {wave.shape} → frames {frames.shape} → spectrum {spectrum.shape}")

# %% [markdown]
# A complex number has a magnitude and a phase. The magnitude says how much of a frequency there is. The phase says
# where in its period it stands, and it changes quickly from frame to frame. COLA drops the phases, as many models do.
# Others keep them: wav2vec 2.0, HuBERT and CLMR read the waveform itself.
#
# What is lost without phases? Listen: this sound was rebuilt from the magnitudes alone. Its phases were guessed by
# the Griffin-Lim algorithm, which seeks phases that fit from one overlapping frame to the next.

# %%
sizes = {"hop_length": config.hop, "win_length": config.window, "n_fft": config.n_fft}
rebuilt = librosa.griffinlim(magnitude.T, n_iter=32, random_state=0, **sizes)
print("magnitudes of the spectrum, phases guessed:")
display(plots.player(rebuilt))

# %% [markdown]
# ## Mel bands
#
# We hear the step from 1,000 to 2,000 Hz as an octave, twelve semitones (neighbouring keys of a piano). The step from 5,000
# to 6,000 Hz is also 1,000 Hz wide, but only three semitones. The **mel scale** spaces frequencies roughly as the ear
# compares their pitch: evenly up to about 1 kHz, then ever more widely. A **mel band** is a
# triangle over the frequencies, and says how much each of them counts. 64 triangles of equal width on the mel scale
# turn 513 frequencies into 64 bands.
#
# Two choices hide in this. *Which mel scale:* ours is Slaney's, even up to 1 kHz and logarithmic above; the older one
# is called HTK. *Which height:* ours have an area of 1, so a wide band does not count more. Both are librosa's
# defaults. COLA's published code uses the HTK scale and triangles with a peak of 1, as TensorFlow does. And bands are
# filled with magnitudes, as in COLA, not with their squares, the power.
#
# ### Your turn: mel_band · medium · 15 minutes · core
# Write band number `i` as weights over the frequencies of the FFT. `librosa.mel_frequencies(n, fmin=…, fmax=…)` gives
# you n frequencies in Hz, evenly spaced on the mel scale. Take n_mels + 2 of them, from fmin to fmax, as edges: band i
# rises from edge i to edge i + 1 and falls to edge i + 2. Its area, width in Hz times height / 2, is 1.


# %%
def mel_band(i: int, config: MelConfig) -> np.ndarray:
    """Weights [n_fft/2 + 1] of mel band `i`: a triangle, scaled to an area of 1 (Slaney)."""
    raise NotImplementedError


# %%
def band_of_colalib(i: int, config: MelConfig) -> np.ndarray:
    return audio.mel_filters(config)[i]


def check_band(answer):
    for c in (config, replace(config, n_mels=20, fmin=0.0, fmax=4000.0)):
        for i in (0, 7, 19):
            mine, theirs = answer(i, c), audio.mel_filters(c)[i]
            points = f"the shape is {mine.shape}: one weight for each of {theirs.shape[0]} frequencies"
            assert mine.shape == theirs.shape, points
            assert (mine >= 0).all(), "a weight is negative: outside the triangle it is 0"
            peak = f"band {i} has its peak elsewhere: n_mels bands need n_mels + 2 edges"
            assert mine.argmax() == theirs.argmax(), peak
            straight = np.allclose(mine / mine.max(), theirs / theirs.max(), atol=1e-4)
            assert straight, f"band {i} is not a straight triangle between its three edges"
            area = "the area is not 1: a triangle's is width times height / 2, with the width in Hz"
            assert np.allclose(mine, theirs, rtol=1e-4, atol=1e-6), area


mel_band = course.exercise(mel_band, check_band, instead=band_of_colalib)

# %% [markdown]
# <details><summary>Hint 1</summary>Write both slopes as straight lines over all frequencies. The triangle is the
# lower of the two, but never under 0.</details>
# <details><summary>Hint 2</summary>With a peak of 1 its area is (right − left) / 2; divide by that.</details>
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
#
# All 64 bands, and the lowest of them from near: neighbours overlap by half, so no frequency falls between two bands.

# %%
filters = np.stack([mel_band(i, config) for i in range(config.n_mels)])  # [64, 513]
fig, axes = plt.subplots(1, 2, figsize=(10, 2.6), width_ratios=[1.8, 1], sharey=True)
for ax, bands, marker in ((axes[0], range(64), ""), (axes[1], range(8), ".")):
    for i in bands:
        ax.plot(hertz, filters[i] / filters[i].max(), marker, ls="-", color=plots.PALETTE[i % 2], lw=1)
    ax.set(xlabel="frequency (Hz)")
axes[0].set(ylabel="weight", xlim=(0, 8000), title="64 mel bands, each scaled to a peak of 1")
_ = axes[1].set(xlim=(0, 500), title="the lowest 8; a dot is a point of the FFT")

# %%
mel = magnitude @ filters.T  # [frames, 64]
per_sample = mel.size / len(wave)
print(f"{magnitude.shape[1]} frequencies → {mel.shape[1]} bands: {per_sample:.2f} numbers per sample")

fig, axes = plt.subplots(1, 2, figsize=(10, 3))
axes[0].imshow(magnitude.T, origin="lower", aspect="auto", extent=(0, 4, 0, 8000))
axes[0].set(xlabel="time (s)", ylabel="frequency (Hz)", title="magnitudes of the spectrum")
_ = plots.spectrogram(mel, config, ax=axes[1], title="the same in mel bands")

# %% [markdown]
# ## The logarithm
#
# Both pictures are nearly black, though you heard everything. Loudness is like pitch: the ear compares by ratios, not by
# differences. A few numbers are large and the rest is crowded near zero. The logarithm spreads them.
# A **floor** keeps it finite where there is silence. The result is the **log-mel spectrogram**.

# %%
widgets.guess(
    "1-gain",
    "The same sound, ten times larger in amplitude (20 dB louder). What happens to its log-mel values?",
    {
        "each is multiplied by 10": "That happens to the magnitudes. Their logarithm does something simpler.",
        "each grows by about 2.3": "The logarithm of a product is a sum: ln(10 x) = ln x + ln 10, and ln 10 is 2.3. "
        "Only values at the floor behave otherwise.",
        "each grows by 20": "That would be so if we measured in decibels. Ours is the natural logarithm.",
    },
    "each grows by about 2.3",
)

# %%
log_mel = np.log(np.maximum(mel, config.floor))  # [frames, 64]

fig, axes = plt.subplots(1, 3, figsize=(10, 3), width_ratios=[1, 1, 2.2])
for ax, values, name in ((axes[0], mel, "mel magnitude"), (axes[1], log_mel, "ln of it")):
    ax.hist(values.ravel(), bins=60, color=plots.PALETTE[0], lw=0)
    ax.set(xlabel=name, ylabel="how many" if ax is axes[0] else "")
plots.spectrogram(log_mel, config, ax=axes[2], title="log-mel spectrogram")
_ = fig.colorbar(axes[2].images[0], ax=axes[2], label="ln magnitude", pad=0.01)

# %% [markdown]
# Now the picture shows what you heard: horizontal lines are tones, vertical ones are strokes, and how they follow each
# other is the rhythm. This is what the encoder gets, and nothing else.
#
# ### Your turn: shift_of_gain · easy · 5 minutes · worth it
# A gain is usually given in decibels: +20 dB is a factor of 10 in amplitude, −20 dB a factor of 1/10, 0 dB is no
# change. By how much does a gain of `db` decibels shift every log-mel value?


# %%
def shift_of_gain(db: float) -> float:
    """What a gain of `db` decibels adds to each log-mel value (natural logarithm of magnitudes)."""
    raise NotImplementedError


# %%
def natural_units(db: float) -> float:
    return db * np.log(10) / 20


def check_shift(answer):
    assert np.isclose(answer(0.0), 0), "0 dB changes nothing"
    louder = answer(20.0)
    assert louder > 0, "a positive gain makes the values larger"
    assert not np.isclose(louder, 1), "20 dB gives 1: that is log10; ours is the natural logarithm"
    twice = "20 dB gives 4.6: that is for power, and our bands hold magnitudes"
    assert not np.isclose(louder, 2 * np.log(10)), twice
    for db in (20.0, 6.0, -12.0):
        shifted = audio.log_mel(wave * np.float32(10 ** (db / 20)))
        moved = np.median(shifted - audio.log_mel(wave))
        assert np.isclose(answer(db), moved, atol=1e-3), f"{db:g} dB shift the values by {moved:.3f}"


shift_of_gain = course.exercise(shift_of_gain, check_shift, instead=natural_units)
print(f"one decibel is {shift_of_gain(1):.3f} units of the natural logarithm")

# %% [markdown]
# <details><summary>Hint 1</summary>A gain of db decibels multiplies every sample by 10 ** (db / 20). What does that do
# to the magnitudes, and to their logarithm?</details>
# <details><summary>Hint 2</summary>ln(g · m) = ln m + ln g.</details>
# <details><summary>Solution</summary>
#
# ```python
# def shift_of_gain(db: float) -> float:
#     return db * np.log(10) / 20
# ```
# </details>
#
# So loudness is only a number added to the whole picture. In notebook 2 that will make it easy to take away.
#
# `audio.resynthesise` goes the way back from the picture as far as one can: mel bands are spread to frequencies, and
# phases are guessed. Listen to what the picture has kept. Detail that the log-mel spectrogram loses is lost for the
# encoder too. But not all that you miss here is lost: the roughness comes from the guessed phases and from the
# spreading, and the encoder has to do neither.

# %%
print("from 64 mel bands:")
display(plots.player(audio.resynthesise(log_mel, config)))

# %% [markdown]
# ## By hand, in one piece
#
# Here are the steps from above, gathered, with your functions where they passed. The course uses `audio.log_mel` of
# `colalib.data`. It does the same in blocks, so that an hour of sound doesn't fill the memory. The two must agree.


# %%
def log_mel_by_hand(wave: np.ndarray, config: MelConfig = MelConfig()) -> np.ndarray:
    """Waveform [samples] → natural-log mel magnitudes [frames, n_mels]."""
    window = np.pad(
        librosa.filters.get_window("hann", config.window), (config.n_fft - config.window) // 2
    )  # [n_fft]
    frames = frames_of(wave, config.n_fft, config.hop)  # [frames, n_fft]
    magnitude = np.abs(np.fft.rfft(frames * window))  # [frames, n_fft/2 + 1]
    bands = np.stack([mel_band(i, config) for i in range(config.n_mels)])  # [n_mels, n_fft/2 + 1]
    return np.log(np.maximum(magnitude @ bands.T, config.floor))


difference = np.abs(log_mel_by_hand(wave) - audio.log_mel(wave)).max()
assert difference < 1e-3, difference
print(f"largest difference between by hand and library: {difference:.1e}")
print(f"in decibels: {difference / shift_of_gain(1):.3f}; a person notices about 1")

# %% [markdown]
# ## What every parameter does
#
# The settings are those of COLA, of its paper (Saeed et al., [arXiv 2010.10915](https://arxiv.org/abs/2010.10915)) and
# its published code: 64 bands from 60 to 7,800 Hz, 25 ms windows every 10 ms, an FFT of 1,024 samples, a floor of 1e-5.
# Change one at a time, and see what it does.
#
# **Window.** A long window separates close tones; a short one separates close moments. You can't have both. How
# far apart must two tones be to show as two peaks? Exercise 1.2 is about this.

# %%
widgets.guess(
    "1-window",
    "One second of the reel under windows of 5, 25 and 100 ms. Which one draws the drum strokes sharpest, and which the "
    "lines of the tones thinnest?",
    {
        "5 ms draws both sharpest": "A short window tells well when something sounds, but not at which frequency.",
        "5 ms the strokes, 100 ms the tones": "Sharp in time is blurred in frequency, and the other way round.",
        "100 ms draws both sharpest": "Within a frame of 100 ms nothing says when the stroke came: it is smeared.",
    },
    "5 ms the strokes, 100 ms the tones",
)

# %%
part = wave[16_000:32_000]  # one second


def turned(names_and_changes: list[tuple[str, dict]]) -> list[tuple]:
    """(title, frames, config) of one second of the clip under changed settings."""
    configs = [(name, replace(config, **change)) for name, change in names_and_changes]
    return [(name, audio.log_mel(part, c), c) for name, c in configs]


sizes = (("window 5 ms", 80, 1024), ("25 ms (ours)", 400, 1024), ("100 ms", 1600, 2048))
# a frame every 2.5 ms, so that the shortest window misses nothing; the longest one needs a longer FFT
pictures = turned([(name, {"window": window, "n_fft": n_fft, "hop": 40}) for name, window, n_fft in sizes])
# a longer window sums more samples: divided by the length, a lasting tone is equally bright in all three
_ = plots.panels([(name, frames - np.log(c.window / config.window), c) for name, frames, c in pictures])

# %% [markdown]
# With 5 ms a stroke is as thin as a hair, but neighbouring tones run together. With 100 ms the tones are thin lines, and
# each stroke is a broad column.
#
# **Hop.** How often a frame is taken. At a hop of half a window, 12.5 ms, every sample already lies well inside some
# frame. Ours, 10 ms, is a little shorter. A hop of 2.5 ms takes four times as many frames that say much the same. It also
# costs four times as much: the encoder's work grows with the number of frames.

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
# and leaves most of the tune. See it, then hear it.

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
# shows what nobody hears. Here the tune stops after half a second. What follows is noise at −120 dB, quieter than the
# rounding noise of a CD. A very low floor still paints it as a texture, and the encoder would get that as input.

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
# The same parameters as sliders. The re-synthesis has nothing but the picture to go by, and its phases are guessed.
# So it sounds rougher than what the encoder gets. With how few bands can you still recognise a jig? And what does
# a long hop do to a drum?

# %% tags=["widget"]
kinds = corpus.clips.query("split == 'train'").drop_duplicates("label").sort_values("label")
widgets.mel_laboratory({kind: corpus.root / path for kind, path in zip(kinds["label"], kinds["path"])})

# %% [markdown]
# ## A whole corpus, ready to train on
#
# Training asks for thousands of random one-second pieces per minute. Decoding a file for each of them would keep the
# processor busy with the wrong thing. So we do this once: `store.build` writes the log-mel frames of all clips to
# disk, as **float16**: numbers of two bytes. Such a folder is a **store**. It is opened by **memory map**, which reads
# only what is asked for. `course.store()`, above, built one for the demo corpus.

# %%
widgets.guess(
    "1-size",
    "An hour of sound as 16-bit samples at 16 kHz takes 115 MB. How much do its log-mel frames take, as float16?",
    {
        "about 5 MB": "A usual MP3 file of this length is larger than that. Count: 100 frames per second, 64 bands, 2 bytes.",
        "about 46 MB": "100 frames × 64 bands × 2 bytes × 3,600 seconds: 0.4 numbers per sample, of equal size.",
        "about 115 MB": "A number has 2 bytes in both. But there are 6,400 numbers per second instead of 16,000.",
        "about 460 MB": "Frames overlap, and yet there are fewer numbers: 64 bands for every 160 samples.",
    },
    "about 46 MB",
)

# %%
begun = time.perf_counter()
mels = course.store()
hours = mels.mel.seconds(mels.clips["frames"].sum()) / 3600
megabytes = sum(f.stat().st_size for f in mels.path.iterdir()) / 1e6
print(f"{len(mels)} clips, {hours:.2f} hours, {megabytes:.0f} MB: {megabytes / hours:.0f} MB per hour")
print(f"an hour as 16-bit sound: {16_000 * 2 * 3600 / 1e6:.0f} MB")
print(f"opened in {time.perf_counter() - begun:.1f} s")
counts = pd.crosstab(mels.clips["label"], mels.clips["split"], margins=True)
display(counts[["train", "valid", "test", "All"]])

# %% [markdown]
# All clips of a tune lie on one side of the split. Otherwise a network could recognise in the test a tune that it has
# heard in training, and we would take memory for understanding. `valid` is for choosing and for looking, as in this
# notebook. `test` is opened in notebook 5.

# %%
display(mels.clips[["clip_id", "start", "frames", "label", "group", "split", "family", "metre"]].head(4))
first = mels.frames(0)
seconds = mels.mel.seconds(len(first))
print(f"clip 0: {type(first).__name__} {first.shape} {first.dtype}; seconds: {seconds:.2f}")

# %% [markdown]
# Two seconds of a training clip of each kind, as picture and as sound. Every family of instruments plays every kind.
# So don't listen for the instrument; listen for how the notes follow each other.

# %%
training = mels.clips.query("split == 'train'")
examples = training.index[~training["label"].duplicated()]  # the first of each kind
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
# It takes half the bytes of float32, and costs a rounding error. Most log-mel values lie between −11.5 and 5. There
# float16 numbers are at most 1/128 apart. Rounding moves a value by at most half of that, 0.0039, or 0.034 dB.
# Measured on a few clips:

# %%
errors = []
for i in training.index[:: len(training) // 8]:
    exact = audio.log_mel(audio.load_audio(corpus.root / mels.clips["path"][i]))
    errors.append(np.abs(mels.frames(i).astype(np.float32) - exact).ravel())
errors = np.concatenate(errors)
decibels = errors.max() / shift_of_gain(1)
print(f"largest error {errors.max():.4f} ({decibels:.3f} dB), mean {errors.mean():.4f}")
assert errors.max() < 0.004

# %% [markdown]
# A person notices a change of level from about 1 dB. So the rounding is not heard.
#
# ## What a store refuses
#
# Real folders hold broken files. A silent clip has nothing that would tell it from another silent clip. A single NaN
# turns the loss into NaN, and then all weights. The store decodes everything once, so this is the place to look. We
# make a folder with one good file and four bad ones, and build a store of it.

# %%
import tempfile
from pathlib import Path

import soundfile

with tempfile.TemporaryDirectory() as folder:
    sounds = Path(folder) / "sounds"
    sounds.mkdir()
    soundfile.write(sounds / "good.wav", wave, 16_000)
    soundfile.write(sounds / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(sounds / "ten_milliseconds.wav", wave[:160], 16_000)
    broken = np.where(np.arange(16_000) == 99, np.nan, 0.1)
    soundfile.write(sounds / "not_a_number.wav", broken, 16_000, subtype="FLOAT")
    (sounds / "letter.mp3").write_text("Dear listener, this is text with the wrong name.")
    small = store.build(corpora.load(sounds), Path(folder) / "small.store", jobs=1, progress=False)
    print(f"{len(small)} clip in the store: {small.clips['clip_id'].tolist()}")
    with pd.option_context("display.max_colwidth", None):
        display(small.quarantine)
print(f"of the demo corpus, {len(mels.quarantine)} clips are in quarantine")

# %% [markdown]
# A clip is refused if it can't be decoded, is shorter than 0.1 s, holds NaN or infinite samples, or is silent: its largest
# sample lies under −80 dBFS, which is 80 dB below the full scale of ±1. (A decoder may print warnings of its own before it
# gives up.) The build goes on with the other clips. Each refused clip has a line in `quarantine.csv`.
#
# ## Recap
# You can now
# - say what a frame, a spectrum, a mel band and a log-mel spectrogram are, with shapes and units: 25 ms under a window, how
#   much of each frequency is in it, 64 bands that gather 513 frequencies roughly as the ear does, `[frames, 64]`, a hundred per second;
# - write the framing and the mel bands yourself, and check the log-mel spectrogram made of them against the library's: equal
#   to a thousandth;
# - choose window, hop, FFT length, bands, range and floor, knowing by eye and ear what each costs: the window trades pitch
#   against time, the hop costs work, zeros add nothing, the floor decides what counts as silence;
# - turn a folder of recordings into a store, know its size and its rounding error, and read what it refused.
#
# **Next**, [notebook 2](02_segment_pairs.ipynb): a task made out of these frames, without a single label.

# %% [markdown]
# ## Exercises
#
# Two more. The lesson doesn't depend on them.
#
# ### 1.1 How many frames? · easy · 5 minutes
# How many log-mel frames has a sound of so many samples? Give a formula; don't cut it into frames.


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


_ = course.exercise(count_frames, check_1)

# %% [markdown]
# <details><summary>Hint 1</summary>Frame t is centred on sample t · hop. Which is the last t for which t · hop is at
# most the number of samples?</details>
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
# length that shows a valley of at least 5% between them, but at most 3 · sample_rate / gap.


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


# %%
def check_2(answer):
    for gap, rate in ((80.0, 16_000), (20.0, 16_000), (80.0, 48_000)):
        window = answer(gap, rate)
        assert depth(gap, window, rate) > 0.05, (
            f"{window} samples blur tones {gap:g} Hz apart at {rate} Hz: longer."
        )
        assert window <= 3.1 * rate / gap, (
            f"{window} samples for {gap:g} Hz at {rate} Hz are more than needed: shorter."
        )


_ = course.exercise(window_for, check_2)

# %% [markdown]
# <details><summary>Hint 1</summary>A tone under a Hann window is no line but a hill. Its width in Hz is inversely
# proportional to the window's length.</details>
# <details><summary>Hint 2</summary>The hill falls to zero 2 · sample_rate / window away from its top, on either
# side.</details>
# <details><summary>Hint 3</summary>If the top of one hill stands where the other has fallen to zero, the two just merge
# into one flat top. Make the window a little longer, and a valley opens.</details>
# <details><summary>Solution</summary>
#
# ```python
# def window_for(gap: float, sample_rate: int) -> int:
#     return int(np.ceil(2.5 * sample_rate / gap))
# ```
# Our own 400 samples therefore separate tones from 85 to 100 Hz apart. Two low notes a semitone apart are only a few
# hertz apart: the picture separates them at most by their upper harmonics, and by how they beat against each other.
# </details>
