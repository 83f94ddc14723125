// The embedding map: one or two views of the same clips on canvases, one <audio>, a list. Everything that a press needs is in the
// page (or on the Jupyter server as a file), so it goes on working when the kernel is gone.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name in made ? (made[name] = value) : made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function within([x, y], polygon) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [a, b] = polygon[i], [c, d] = polygon[j];
    if (b > y !== d > y && x < ((c - a) * (y - b)) / (d - b) + a) inside = !inside;
  }
  return inside;
}

function server() {
  const config = document.getElementById("jupyter-config-data");
  return config ? JSON.parse(config.textContent).baseUrl : "/";
}

function render({ model, el }) {
  const n = model.get("size"), names = model.get("names"), titles = model.get("titles"), columns = model.get("columns");
  const near = model.get("near"), k = model.get("k"), bytes = model.get("points");
  const points = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  const urls = new Map();
  // clips are numbered 0 … n-1, recordings that were added n, n+1, …
  let column = model.get("column"), added = model.get("added"), current = -1, hovered = -1, picked = [], queue = [], asked = 0;

  const audio = element("audio", { controls: true, preload: "auto", "aria-label": "the selected clip" });
  const said = element("div", { className: "cola-said", role: "status", "aria-live": "polite" });
  const legend = element("div", { className: "cola-legend" });
  const heading = element("div");
  const list = element("ol", { className: "cola-list" });
  const options = Object.keys(columns).map((c) => element("option", { value: c, textContent: c, selected: c === column }));
  const chooser = element("select", { "aria-label": "colour by" }, ...options);
  const playAll = element("button", { textContent: "▶ play in turn", disabled: true });
  const clear = element("button", { textContent: "clear", disabled: true });
  const views = names.map(view);
  // JupyterLab would take the arrow keys and Enter for itself
  const root = element("div", { className: "cola-map", "data-lm-suppress-shortcuts": "true" },
    element("div", { className: "cola-bar" }, element("label", {}, "colour by ", chooser), legend),
    element("div", { className: "cola-views" }, ...views.map((v) => v.box)),
    element("div", { className: "cola-bar" }, audio, playAll, clear), said, heading, list);
  el.append(root);

  chooser.onchange = () => { column = chooser.value; tellKernel("column", column); drawLegend(); redraw(); };
  playAll.onclick = () => { queue = picked.slice(); next(); };
  clear.onclick = () => pick([]);
  audio.onended = () => { if (queue.length) next(); };
  audio.onplaying = () => {
    if (!asked) return;
    const latency = performance.now() - asked;
    asked = 0;
    root.dataset.latency = latency.toFixed(1);
    tellKernel("latency", latency);
  };
  audio.onerror = () => {
    if (audio.getAttribute("src")) said.textContent = `${title(current)}: its sound cannot be loaded`;
    if (queue.length) next();
  };
  model.on("change:added", () => { added = model.get("added"); redraw(); select(n + added.length - 1, false); });
  model.on("change:column", () => { chooser.value = column = model.get("column"); drawLegend(); redraw(); });

  function tellKernel(name, value) {
    model.set(name, value);
    try { model.save_changes(); } catch { /* the kernel is gone: the map goes on without it */ }
  }
  function title(i) { return i < n ? titles[i] : added[i - n].name; }
  function count(clips) { return `${clips.length} clip${clips.length === 1 ? "" : "s"}`; }
  function describe(i) {
    if (i >= n) return `${title(i)}: yours`;
    return [title(i), ...Object.entries(columns).map(([c, v]) => v.names[v.codes[i]] && `${c}: ${v.names[v.codes[i]]}`)].filter(Boolean).join(" · ");
  }
  function neighbours(i, m) { return i < n ? near[m].slice(i * k, (i + 1) * k) : added[i - n].near[m]; }

  function view(name, m) {
    const hint = `${name}: map of ${n} clips. Arrow keys go from clip to clip, Enter plays, plus adds a clip to the list or removes it, Escape clears the list.`;
    const canvas = element("canvas", { tabIndex: 0, role: "application", "aria-label": hint });
    const tip = element("div", { className: "cola-tip", role: "tooltip", hidden: true });
    const box = element("div", { className: "cola-view" }, element("div", { className: "cola-title", textContent: name }), canvas, tip);
    const layer = document.createElement("canvas"); // the points, drawn only when they change
    const xs = new Float32Array(n), ys = new Float32Array(n);
    let low, unit, shift, lasso = null, stale = true;

    function at(i) { return i < n ? [xs[i], ys[i]] : put(...added[i - n].points[m]); }
    function put(x, y) { return [shift[0] + (x - low[0]) * unit, canvas.clientHeight - shift[1] - (y - low[1]) * unit]; }
    function settle() {
      const w = canvas.clientWidth, h = canvas.clientHeight, high = [-Infinity, -Infinity];
      low = [Infinity, Infinity];
      const all = Array.from({ length: n }, (_, i) => [points[2 * (n * m + i)], points[2 * (n * m + i) + 1]]);
      for (const xy of [...all, ...added.map((a) => a.points[m])])
        for (const d of [0, 1]) (low[d] = Math.min(low[d], xy[d])), (high[d] = Math.max(high[d], xy[d]));
      const span = [high[0] - low[0] || 1, high[1] - low[1] || 1];
      unit = Math.min((w - 28) / span[0], (h - 28) / span[1]); // one unit for both: distances keep their proportion
      shift = [(w - unit * span[0]) / 2, (h - unit * span[1]) / 2];
      all.forEach((xy, i) => ([xs[i], ys[i]] = put(...xy)));
    }
    function paint() {
      const scale = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
      for (const c of [canvas, layer]) (c.width = w * scale), (c.height = h * scale);
      settle();
      const c = layer.getContext("2d"), { codes, colours } = columns[column], chosen = new Set(picked);
      c.scale(scale, scale);
      const radius = n > 2000 ? 2.2 : n > 600 ? 3 : 4;
      for (let i = 0; i < n; i++) {
        c.globalAlpha = chosen.size && !chosen.has(i) ? 0.15 : 0.8;
        c.fillStyle = colours[codes[i]];
        c.beginPath(), c.arc(xs[i], ys[i], radius, 0, 7), c.fill();
      }
      stale = false;
    }
    function draw() {
      if (!canvas.clientWidth) return;
      if (stale) paint();
      const c = canvas.getContext("2d"), scale = window.devicePixelRatio || 1;
      c.setTransform(1, 0, 0, 1, 0, 0);
      c.clearRect(0, 0, canvas.width, canvas.height);
      c.drawImage(layer, 0, 0);
      c.scale(scale, scale);
      if (current >= 0) {
        c.strokeStyle = "#333", c.lineWidth = 1.3;
        for (const j of neighbours(current, m)) c.beginPath(), c.moveTo(...at(current)), c.lineTo(...at(j)), c.stroke();
        for (const j of neighbours(current, m)) ring(c, at(j), 5, 1.2);
        ring(c, at(current), 8, 2.5);
      }
      if (hovered >= 0) ring(c, at(hovered), 6, 1.5);
      added.forEach((point, j) => {
        const [x, y] = at(n + j);
        c.textAlign = "center";
        const short = point.name.length > 24 ? `${point.name.slice(0, 23)}…` : point.name;
        for (const [font, text, dy] of [["bold 24px sans-serif", "★", 8], ["12px sans-serif", short, 23]]) {
          c.font = font, c.lineWidth = 3, c.strokeStyle = "white", c.fillStyle = "black";
          const half = c.measureText(text).width / 2 + 2, inside = Math.max(half, Math.min(canvas.clientWidth - half, x));
          c.strokeText(text, inside, y + dy), c.fillText(text, inside, y + dy);
        }
      });
      if (lasso) {
        c.setLineDash([5, 4]), c.strokeStyle = "black", c.lineWidth = 1.5, c.beginPath();
        lasso.forEach((p, i) => (i ? c.lineTo(...p) : c.moveTo(...p)));
        c.closePath(), c.stroke(), c.setLineDash([]);
      }
    }
    function ring(c, [x, y], r, width) {
      for (const [colour, extra] of [["white", 2], ["black", 0]])
        (c.strokeStyle = colour), (c.lineWidth = width + extra), c.beginPath(), c.arc(x, y, r, 0, 7), c.stroke();
    }
    function pointer(event) { const r = canvas.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; }
    function under([x, y]) {
      let best = -1, least = 144; // within 12 pixels
      for (let i = 0; i < n + added.length; i++) {
        const [a, b] = at(i), d = (a - x) ** 2 + (b - y) ** 2;
        if (d < least) (least = d), (best = i);
      }
      return best;
    }
    function hover(i) {
      if (i === hovered) return;
      hovered = i, tip.hidden = i < 0;
      if (i >= 0) {
        const [x, y] = at(i), right = x > canvas.clientWidth / 2;
        tip.textContent = describe(i);
        Object.assign(tip.style, { top: `${canvas.offsetTop + y + 12}px`, left: right ? "" : `${x + 12}px`, right: right ? `${canvas.clientWidth - x + 12}px` : "" });
      }
      views.forEach((v) => v.draw());
    }
    canvas.onpointerdown = (event) => { canvas.setPointerCapture(event.pointerId); canvas.focus({ preventScroll: true }); lasso = [pointer(event)]; };
    canvas.onpointermove = (event) => {
      const p = pointer(event);
      if (!lasso) return hover(under(p));
      const [x, y] = lasso[lasso.length - 1];
      if (Math.hypot(p[0] - x, p[1] - y) > 4) lasso.push(p), draw();
    };
    canvas.onpointerleave = () => hover(-1);
    canvas.onpointercancel = () => { lasso = null; draw(); };
    canvas.onpointerup = (event) => {
      const drawn = lasso || [];
      lasso = null;
      if (drawn.length > 3) {
        const inside = [];
        for (let i = 0; i < n; i++) if (within(at(i), drawn)) inside.push(i);
        pick(inside);
      } else {
        const i = under(pointer(event));
        if (i >= 0) select(i, true);
        else draw();
      }
    };
    canvas.onkeydown = (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (way) select(current < 0 ? 0 : towards(way), false);
      else if ((event.key === "Enter" || event.key === " ") && current >= 0) select(current, true);
      else if (event.key === "+" && current >= 0 && current < n)
        pick(picked.includes(current) ? picked.filter((i) => i !== current) : [...picked, current]);
      else if (event.key === "Escape") pick([]);
      else return;
      event.preventDefault(), event.stopPropagation();
    };
    function towards([dx, dy]) {
      const [x, y] = at(current);
      let best = current, least = Infinity;
      for (let i = 0; i < n + added.length; i++) {
        const [a, b] = at(i), along = (a - x) * dx + (b - y) * dy, off = Math.abs((a - x) * dy) + Math.abs((b - y) * dx);
        if (i !== current && along > 0.5 && off <= along && along + 2 * off < least) (least = along + 2 * off), (best = i);
      }
      return best;
    }
    new ResizeObserver(() => { stale = true; draw(); }).observe(canvas);
    return { box, draw, spoil: () => { stale = true; } };
  }

  function url(i) {
    if (i >= n) return added[i - n].sound;
    const links = model.get("links");
    if (links.length) return server() + links[i];
    if (!urls.has(i)) {
      const offsets = model.get("offsets"), all = model.get("previews");
      const part = new Uint8Array(all.buffer, all.byteOffset + offsets[i], offsets[i + 1] - offsets[i]);
      urls.set(i, URL.createObjectURL(new Blob([part], { type: "audio/mpeg" })));
    }
    return urls.get(i);
  }
  function play(i) {
    asked = performance.now();
    audio.src = url(i);
    audio.play().catch((error) => { if (error.name !== "AbortError") said.textContent = `${title(i)}: cannot be played (${error.message})`; });
  }
  function select(i, sound) {
    current = i;
    root.dataset.selected = i;
    if (i < n) tellKernel("selected", i);
    said.textContent = describe(i);
    if (sound) (queue = []), play(i);
    if (!picked.length) show([i], "This clip and its nearest:", names.map((name, m) => [name, neighbours(i, m)]));
    else show(picked, `${count(picked)}:`);
    redraw(false);
  }
  function pick(clips) {
    picked = clips, queue = [];
    tellKernel("picked", clips);
    playAll.disabled = clear.disabled = !clips.length;
    show(clips, clips.length ? `${count(clips)}:` : "");
    said.textContent = clips.length ? `${count(clips)} selected` : "";
    redraw();
  }
  function next() {
    current = queue.shift();
    said.textContent = describe(current);
    play(current), show(picked, `${count(picked)}:`), redraw(false);
  }
  function show(clips, words, more = []) {
    const focused = [...list.querySelectorAll("button")].indexOf(document.activeElement);
    const row = (i) => element("li", {}, element("button", { textContent: `▶ ${title(i)}`, title: describe(i), className: i === current ? "cola-now" : "", onclick: () => select(i, true) }));
    heading.textContent = words;
    list.replaceChildren(...clips.slice(0, 100).map(row));
    if (clips.length > 100) list.append(element("li", { textContent: `and ${clips.length - 100} more` }));
    for (const [name, others] of more)
      list.append(...(more.length > 1 ? [element("li", { className: "cola-space", textContent: `${name}:` })] : []), ...others.map(row));
    if (focused >= 0) list.querySelectorAll("button")[Math.min(focused, list.querySelectorAll("button").length - 1)]?.focus();
  }
  function drawLegend() {
    const { names: values, colours } = columns[column];
    legend.replaceChildren(...values.map((value, i) => {
      const dot = element("span", { className: "cola-dot" });
      dot.style.background = colours[i];
      return element("span", { className: "cola-key" }, dot, value || "none");
    }));
  }
  function redraw(everything = true) { views.forEach((v) => { if (everything) v.spoil(); v.draw(); }); }
  said.textContent = "Press a point to hear it; drag around several to list them, or add one at a time with the plus key.";
  drawLegend(), redraw();
  return () => { audio.pause(); urls.forEach((u) => URL.revokeObjectURL(u)); };
}

export default { render };
