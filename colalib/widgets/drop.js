// Buttons that take audio files, chosen or dropped, or a recording by the microphone, and send them to the kernel.

const LONGEST = 30; // seconds of a recording
const RATE = 16_000; // Hz: what the encoders hear

// Samples in [-1, 1] as a WAV file of 16 bits.
function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"), view.setUint32(4, 36 + 2 * samples.length, true), text(8, "WAVEfmt "), view.setUint32(16, 16, true);
  view.setUint16(20, 1, true), view.setUint16(22, 1, true), view.setUint32(24, rate, true), view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true), view.setUint16(34, 16, true), text(36, "data"), view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, value))), true));
  return view.buffer;
}

function push(textContent, title) {
  const button = Object.assign(document.createElement("button"), { textContent, title });
  button.className = "jupyter-widgets jupyter-button widget-button";
  button.style.width = "auto";
  return button;
}

// A button that records until it is pressed again, and hands a WAV file to `take`; `refuse(name, why)` if it cannot.
function recorder(take, refuse) {
  const start = "● record", button = push(start, `record with the microphone, up to ${LONGEST} s`);
  let recording = null, count = 0;
  async function finish(name, parts) {
    try {
      const bytes = await new Blob(parts).arrayBuffer();
      const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes); // one channel of a microphone
      take([new File([wav(sound.getChannelData(0), RATE)], name)]);
    } catch (error) {
      refuse(name, `the browser cannot read what it recorded (${error.message})`);
    }
  }
  button.onclick = async () => {
    if (recording) return recording.stop();
    const name = `recording ${++count}.wav`, parts = [];
    let stream = null, timer = 0;
    const end = () => {
      clearInterval(timer), stream?.getTracks().forEach((track) => track.stop());
      recording = null, button.textContent = start;
    };
    button.disabled = true;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      recording = new MediaRecorder(stream);
      recording.ondataavailable = (event) => parts.push(event.data);
      const begun = performance.now(), tick = () => {
        const seconds = (performance.now() - begun) / 1000;
        button.textContent = `■ stop (${seconds.toFixed(0)} s)`;
        if (seconds >= LONGEST || !button.isConnected) recording.stop();
      };
      recording.onstop = () => { end(); finish(name, parts); };
      recording.start(), tick();
      timer = setInterval(tick, 500);
    } catch (error) { // no microphone, or it was not allowed
      end();
      refuse(name, `the browser does not record (${error.message})`);
    } finally {
      button.disabled = false;
    }
  };
  return button;
}

function render({ model, el }) {
  const input = Object.assign(document.createElement("input"), { type: "file", multiple: true, hidden: true });
  input.accept = "audio/*,.flac,.wav,.mp3,.ogg";
  const button = push(model.get("label"), "choose audio files, or drop them here");
  const mark = (on) => (event) => { event.preventDefault(); button.style.outline = on ? "2px dashed #0072b2" : ""; };
  async function take(files) {
    for (const file of [...files]) {
      const id = Math.random(), about = { id, name: file.name, size: file.size }; // two drops may be on their way at once
      const send = (start, content = [], error) => model.send({ ...about, start, error }, undefined, content);
      try {
        if (file.size > model.get("limit")) send(0); // the kernel says that it is too large
        else
          for (let start = 0; start === 0 || start < file.size; start += 4e6) // a server takes messages of up to 10 MiB
            send(start, [await file.slice(start, start + 4e6).arrayBuffer()]);
      } catch (error) { // a folder, or a file that is gone
        send(0, [], `the browser cannot read it (${error.message})`);
      }
    }
    input.value = "";
  }
  button.onclick = () => input.click();
  input.onchange = () => take(input.files);
  button.ondragover = mark(true);
  button.ondragleave = mark(false);
  button.ondrop = (event) => { mark(false)(event); event.stopPropagation(); take(event.dataTransfer.files); };
  el.append(button, input);
  const refuse = (name, error) => model.send({ id: Math.random(), name, size: 0, start: 0, error }, undefined, []);
  if (navigator.mediaDevices?.getUserMedia && window.MediaRecorder) el.append(recorder(take, refuse));
}

export default { render };
