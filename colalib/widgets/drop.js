// A button that takes audio files, chosen or dropped on it, and sends them to the kernel.

export default { render({ model, el }) {
  const input = document.createElement("input"), button = document.createElement("button");
  Object.assign(input, { type: "file", multiple: true, accept: "audio/*,.flac,.wav,.mp3,.ogg", hidden: true });
  Object.assign(button, { textContent: model.get("label"), title: "choose audio files, or drop them here" });
  button.className = "jupyter-widgets jupyter-button widget-button";
  button.style.width = "auto";
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
} };
