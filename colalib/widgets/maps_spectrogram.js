// The spectrogram of the chosen clip, computed in the page, with a playhead that follows the sound.
import { element } from "./maps_parts.js";

const RATE = 16_000, WINDOW = 1024, BANDS = 64, LOWEST = 60, HIGHEST = 7800; // Hz, samples: about the encoders' bands, windows for a picture
const RANGE = 70; // dB from the brightest to black
const COLUMNS = 1200; // of the picture
export const LARGEST = 2e7; // bytes of a sound that is fetched for it
export const TOO_LONG = "its sound is too long for a spectrogram";
const MAGMA = [[0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122], [229, 80, 100], [251, 135, 97], [254, 194, 135],
  [252, 253, 191]];

const COS = Float64Array.from({ length: WINDOW / 2 }, (_, k) => Math.cos((2 * Math.PI * k) / WINDOW));
const SIN = COS.map((_, k) => -Math.sin((2 * Math.PI * k) / WINDOW));

// The power at frequencies 0 … WINDOW / 2 of WINDOW samples, by a fast Fourier transform in place.
function power(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j]] = [re[j], re[i]];
  }
  for (let size = 2; size <= n; size <<= 1) {
    const half = size / 2;
    for (let k = 0; k < half; k++) {
      const cos = COS[(k * n) / size], sin = SIN[(k * n) / size];
      for (let a = k, b = k + half; a < n; a += size, b += size) {
        const r = re[b] * cos - im[b] * sin, i = re[b] * sin + im[b] * cos;
        (re[b] = re[a] - r), (im[b] = im[a] - i), (re[a] += r), (im[a] += i);
      }
    }
  }
  return re.map((value, i) => value * value + im[i] * im[i]);
}

const mel = (hertz) => 2595 * Math.log10(1 + hertz / 700), hertz = (m) => 700 * (10 ** (m / 2595) - 1);

// Per band: its first bin, and the weights of this bin and those after it (triangles).
function filters() {
  const edges = Array.from({ length: BANDS + 2 }, (_, i) => {
    return (hertz(mel(LOWEST) + (i * (mel(HIGHEST) - mel(LOWEST))) / (BANDS + 1)) * WINDOW) / RATE;
  });
  return Array.from({ length: BANDS }, (_, band) => {
    const [low, peak, high] = edges.slice(band, band + 3), first = Math.floor(low), weights = [];
    for (let bin = first; bin <= high; bin++)
      weights.push(Math.max(0, Math.min((bin - low) / (peak - low), (high - bin) / (high - peak)))); // 0 below and above the triangle
    return { first, weights };
  });
}

// Samples as bands in dB, [columns][BANDS].
export function melSpectrogram(samples) {
  const hop = Math.max(RATE / 100, Math.ceil(samples.length / COLUMNS)), bank = filters(), columns = [];
  const hann = Float64Array.from({ length: WINDOW }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW));
  for (let start = 0; start < samples.length; start += hop) {
    const re = hann.map((weight, i) => weight * (samples[start + i - WINDOW / 2] || 0)), spectrum = power(re, new Float64Array(WINDOW));
    columns.push(bank.map(({ first, weights }) => {
      return 10 * Math.log10(weights.reduce((sum, weight, j) => sum + weight * spectrum[first + j], 1e-9));
    }));
  }
  return columns;
}

function colour(share) { // of 0 … 1
  const at = Math.max(0, Math.min(1, share)) * (MAGMA.length - 1), i = Math.min(MAGMA.length - 2, Math.floor(at));
  return MAGMA[i].map((value, c) => value + (at - i) * (MAGMA[i + 1][c] - value));
}

function paint(canvas, columns) {
  canvas.width = columns.length, canvas.height = BANDS;
  const top = columns.reduce((most, column) => Math.max(most, ...column), -60);
  const picture = new ImageData(columns.length, BANDS);
  columns.forEach((column, x) => column.forEach((value, band) => {
    picture.data.set([...colour(1 + (value - top) / RANGE), 255], 4 * ((BANDS - 1 - band) * columns.length + x));
  }));
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

async function samplesOf(bytes) {
  const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes), mono = new Float32Array(decoded.length);
  for (let c = 0; c < decoded.numberOfChannels; c++)
    decoded.getChannelData(c).forEach((value, i) => { mono[i] += value / decoded.numberOfChannels; });
  return mono;
}

// `bytes(i)` gives the sound of a clip as an ArrayBuffer of its own, or a promise of it.
export function spectrogram(audio, bytes, title) {
  const canvas = element("canvas", { role: "img", hidden: true }), head = element("div", { className: "cola-head", hidden: true });
  const note = element("span", { className: "cola-note" });
  const marks = [`${HIGHEST / 1000} kHz`, `${LOWEST} Hz`].map((text, i) => {
    return element("span", { className: `cola-mark cola-mark-${i}`, textContent: text });
  });
  const frame = element("div", { className: "cola-frame", hidden: true }, canvas, head, ...marks);
  const box = element("div", { className: "cola-spectrogram" }, frame, note);
  let shown = -1, timer = 0, frameAsked = 0, seconds = 0;

  function follow() {
    cancelAnimationFrame(frameAsked);
    if (!seconds) return;
    head.style.left = `${100 * Math.min(1, audio.currentTime / seconds)}%`;
    if (!audio.paused && box.isConnected) frameAsked = requestAnimationFrame(follow);
  }
  async function load(i) {
    let words = "";
    try {
      const sound = await bytes(i);
      if (i !== shown) return;
      if (sound.byteLength > LARGEST) throw new RangeError(TOO_LONG);
      const samples = await samplesOf(sound);
      if (i !== shown) return;
      paint(canvas, melSpectrogram(samples));
      seconds = samples.length / RATE;
      canvas.setAttribute("aria-label", `mel spectrogram of ${title(i)}, ${seconds.toFixed(1)} s`);
      words = `mel spectrogram, ${seconds.toFixed(1)} s, ${RANGE} dB`;
    } catch (error) {
      if (i !== shown) return;
      seconds = 0;
      words = error instanceof RangeError ? error.message : "its spectrogram cannot be shown";
    }
    frame.hidden = canvas.hidden = head.hidden = !seconds, note.textContent = words;
    follow();
  }
  // the press comes first: the sound starts before its picture is computed
  function show(i) {
    if (i === shown) return;
    shown = i, clearTimeout(timer), (timer = setTimeout(load, 60, i));
  }
  canvas.onclick = (event) => { if (seconds) audio.currentTime = (seconds * event.offsetX) / canvas.clientWidth; };
  for (const event of ["play", "playing", "seeked", "timeupdate"]) audio.addEventListener(event, follow);
  return { box, show, stop: () => clearTimeout(timer) };
}
