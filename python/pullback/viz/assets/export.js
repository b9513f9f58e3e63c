// The graph as a picture: SVG with everything spelt out, so that it looks the same anywhere; PNG drawn from it.

const SPELT = ["fill", "stroke", "stroke-dasharray", "opacity", "font-size", "font-weight", "font-family"];
const MARGIN = { left: 44, bottom: 40, top: 34, right: 10 };

function svgText() {
  const place = currentPlace();
  const [width, height] = [place.width + MARGIN.left + MARGIN.right, place.height + MARGIN.top + MARGIN.bottom];
  const picture = svg("svg", { xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}`, "font-family": FONT, "font-size": 12 });
  svg("title", {}, picture).textContent = document.title;
  svg("rect", { width, height, fill: ink.paper }, picture);
  svg("text", { x: MARGIN.left, y: 22, fill: ink.ink, "font-size": 15, "font-weight": 600 }, picture).textContent = $("prompt").textContent;
  const body = svg("g", { transform: `translate(${MARGIN.left} ${MARGIN.top})` }, picture);
  drawFrame(place, body);
  const focused = focus.list.length > 0;
  drawPaths(place, base.list, baseStrength(base.list.length), svg("g", { fill: "none", opacity: focused ? 0.14 : 1 }, body));
  if (focused) drawPaths(place, focus.list, focusStrength(focus.list.length), svg("g", { fill: "none" }, body));
  const copy = world.cloneNode(true);
  spellOut(world, copy);
  body.append(...copy.children);
  return new XMLSerializer().serializeToString(picture);
}

// Bands of the layers with their names, columns with their tokens.
function drawFrame(place, body) {
  place.rows.forEach(({ row, y, height }, k) => {
    svg("rect", { x: 0, y, width: place.width, height, fill: k % 2 ? ink.paper : ink.band }, body);
    if (height >= 12) svg("text", { x: -8, y: y + height / 2 + 4, "text-anchor": "end", fill: ink["ink-soft"], "font-size": 11 }, body).textContent = rowName(row);
  });
  place.columns.forEach(({ x, width, upright }, p) => {
    svg("path", { d: `M${x + width} 0V${place.height}`, stroke: ink.line, "stroke-dasharray": "3 3" }, body);
    const [cx, cy] = [x + width / 2, place.height + (upright ? 8 : 20)];
    const turn = upright ? { transform: `rotate(45 ${cx} ${cy})` } : { "text-anchor": "middle" };
    svg("text", { x: cx, y: cy, fill: ink.ink, ...turn }, body).textContent = clip(visible(graph.tokens[p]), upright ? 6 : 16);
  });
}

function drawPaths(place, list, strength, parent) {
  inBuckets(list, strength, ({ colour, alpha, width, dash }, links) => {
    const d = [];
    const recorder = {
      moveTo: (...at) => d.push(`M${at.map((v) => v.toFixed(1)).join(" ")}`),
      bezierCurveTo: (...at) => d.push(`C${at.map((v) => v.toFixed(1)).join(" ")}`),
    };
    for (const e of links) trace(recorder, place, e);
    const line = { d: d.join(""), stroke: colour, "stroke-opacity": alpha.toFixed(3), "stroke-width": width.toFixed(2) };
    svg("path", dash.length ? { ...line, "stroke-dasharray": dash.join(" ") } : line, parent);
  });
}

// What the style sheet says becomes attributes of each element; what only the page needs goes.
function spellOut(from, to, scale = 1) {
  const style = getComputedStyle(from);
  const within = scale * Number(/scale\(([\d.]+)\)/.exec(from.getAttribute("transform"))?.[1] ?? 1);
  for (const name of SPELT) to.setAttribute(name, plainColour(style.getPropertyValue(name)));
  // Strokes do not grow with a symbol, which few programs but browsers can be told.
  to.setAttribute("stroke-width", Number.parseFloat(style.strokeWidth) / within);
  for (const name of ["class", "style", "tabindex", "role", "aria-label", "aria-pressed", "aria-hidden"]) to.removeAttribute(name);
  for (const name of Object.keys(to.dataset)) delete to.dataset[name];
  [...from.children].forEach((child, k) => spellOut(child, to.children[k], within));
}

// Mixed colours as any program reads them: color(srgb 1 0.5 0 / 0.3) is rgba(255, 128, 0, 0.3).
function plainColour(value) {
  return value.replace(/color\(srgb ([\d.e-]+) ([\d.e-]+) ([\d.e-]+)(?: \/ ([\d.e-]+))?\)/g,
    (_, r, g, b, alpha = 1) => `rgba(${[r, g, b].map((part) => Math.round(255 * part)).join(", ")}, ${alpha})`);
}

async function pngBlob(text) {
  const image = new Image();
  const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  try {
    image.src = url;
    await image.decode();
  } finally {
    URL.revokeObjectURL(url);
  }
  // Twice the size for print, less where a canvas would be too large.
  const scale = Math.min(2, 8000 / Math.max(image.width, image.height));
  const canvas = h("canvas", { width: Math.round(image.width * scale), height: Math.round(image.height * scale) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function listenToSaving() {
  const closeMenu = () => { $("save").open = false; $("save").querySelector("summary").focus(); };
  const does = {
    "save-svg": () => download(`${graph.metadata.slug}.svg`, "image/svg+xml", svgText()),
    "save-png": async () => download(`${graph.metadata.slug}.png`, "image/png", await pngBlob(svgText())),
    "save-notes": downloadNotes,
    "load-notes": () => $("notes-file").click(),
    "reset-notes": resetNotes,
  };
  $("save").addEventListener("click", (event) => {
    const act = does[event.target.id];
    if (!act) return;
    closeMenu();
    act();
  });
  $("save").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && $("save").open) { closeMenu(); event.stopPropagation(); }
  });
  document.addEventListener("click", (event) => { if (!$("save").contains(event.target)) $("save").open = false; });
  $("notes-file").addEventListener("change", () => {
    if ($("notes-file").files.length) loadNotes($("notes-file").files[0]);
    $("notes-file").value = "";
  });
}
