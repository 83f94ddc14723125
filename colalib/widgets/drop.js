// A button that takes audio files, chosen or dropped on it, and sends them to the kernel.

export default { render({ model, el }) {
  const input = document.createElement("input"), button = document.createElement("button");
  Object.assign(input, { type: "file", multiple: true, accept: "audio/*,.flac,.wav,.mp3,.ogg", hidden: true });
  Object.assign(button, { textContent: model.get("label"), title: "choose audio files, or drop them here" });
  button.className = "jupyter-widgets jupyter-button widget-button";
  button.style.width = "auto";
  const mark = (on) => (event) => { event.preventDefault(); button.style.outline = on ? "2px dashed #0072b2" : ""; };
  async function take(files) {
    for (const file of files) // in slices: a server closes the connection on a message above 10 MiB
      for (let start = 0; start === 0 || start < file.size; start += 4e6) {
        const slice = await file.slice(start, start + 4e6).arrayBuffer();
        model.send({ name: file.name, start, size: file.size }, undefined, [slice]);
      }
    input.value = "";
  }
  button.onclick = () => input.click();
  input.onchange = () => take(input.files);
  button.ondragover = mark(true);
  button.ondragleave = mark(false);
  button.ondrop = (event) => { mark(false)(event); event.stopPropagation(); take(event.dataTransfer.files); };
  el.append(button, input);
} };
