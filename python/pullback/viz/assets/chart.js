// A chart of curves over a logarithmic axis, between levels that hold for all of them.

const SIZE = { width: 900, height: 420, left: 64, right: 20, top: 16, bottom: 44 };

function ticksBetween(low, high, count = 6) {
  const step = (high - low) / count;
  const base = 10 ** Math.floor(Math.log10(step));
  const nice = [1, 2, 5, 10].map((k) => k * base).find((candidate) => candidate >= step);
  const ticks = [];
  for (let k = Math.ceil(low / nice - 1e-9); k * nice <= high * (1 + 1e-12); k++) ticks.push(k * nice);
  return ticks;
}

function doublingsBetween(low, high) {
  const ticks = [];
  for (let k = Math.ceil(Math.log2(low) - 1e-9); 2 ** k <= high * 1.0001; k++) ticks.push(2 ** k);
  return ticks.length > 1 ? ticks : [low, high];
}

// curves: [{style, line: [{x, y}], points: [{x, y, text}]}]; levels: [{name, y}]. Those beyond the range are named only.
function chartOf({ curves, levels, range, xLabel, yLabel }) {
  const points = curves.flatMap((curve) => curve.points);
  const [x0, x1] = [Math.min(...points.map((p) => p.x)) / 1.15, Math.max(...points.map((p) => p.x)) * 1.15];
  const pad = 0.06 * (range[1] - range[0] || 1);
  const [y0, y1] = [range[0] - pad, range[1] + pad];
  const X = (x) => SIZE.left + ((SIZE.width - SIZE.left - SIZE.right) * Math.log(x / x0)) / Math.log(x1 / x0);
  const Y = (y) => SIZE.top + (SIZE.height - SIZE.top - SIZE.bottom) * (1 - (y - y0) / (y1 - y0));
  const picture = svg("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "img", "aria-label": `${yLabel} over ${xLabel}` });
  const text = (content, at) => { svg("text", at, picture).textContent = content; };
  for (const tick of doublingsBetween(x0, x1)) {
    svg("path", { class: "rule", d: `M${X(tick)} ${SIZE.top}V${SIZE.height - SIZE.bottom}` }, picture);
    text(String(Number(tick.toPrecision(3))), { x: X(tick), y: SIZE.height - SIZE.bottom + 16, "text-anchor": "middle" });
  }
  for (const tick of ticksBetween(y0, y1)) {
    svg("path", { class: "rule", d: `M${SIZE.left} ${Y(tick)}H${SIZE.width - SIZE.right}` }, picture);
    text(String(Number(tick.toPrecision(6))), { x: SIZE.left - 8, y: Y(tick) + 4, "text-anchor": "end" });
  }
  text(xLabel, { x: (SIZE.left + SIZE.width) / 2, y: SIZE.height - 8, "text-anchor": "middle", class: "axis" });
  text(yLabel, { x: -(SIZE.height - SIZE.bottom) / 2, y: 14, transform: "rotate(-90)", "text-anchor": "middle", class: "axis" });
  let beyond = 0;
  let lowest = -Infinity; // names of levels that lie close together stand below each other
  for (const { name, y } of levels.toSorted((a, b) => b.y - a.y)) {
    const at = { class: "name", x: SIZE.width - SIZE.right, "text-anchor": "end" };
    if (y >= y0 && y <= y1) {
      svg("path", { class: "level", d: `M${SIZE.left} ${Y(y)}H${SIZE.width - SIZE.right}` }, picture);
      lowest = Math.max(Y(y) - 5, lowest + 15);
      text(`${name}: ${y.toFixed(3)}`, { ...at, y: lowest });
    } else {
      text(`${name}: ${y.toFixed(3)}, ${y > y1 ? "above" : "below"}`, { ...at, y: SIZE.top + 14 + 16 * beyond++ });
    }
  }
  for (const { style, line, points: own } of curves) {
    const path = line.map(({ x, y }, k) => `${k ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
    svg("path", { class: `curve ${style}`, d: path }, picture);
    for (const point of own) {
      const dot = svg("circle", { class: `dot ${style}`, cx: X(point.x).toFixed(1), cy: Y(point.y).toFixed(1), r: 4 }, picture);
      svg("title", {}, dot).textContent = point.text;
    }
  }
  return picture;
}
