// The embedding map: one or two views of the same clips on canvases, one <audio>, a spectrogram, a list. Everything that a press
// needs is in the page (or a file beside it, or on the Jupyter server), so it goes on working when the kernel is gone.
// Of spaces with scores (the snapshots of a training) one is shown at a time: a slider chooses it, and points glide to their places.
import { csv, curve, download, element, forms, visible } from "./maps_parts.js";
import { LARGEST, TOO_LONG, spectrogram } from "./maps_spectrogram.js";
import { view } from "./maps_view.js";

const GLIDE = 900, STAY = 1600; // milliseconds: how long points glide, and from one snapshot to the next when they are played
const HINT = "Press a point to hear it; drag around several to list them. Zoom with the wheel or [ and ]; move with Shift and a drag.";
const HELP = "Zoom: wheel (after a press on the map), Ctrl+wheel, pinch, or the keys [ and ]. Move: drag with Shift, the right or the " +
  "middle button, or two fingers, or Shift+arrow keys. 0 shows the whole map. The filter dims what does not match; Enter lists " +
  "what does. Arrow keys go from clip to clip, Enter plays, + adds a clip to the list or removes it, Escape clears the list. " +
  "A press on the spectrogram winds the sound to there.";

// Where links begin: at the Jupyter server in a notebook, at the page in a file.
function server() {
  const config = document.getElementById("jupyter-config-data");
  return config ? JSON.parse(config.textContent).baseUrl : "";
}

