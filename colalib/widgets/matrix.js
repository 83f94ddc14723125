// A confusion matrix as one table. A press on a cell tells the kernel which one; names are never read as HTML.

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0], PageDown: [10, 0],
  Home: [0, -Infinity], End: [0, Infinity] };
const RIGHT = "0, 158, 115", WRONG = "213, 94, 0"; // red, green, blue: the palette's green on the diagonal, its red elsewhere

function element(tag, attributes = {}, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

function render({ model, el }) {
  const words = element("div", { className: "cola-cell-words" });
  const table = element("table");
  table.setAttribute("role", "grid");
  table.setAttribute("aria-label", "confusion matrix: rows are true classes, columns the model's answers");
  // JupyterLab would take the arrow keys and Enter for itself
  const root = element("div", { className: "cola-matrix" }, words, element("div", { className: "cola-scroll" }, table));
  root.dataset.lmSuppressShortcuts = "true";
  el.append(root);
  let classes, counts, current = [0, 0]; // the cell that Tab reaches

  const cell = ([row, column]) => table.rows[row + 1].cells[column + 1];
  const place = (td) => [td.parentNode.rowIndex - 1, td.cellIndex - 1];
  function describe([row, column]) {
    return `${classes[row]} called ${classes[column]}: ${+counts[row * classes.length + column].toFixed(1)} clips`;
  }
  function draw() {
    const content = model.get("content"), bytes = content.counts;
    classes = content.classes;
    counts = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    const n = classes.length, most = counts.reduce((a, b) => Math.max(a, b), 0) || 1;
    const size = Math.max(8, Math.min(44, Math.floor(600 / n)));
    root.style.setProperty("--size", `${size}px`);
    root.classList.toggle("cola-tiny", size < 11); // names of rows and columns would be too small to read
    const name = (text, scope) => element("th", { scope, title: text }, element("div", { textContent: text }));
    const rows = classes.map((label, row) => {
      const cells = classes.map((_, column) => {
        const count = counts[row * n + column], td = document.createElement("td");
        if (count) td.style.background = `rgba(${row === column ? RIGHT : WRONG}, ${0.12 + (0.63 * count) / most})`;
        if (count && size >= 20) td.textContent = count.toFixed(0);
        return td;
      });
      return element("tr", {}, name(label, "row"), ...cells);
    });
    table.replaceChildren(element("tr", {}, element("th"), ...classes.map((label) => name(label, "col"))), ...rows);
    current = current.map((i) => Math.min(i, n - 1));
    cell(current).tabIndex = 0;
    words.textContent = "";
  }
  function show(at) { words.textContent = describe(at); }
  function under(event) {
    const td = event.target.closest("td");
    return td && td.parentNode.rowIndex && td.cellIndex ? place(td) : null;
  }
  function go(at) {
    cell(current).removeAttribute("tabindex");
    current = at;
    cell(at).tabIndex = 0;
    cell(at).setAttribute("aria-label", describe(at));
    cell(at).focus();
  }
  function press([row, column]) {
    if (!counts[row * classes.length + column]) return;
    table.querySelector(".cola-pressed")?.classList.remove("cola-pressed");
    cell([row, column]).classList.add("cola-pressed");
    model.send({ label: classes[row], predicted: classes[column] });
  }
  let pointer = ""; // a table that scrolls under a resting pointer does not count as pointing
  table.onpointerover = (event) => {
    const at = `${event.clientX} ${event.clientY}`;
    if (at !== pointer && under(event)) show(under(event));
    pointer = at;
  };
  table.onpointerleave = () => { words.textContent = table.contains(document.activeElement) ? describe(current) : ""; };
  table.addEventListener("focusin", (event) => { if (under(event)) show(under(event)); });
  table.onclick = (event) => { if (under(event)) go(under(event)), press(current); };
  table.onkeydown = (event) => {
    const step = STEPS[event.key], last = classes.length - 1;
    if (step) go(current.map((i, d) => Math.max(0, Math.min(last, i + step[d]))));
    else if (event.key === "Enter" || event.key === " ") press(current);
    else return;
    event.preventDefault(), event.stopPropagation();
  };
  model.on("change:content", draw);
  draw();
}

export default { render };
