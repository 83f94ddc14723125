// One view of the clips: a canvas that is zoomed and moved, with the chosen clip, its neighbours and a lasso.
import { element, forms, visible, within } from "./maps_parts.js";

const MOST = 60, STEP = 1.5; // how far a view is enlarged, and by how much per press
const SLOW = 12, REST = 120; // ms: when painting the points takes longer, they are only shifted until the map rests so long
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = "Arrow keys go from clip to clip, Enter plays, plus adds a clip to the list or removes it, Escape clears the list. " +
  "The bracket keys [ and ] zoom, 0 shows the whole map, Shift with arrow keys moves it.";

// `map` is what all views share (see maps.js); `m` is the number of this view's space, null if the slider chooses it.
export function view(map, name, m) {
  const n = map.n;
  const canvas = element("canvas", { tabIndex: 0, role: "application", "aria-label": `${name}: map of ${n} clips. ${KEYS}` });
  const tip = element("div", { className: "cola-tip", role: "tooltip", hidden: true });
  const button = (textContent, title, onclick) => element("button", { textContent, title, "aria-label": `${title}: ${name}`, onclick });
  const zooms = element("span", { className: "cola-zoom" }, button("−", "zoom out", () => zoomBy(1 / STEP)),
    button("+", "zoom in", () => zoomBy(STEP)), button("whole map", "show the whole map", whole));
  const box = element("div", { className: "cola-view" },
    element("div", { className: "cola-title" }, element("span", { textContent: m === null ? "" : name }), zooms), canvas, tip);
  const layer = document.createElement("canvas"); // the points, painted only when they change
  const xs = new Float32Array(n), ys = new Float32Array(n); // places on the whole map, in pixels
  let low, unit, shift, lasso = null, grip = null; // how the map lies in the canvas; what a pointer does
  let settled = false, stale = true, cost = 0, timer = 0, asked = 0;
  let zoom = 1, left = 0, top = 0; // what is enlarged, and from where
  let painted = { zoom, left, top }; // of the layer
  const fingers = new Map();

  const width = () => canvas.clientWidth, height = () => canvas.clientHeight;
  const seen = (x, y) => [(x - left) * zoom, (y - top) * zoom];
  function at(i) { return i < n ? seen(xs[i], ys[i]) : seen(...put(...map.added[i - n].points[m])); }
  function nearest(i) { return map.neighbours(i, m ?? map.target); }
  // of a clip, between two spaces while points glide
  function spot(i) {
    const { moment, points } = map, a = m ?? Math.floor(moment), b = m ?? Math.ceil(moment), share = moment - Math.floor(moment);
    return [0, 1].map((d) => (1 - share) * points[2 * (n * a + i) + d] + share * points[2 * (n * b + i) + d]);
  }
  function put(x, y) { return [shift[0] + (x - low[0]) * unit, height() - shift[1] - (y - low[1]) * unit]; }
  function settle() {
    const high = [-Infinity, -Infinity], points = map.points;
    low = [Infinity, Infinity];
    const all = Array.from({ length: n }, (_, i) => spot(i));
    // one frame for all that the slider can show: what moves on the page moves on the map
    const framed = m === null ? Array.from({ length: points.length / 2 }, (_, j) => points.subarray(2 * j, 2 * j + 2)) : all;
    for (const xy of [...framed, ...map.added.map((a) => a.points[m])])
      for (const d of [0, 1]) (low[d] = Math.min(low[d], xy[d])), (high[d] = Math.max(high[d], xy[d]));
    const span = [high[0] - low[0] || 1, high[1] - low[1] || 1];
    unit = Math.min((width() - 28) / span[0], (height() - 28) / span[1]); // one unit for both: distances keep their proportion
    shift = [0, 1].map((d) => ([width(), height()][d] - unit * (high[d] - low[d])) / 2);
    all.forEach((xy, i) => ([xs[i], ys[i]] = put(...xy)));
    settled = true;
  }

  // ---------------------------------------------------------------------------------------- drawing

  function theme() { const { color, backgroundColor } = getComputedStyle(canvas); return { ink: color, paper: backgroundColor }; }
  // a point as a small picture: pictures are copied faster than circles are filled
  function stamp(colour, form, radius, scale) {
    const dot = document.createElement("canvas"), c = dot.getContext("2d"), r = radius * scale;
    dot.width = dot.height = Math.ceil(2 * (radius + 1) * scale);
    c.translate(dot.width / 2, dot.height / 2);
    c.fillStyle = colour, c.beginPath();
    if (form === 0) c.arc(0, 0, r, 0, 7);
    else if (form === 1) c.rect(-0.9 * r, -0.9 * r, 1.8 * r, 1.8 * r);
    else c.moveTo(0, -1.2 * r), c.lineTo(1.1 * r, 0.9 * r), c.lineTo(-1.1 * r, 0.9 * r);
    c.fill();
    return dot;
  }
  function paint() {
    const began = performance.now(), scale = window.devicePixelRatio || 1, { paper } = theme();
    const w = Math.round(width() * scale), h = Math.round(height() * scale);
    for (const c of [canvas, layer]) if (c.width !== w || c.height !== h) (c.width = w), (c.height = h), (settled = false);
    if (!settled) settle();
    const c = layer.getContext("2d"), { codes, colours } = map.colouring();
    const radius = (n > 2000 ? 2.2 : n > 600 ? 3 : 4) * Math.min(2.5, zoom ** 0.35);
    const marks = forms(colours), stamps = new Map(); // a few, however many values there are
    const dots = colours.map((colour, j) => {
      const key = colour + marks[j];
      if (!stamps.has(key)) stamps.set(key, stamp(visible(colour, paper), marks[j], radius, scale));
      return stamps.get(key);
    });
    const half = dots[0].width / 2;
    c.clearRect(0, 0, w, h);
    for (const lit of [false, true]) { // what is dimmed lies below
      c.globalAlpha = lit ? 0.8 : 0.15;
      for (let i = 0; i < n; i++) {
        if (map.lit(i) !== lit) continue;
        const x = (xs[i] - left) * zoom * scale - half, y = (ys[i] - top) * zoom * scale - half;
        if (x > -2 * half && x < w && y > -2 * half && y < h) c.drawImage(dots[codes[i]], x, y);
      }
    }
    stale = false, (painted = { zoom, left, top }), (cost = performance.now() - began);
    canvas.dataset.cost = cost.toFixed(1);
  }
  function draw() {
    if (!width()) return;
    if (stale) paint();
    const c = canvas.getContext("2d"), scale = window.devicePixelRatio || 1, { ink, paper } = theme(), { current, hovered } = map;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, canvas.width, canvas.height);
    const grown = zoom / painted.zoom; // 1, but for a layer that is behind the map
    c.setTransform(grown, 0, 0, grown, (painted.left - left) * zoom * scale, (painted.top - top) * zoom * scale);
    c.drawImage(layer, 0, 0);
    c.setTransform(scale, 0, 0, scale, 0, 0);
    const ring = ([x, y], r, breadth) => {
      for (const [colour, extra] of [[paper, 2], [ink, 0]])
        (c.strokeStyle = colour), (c.lineWidth = breadth + extra), c.beginPath(), c.arc(x, y, r, 0, 7), c.stroke();
    };
    if (current >= 0) {
      c.strokeStyle = ink, c.lineWidth = 1.3;
      for (const j of nearest(current)) c.beginPath(), c.moveTo(...at(current)), c.lineTo(...at(j)), c.stroke();
      for (const j of nearest(current)) ring(at(j), 5, 1.2);
      ring(at(current), 8, 2.5);
    }
    if (hovered >= 0) ring(at(hovered), 6, 1.5);
    map.added.forEach((point, j) => {
      const [x, y] = at(n + j);
      c.textAlign = "center";
      const short = point.name.length > 24 ? `${point.name.slice(0, 23)}…` : point.name;
      for (const [font, text, dy] of [["bold 24px sans-serif", "★", 8], ["12px sans-serif", short, 23]]) {
        c.font = font, c.lineWidth = 3, c.strokeStyle = paper, c.fillStyle = ink;
        const half = c.measureText(text).width / 2 + 2, inside = zoom > 1 ? x : Math.max(half, Math.min(width() - half, x));
        c.strokeText(text, inside, y + dy), c.fillText(text, inside, y + dy);
      }
    });
    if (lasso) {
      c.setLineDash([5, 4]), c.strokeStyle = ink, c.lineWidth = 1.5, c.beginPath();
      lasso.forEach((p, i) => (i ? c.lineTo(...p) : c.moveTo(...p)));
      c.closePath(), c.stroke(), c.setLineDash([]);
    }
  }

  // ------------------------------------------------------------------------------------ zoom and move

  function look(to, x, y) {
    zoom = Math.max(1, Math.min(MOST, to));
    // the middle of the view stays on the map; the whole map stays where it is
    left = zoom === 1 ? 0 : Math.max(-width() / (2 * zoom), Math.min(width() - width() / (2 * zoom), x));
    top = zoom === 1 ? 0 : Math.max(-height() / (2 * zoom), Math.min(height() - height() / (2 * zoom), y));
    canvas.dataset.zoom = zoom.toFixed(2), canvas.dataset.place = `${left.toFixed(1)} ${top.toFixed(1)}`;
    map.hover(-1), tell(-1);
    stale ||= cost < SLOW;
    clearTimeout(timer);
    timer = setTimeout(() => { stale = true; draw(); }, REST);
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(draw);
  }
  function zoomAt([x, y], by) {
    const to = Math.max(1, Math.min(MOST, zoom * by));
    look(to, left + x / zoom - x / to, top + y / zoom - y / to); // what is under the pointer stays there
  }
  function zoomBy(by) {
    const here = map.current >= 0 && at(map.current);
    zoomAt(here && inSight(here) ? here : [width() / 2, height() / 2], by);
  }
  function inSight([x, y]) { return x >= 0 && x <= width() && y >= 0 && y <= height(); }
  function moveBy(dx, dy) { look(zoom, left - dx / zoom, top - dy / zoom); }
  function whole() { look(1, 0, 0); }
  function reveal(i) {
    if (zoom === 1 || !width() || !settled) return;
    const [x, y] = at(i);
    if (!inSight([x, y])) moveBy(width() / 2 - x, height() / 2 - y);
  }

  // --------------------------------------------------------------------------------- pointer and keys

  function pointer(event) { const r = canvas.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; }
  function under([x, y]) {
    let best = -1, least = 144; // within 12 pixels
    for (let i = 0; i < n + map.added.length; i++) {
      const [a, b] = at(i), d = (a - x) ** 2 + (b - y) ** 2;
      if (d < least) (least = d), (best = i);
    }
    return best;
  }
  function tell(i) {
    tip.hidden = i < 0;
    if (i < 0) return;
    const [x, y] = at(i), sides = x > width() / 2 ? ["", `${width() - x + 12}px`] : [`${x + 12}px`, ""];
    tip.textContent = map.describe(i);
    Object.assign(tip.style, { top: `${canvas.offsetTop + y + 12}px`, left: sides[0], right: sides[1] });
  }
  canvas.onpointerdown = (event) => {
    const p = pointer(event);
    canvas.setPointerCapture(event.pointerId), canvas.focus({ preventScroll: true });
    fingers.set(event.pointerId, p);
    lasso = grip = null;
    if (fingers.size > 1 || event.button > 0 || event.shiftKey) grip = p;
    else lasso = [p];
  };
  canvas.onpointermove = (event) => {
    const p = pointer(event);
    if (!fingers.has(event.pointerId)) { const i = under(p); map.hover(i); return tell(i); }
    if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1], before = fingers.get(event.pointerId);
      const apart = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
      zoomAt([(p[0] + other[0]) / 2, (p[1] + other[1]) / 2], apart(p) / (apart(before) || 1));
      moveBy((p[0] - before[0]) / 2, (p[1] - before[1]) / 2);
    } else if (grip) moveBy(p[0] - grip[0], p[1] - grip[1]), (grip = p);
    else if (lasso && Math.hypot(p[0] - lasso.at(-1)[0], p[1] - lasso.at(-1)[1]) > 4) lasso.push(p), draw();
    fingers.set(event.pointerId, p);
  };
  canvas.onpointerleave = () => { map.hover(-1); tell(-1); };
  canvas.onpointercancel = (event) => { fingers.delete(event.pointerId); lasso = grip = null; draw(); };
  canvas.onpointerup = (event) => {
    const drawn = lasso || [];
    fingers.delete(event.pointerId);
    lasso = grip = null;
    if (drawn.length > 3) {
      const inside = [];
      for (let i = 0; i < n; i++) if (map.found(i) && within(at(i), drawn)) inside.push(i);
      map.pick(inside);
    } else if (drawn.length) {
      const i = under(pointer(event));
      if (i >= 0) map.select(i, true);
      else draw();
    }
  };
  canvas.onmousedown = (event) => { if (event.button === 1) event.preventDefault(); }; // the browser would scroll
  canvas.oncontextmenu = (event) => { event.preventDefault(), event.stopPropagation(); }; // a right-drag moves the map
  canvas.addEventListener("wheel", (event) => {
    // the page scrolls past a map that nobody has pressed; a pinch on a touchpad comes as Ctrl with the wheel
    const meant = event.ctrlKey || event.metaKey || document.activeElement === canvas;
    if (!meant || (zoom === 1 && event.deltaY > 0 && !event.ctrlKey)) return;
    event.preventDefault(), event.stopPropagation();
    const lines = event.deltaMode === 1 ? 16 : 1;
    zoomAt(pointer(event), Math.exp((-event.deltaY * lines) / (event.ctrlKey && Math.abs(event.deltaY) < 50 ? 100 : 400)));
  }, { passive: false });
  canvas.onkeydown = (event) => {
    const way = ARROWS[event.key], { current, picked } = map;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (way && event.shiftKey) moveBy(-40 * way[0], -40 * way[1]);
    else if (way) map.select(current < 0 ? 0 : towards(way), false);
    else if ((event.key === "Enter" || event.key === " ") && current >= 0) map.select(current, true);
    else if (event.key === "+" && current >= 0 && current < n)
      map.pick(picked.includes(current) ? picked.filter((i) => i !== current) : [...picked, current]);
    else if (event.key === "Escape") map.pick([]);
    else if (event.key === "]") zoomBy(STEP);
    else if (event.key === "[") zoomBy(1 / STEP);
    else if (event.key === "0") whole();
    else return;
    event.preventDefault(), event.stopPropagation();
  };
  function towards([dx, dy]) {
    const [x, y] = at(map.current);
    let best = map.current, least = Infinity;
    for (let i = 0; i < n + map.added.length; i++) {
      const [a, b] = at(i), along = (a - x) * dx + (b - y) * dy, off = Math.abs((a - x) * dy) + Math.abs((b - y) * dx);
      if (i !== map.current && along > 0.5 && off <= along && along + 2 * off < least) (least = along + 2 * off), (best = i);
    }
    return best;
  }
  const resized = new ResizeObserver(() => { stale = true; draw(); });
  resized.observe(canvas);
  return {
    box, draw, reveal,
    spoil() { stale = true; }, // colours have changed
    unsettle() { stale = true, settled = false; }, // places have changed
    leave() { map.hover(-1); tell(-1); },
    stop() { resized.disconnect(), clearTimeout(timer), cancelAnimationFrame(asked); },
  };
}