function render({ model, el }) {
  const n = model.get("size"), names = model.get("names"), titles = model.get("titles"), columns = model.get("columns");
  const near = model.get("near"), k = model.get("k"), bytes = model.get("points"), links = model.get("links");
  const offsets = model.get("offsets"), ids = model.get("ids"), paths = model.get("paths");
  const urls = new Map();
  const scores = model.get("scores"), moving = scores.length > 0, last = names.length - 1;
  const reduced = window.matchMedia("(prefers-reduced-motion: reduce)"), dark = window.matchMedia("(prefers-color-scheme: dark)");
  // What the views share. Clips are numbered 0 … n-1, recordings that were added n, n+1, …
  // `target` is the space to show; `moment` is on its way there while points glide.
  const map = {
    n, points: new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)),
    added: model.get("added"), current: -1, hovered: -1, picked: [], target: model.get("moment"), moment: model.get("moment"),
    neighbours, describe, colouring, found, lit, hover, select, pick,
  };
  let column = model.get("column"), queue = [], asked = 0, frame = 0, timer = 0;
  let matches = null, chosen = new Set(); // which clips the filter found, if it is in use; those in the list
  let words = searched();

  const audio = element("audio", { controls: true, preload: "auto", "aria-label": "the selected clip" });
  const said = element("div", { className: "cola-said", role: "status", "aria-live": "polite", textContent: HINT });
  const legend = element("div", { className: "cola-legend" });
  const heading = element("div");
  const list = element("ol", { className: "cola-list" });
  const options = Object.keys(columns).map((c) => element("option", { value: c, textContent: c, selected: c === column }));
  const chooser = element("select", { "aria-label": "colour by" }, ...options);
  const filter = element("input", { type: "search", placeholder: "filter", "aria-label": "filter clips by text" });
  const playAll = element("button", { textContent: "▶ play in turn", disabled: true });
  const clear = element("button", { textContent: "clear", disabled: true });
  const save = element("button", { textContent: "save as CSV", title: "save the list as a table", disabled: true });
  const picture = spectrogram(audio, soundBytes, title);
  const views = moving ? [view(map, "snapshots", null)] : names.map((name, m) => view(map, name, m));
  const slider = element("input", { type: "range", min: 0, max: last, step: 1, value: map.target, "aria-label": "training step" });
  const walk = element("button", { textContent: "▶ play" });
  const step = element("b"), note = element("div"), scored = moving && curve(names, scores);
  // JupyterLab would take the arrow keys and Enter for itself
  const root = element("div", { className: "cola-map", "data-lm-suppress-shortcuts": "true" },
    element("div", { className: "cola-bar" }, element("label", {}, "colour by ", chooser), filter, legend),
    ...(moving ? [element("div", { className: "cola-bar cola-steps" }, walk, slider, step)] : []),
    element("div", { className: "cola-views" }, ...views.map((v) => v.box),
      ...(moving ? [element("div", { className: "cola-side" }, note, scored.box)] : [])),
    element("div", { className: "cola-bar" }, audio, playAll, clear, save), picture.box, said, heading, list,
    element("details", { className: "cola-help" }, element("summary", { textContent: "how to use the map" }), HELP));
  el.append(root);

  chooser.onchange = () => { column = chooser.value; tellKernel("column", column); drawLegend(); redraw(); };
  playAll.onclick = () => { queue = map.picked.slice(); next(); };
  clear.onclick = () => pick([]);
  save.onclick = () => download("selection.csv", csv(table(map.picked)), "text/csv");
  filter.oninput = () => find(filter.value);
  filter.onkeydown = (event) => {
    event.stopPropagation();
    if (event.isComposing) return; // Enter ends a word of Chinese or Japanese
    if (event.key === "Escape") filter.value = "", find("");
    if (event.key === "Enter" && matches) pick(Array.from(matches.keys()).filter((i) => matches[i]));
  };
  slider.oninput = () => { rest(); goTo(Number(slider.value)); };
  slider.onkeydown = (event) => {  // in JupyterLab the browser's own arrow keys do nothing here
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!by) return;
    event.preventDefault(), event.stopPropagation();
    rest(), goTo(Math.max(0, Math.min(last, map.target + by)));
  };
  walk.onclick = () => {
    if (timer) return rest();
    walk.textContent = "⏸ pause";
    timer = setInterval(forward, STAY);
    goTo(map.target < last ? map.target + 1 : 0);
  };
  audio.onended = () => { if (queue.length) next(); };
  audio.onplaying = () => {
    if (!asked) return;
    const latency = performance.now() - asked;
    asked = 0;
    root.dataset.latency = latency.toFixed(1);
  };
  audio.onerror = () => {
    if (audio.getAttribute("src")) said.textContent = `${title(map.current)}: its sound cannot be loaded`;
    if (queue.length) next();
  };
  model.on("change:added", () => { map.added = model.get("added"); replace(); select(n + map.added.length - 1, false); });
  model.on("change:moment", () => { if (model.get("moment") !== map.target) rest(), goTo(model.get("moment")); });
  model.on("change:columns", () => {
    Object.assign(columns, model.get("columns")), (words = searched());
    if (matches) find(filter.value);
    drawLegend(), redraw();
  });
  model.on("change:picked", () => { // by the kernel: what is played in turn goes on
    const now = model.get("picked"), waiting = queue.filter((i) => now.includes(i));
    if (now !== map.picked) pick(now), (queue = waiting);
  });
  model.on("change:column", () => { chooser.value = column = model.get("column"); drawLegend(); redraw(); });
  // another theme: other colours of lines, rings, and points that would not be seen
  const recolour = () => { drawLegend(); redraw(); };
  const themed = new MutationObserver(recolour);
  themed.observe(document.body, { attributeFilter: ["data-jp-theme-name", "data-jp-theme-light"] });
  dark.addEventListener("change", recolour);

  function tellKernel(name, value) {
    model.set(name, value);
    try { model.save_changes(); } catch { /* the kernel is gone: the map goes on without it */ }
  }
  function title(i) { return i < n ? titles[i] : map.added[i - n].name; }
  function count(clips) { return `${clips.length} clip${clips.length === 1 ? "" : "s"}`; }
  // what the filter looks at
  function searched() { return titles.map((_, i) => `${describe(i)} ${paths[i] ?? ""}`.normalize().toLowerCase()); }
  function value(c, i) { return columns[c].names[columns[c].codes[i]]; }
  function describe(i) {
    if (i >= n) return `${title(i)}: yours`;
    const values = Object.keys(columns).map((c) => value(c, i) && `${c}: ${value(c, i)}`);
    return [title(i), ...values, !hasSound(i) && "its sound is missing"].filter(Boolean).join(" · ");
  }
  function table(clips) {
    const rows = clips.map((i) => [ids[i] ?? titles[i], paths[i] ?? "", ...Object.keys(columns).map((c) => value(c, i))]);
    return [["clip_id", "path", ...Object.keys(columns)], ...rows];
  }

  // ------------------------------------------------------------------------------- what is looked at

  function colouring() { return columns[column] || { names: [""], colours: ["#999999"], codes: new Uint8Array(n) }; }
  function found(i) { return !matches || matches[i]; }
  function lit(i) { return (!chosen.size || chosen.has(i)) && Boolean(found(i)); }
  function find(text) {
    const wanted = text.normalize().toLowerCase().split(/\s+/).filter(Boolean);
    matches = wanted.length ? words.map((line) => wanted.every((word) => line.includes(word))) : null;
    const hits = matches && matches.filter(Boolean).length;
    said.textContent = matches ? `${hits} of ${count(titles)} match${hits ? ": Enter lists them" : ""}` : HINT;
    root.dataset.matches = matches ? hits : "";
    redraw();
  }
  function hover(i) {
    if (i === map.hovered) return;
    map.hovered = i;
    views.forEach((v) => v.draw());
  }
  function redraw(everything = true) { views.forEach((v) => { if (everything) v.spoil(); v.draw(); }); }
  function replace() { views.forEach((v) => { v.unsettle(); v.draw(); }); }
  function drawLegend() {
    const { names: values, colours } = colouring(), { backgroundColor } = getComputedStyle(views[0].box.querySelector("canvas"));
    const marks = forms(colours);
    legend.replaceChildren(...values.slice(0, 40).map((value, i) => {
      const dot = element("span", { className: `cola-dot cola-form-${marks[i]}` });
      dot.style.background = visible(colours[i], backgroundColor);
      return element("span", { className: "cola-key" }, dot, element("bdi", { textContent: value || "none" }));
    }), ...(values.length > 40 ? [`and ${values.length - 40} more`] : []));
  }

  // ------------------------------------------------------------------------------ from step to step

  function rest() { clearInterval(timer), (timer = 0), (walk.textContent = "▶ play"); }
  function forward() {
    if (map.target < last && root.isConnected) goTo(map.target + 1);
    if (map.target === last || !root.isConnected) rest();
  }
  function goTo(to) {
    const from = map.moment, begun = performance.now();
    map.target = to;
    tellKernel("moment", to);
    announce();
    if (map.current >= 0) tell(map.current);
    views.forEach((v) => v.leave());
    cancelAnimationFrame(frame);
    function glide(now) {
      const share = reduced.matches ? 1 : Math.max(0, Math.min(1, (now - begun) / GLIDE));
      map.moment = share < 1 ? from + (to - from) * share * share * (3 - 2 * share) : to;
      scored.move(map.moment), replace();
      if (share < 1) frame = requestAnimationFrame(glide);
    }
    glide(begun);
  }
  function announce() {
    const { target } = map, told = `${names[target]}: ${scores[target].words}`;
    slider.value = target, step.textContent = names[target], note.textContent = scores[target].words;
    slider.setAttribute("aria-valuetext", told);
    root.dataset.moment = target;
  }

  // ------------------------------------------------------------------------------------------ sounds

  function hasSound(i) { return i >= n || Boolean(links[i]) || offsets[i + 1] > offsets[i]; }
  function preview(i) {
    const all = model.get("previews");
    return new Uint8Array(all.buffer, all.byteOffset + offsets[i], offsets[i + 1] - offsets[i]);
  }
  function url(i) {
    if (i >= n) return map.added[i - n].sound;
    if (links[i]) return server() + links[i];
    if (!urls.has(i)) urls.set(i, URL.createObjectURL(new Blob([preview(i)], { type: "audio/mpeg" })));
    return urls.get(i);
  }
  async function soundBytes(i) {
    if (!hasSound(i)) throw new RangeError("");
    if (i < n && !links[i]) return preview(i).slice().buffer;
    const beside = location.protocol === "file:" && i < n;
    if (beside) throw new RangeError("no spectrogram: this sound is a file beside the page, which browsers do not let it read");
    const answer = await fetch(url(i));
    if (Number(answer.headers.get("content-length")) > LARGEST) {
      answer.body?.cancel();
      throw new RangeError(TOO_LONG);
    }
    return answer.arrayBuffer();
  }
  function play(i) {
    if (!hasSound(i)) return void setTimeout(() => { if (queue.length) next(); });
    asked = performance.now();
    audio.play().catch((error) => {
      if (error.name !== "AbortError") said.textContent = `${title(i)}: cannot be played (${error.message})`;
    });
  }
  function choose(i) {
    map.current = i;
    if (i < n) tellKernel("selected", i);
    said.textContent = describe(i);
    if (hasSound(i)) audio.src = url(i);
    else audio.removeAttribute("src"), audio.load();
    picture.show(i);
    views.forEach((v) => v.reveal(i));
  }
  function select(i, sound) {
    asked = 0;
    choose(i);
    root.dataset.selected = i;
    if (sound) (queue = []), play(i);
    tell(i);
    redraw(false);
  }
  function next() {
    const i = queue.shift();
    choose(i), play(i), show(map.picked, `${count(map.picked)}:`), redraw(false);
  }

  // -------------------------------------------------------------------------------------------- list

  function neighbours(i, m) { return i < n ? near[m].slice(i * k, (i + 1) * k) : map.added[i - n].near[m]; }
  function tell(i) {
    const spaces = moving ? [map.target] : names.keys();
    if (map.picked.length) show(map.picked, `${count(map.picked)}:`);
    else show([i], "This clip and its nearest:", Array.from(spaces, (m) => [names[m], neighbours(i, m)]));
  }
  function pick(clips) {
    map.picked = clips, chosen = new Set(clips), queue = [];
    tellKernel("picked", clips);
    playAll.disabled = clear.disabled = save.disabled = !clips.length;
    show(clips, clips.length ? `${count(clips)}:` : "");
    said.textContent = clips.length ? `${count(clips)} selected` : "";
    redraw();
  }
  function show(clips, text, more = []) {
    const focused = [...list.querySelectorAll("button")].indexOf(document.activeElement);
    const row = (i) => element("li", {}, element("button", {
      textContent: `▶ ${title(i)}`, title: describe(i), className: i === map.current ? "cola-now" : "", dir: "auto",
      onclick: () => select(i, true),
    }));
    heading.textContent = text;
    list.replaceChildren(...clips.slice(0, 100).map(row));
    if (clips.length > 100) list.append(element("li", { textContent: `and ${clips.length - 100} more` }));
    for (const [name, others] of more)
      list.append(...(more.length > 1 ? [element("li", { className: "cola-space", textContent: `${name}:` })] : []), ...others.map(row));
    if (focused >= 0) list.querySelectorAll("button")[Math.min(focused, list.querySelectorAll("button").length - 1)]?.focus();
  }

  if (moving) announce(), scored.move(map.moment);
  drawLegend(), redraw();
  return () => {
    audio.pause(), rest(), cancelAnimationFrame(frame), picture.stop(), views.forEach((v) => v.stop());
    themed.disconnect(), dark.removeEventListener("change", recolour);
    urls.forEach((u) => URL.revokeObjectURL(u));
  };
}

export default { render };
