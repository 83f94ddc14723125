// What the pieces of the map are made of: elements, geometry, colours, the curve of scores, CSV.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name in made ? (made[name] = value) : made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function within([x, y], polygon) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [a, b] = polygon[i], [c, d] = polygon[j];
    if (b > y !== d > y && x < ((c - a) * (y - b)) / (d - b) + a) inside = !inside;
  }
  return inside;
}

// Red, green, blue and relative luminance of a CSS colour, "#rrggbb" or "rgb(…)".
function parsed(colour) {
  const hex = colour.match(/^#(..)(..)(..)$/), numbers = colour.match(/[\d.]+/g) || [255, 255, 255];
  const rgb = hex ? hex.slice(1).map((pair) => parseInt(pair, 16)) : numbers.slice(0, 3).map(Number);
  const [r, g, b] = rgb.map((value) => (value / 255) ** 2.2);
  return { rgb, light: 0.2126 * r + 0.7152 * g + 0.0722 * b };
}

// A colour of the palette; on a dark ground one that would sink into it is made lighter.
export function visible(colour, ground) {
  const { light, rgb } = parsed(colour), under = parsed(ground).light;
  if (under > 0.2 || (light + 0.05) / (under + 0.05) > 3) return colour;
  return `rgb(${rgb.map((value) => Math.round((value + 255) / 2)).join(", ")})`;
}

// The form of each value's points: where there are more values than colours, 0 a disc, 1 a square, 2 a triangle.
export function forms(colours) {
  const seen = new Map();
  return colours.map((colour) => {
    const before = seen.get(colour) ?? 0;
    seen.set(colour, before + 1);
    return Math.min(2, before);
  });
}

// A table as CSV. A spreadsheet would run text that begins so as a formula: it gets an apostrophe in front.
export function csv(rows) {
  const cell = (text) => {
    const safe = /^[=+\-@\t\r]/.test(text) && !Number.isFinite(Number(text)) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return rows.map((row) => `${row.map((value) => cell(String(value))).join(",")}\n`).join("");
}

export function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function drawing(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// The scores as a curve with its band of intervals; `move` puts the dot at one of them, or between two.
export function curve(names, scores) {
  const width = 280, height = 150, left = 38, right = 10, top = 10, bottom = 34, last = names.length - 1;
  const low = Math.floor(10 * Math.min(...scores.map((s) => s.low))) / 10;
  const high = Math.ceil(10 * Math.max(...scores.map((s) => s.high))) / 10;
  const x = (i) => left + (i * (width - left - right)) / (last || 1);
  const y = (share) => top + ((high - share) * (height - top - bottom)) / (high - low || 1);
  const line = (part) => scores.map((s, i) => `${x(i)},${y(s[part])}`);
  const words = (content, at, anchor) => drawing("text", { x: at[0], y: at[1], "text-anchor": anchor }, content);
  const dot = drawing("circle", { r: 5, class: "cola-score-now" });
  const told = `accuracy of the nearest neighbour: ${scores.map((s, i) => `${names[i]}, ${Math.round(100 * s.mean)}%`).join("; ")}`;
  const box = drawing("svg", { viewBox: `0 0 ${width} ${height}`, class: "cola-scores", role: "img", "aria-label": told },
    drawing("polygon", { points: [...line("high"), ...line("low").reverse()].join(" "), class: "cola-score-band" }),
    drawing("polyline", { points: line("mean").join(" "), class: "cola-score-line" }), dot,
    ...[low, high].map((share) => words(`${Math.round(100 * share)}%`, [left - 6, y(share) + 4], "end")),
    words(names[0], [x(0), height - bottom + 16], "start"), words(names[last], [x(last), height - bottom + 16], "end"));
  function move(moment) {
    const a = Math.floor(moment), b = Math.ceil(moment), share = scores[a].mean + (moment - a) * (scores[b].mean - scores[a].mean);
    dot.setAttribute("cx", x(moment)), dot.setAttribute("cy", y(share));
  }
  return { box, move };
}
