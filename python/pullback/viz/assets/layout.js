// Geometry: x is the token position, y the layer. Pure: from the nodes shown and the size of the window
// to coordinates; nothing here touches the page but a canvas that measures text.

const NODE_GAP = { least: 7.5, most: 25 };
const TOKEN_WIDTH = { most: 110, squeezed: 48, upright: 22 };
const COLUMN_PAD = 14;
const ROW_PAD = 12;
const PILL = { height: 24, gap: 6, pad: 10 };
const measure = (() => {
  const pen = document.createElement("canvas").getContext("2d");
  return (text, font) => { pen.font = font; return pen.measureText(text).width; };
})();
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";

// Returns {width, height, radius, columns[], rows[], x, y, pills}. x and y are NaN for nodes that are not shown.
function layout(shown, width, height) {
  const cells = fillCells(shown);
  const texts = graph.tokens.map((t) => Math.min(TOKEN_WIDTH.most, measure(clip(visible(t), 24), `13px ${FONT}`) + 14));
  const pills = measurePills(shown);
  const bandHeight = logitBand(pills, width);
  const rowIds = rowNumbers();
  const lanes = spread(cells, rowIds, texts, width, height - bandHeight);
  const columns = placeColumns(lanes, texts, width);
  const worldWidth = columns.length ? columns.at(-1).x + columns.at(-1).width : width;
  const rows = placeRows(rowIds, lanes, bandHeight, height);
  const worldHeight = rows.length ? rows[0].y + rows[0].height : height;
  const x = new Float32Array(graph.nodes.length).fill(NaN);
  const y = new Float32Array(graph.nodes.length).fill(NaN);
  for (const cell of cells.values()) placeCell(cell, columns[cell.pos], rows.find((r) => r.row === cell.row), lanes, x, y);
  placePills(pills, columns, worldWidth, bandHeight, x, y);
  const logitRow = { row: ROW_LOGIT, y: 0, height: bandHeight };
  const radius = Math.max(2.8, Math.min(7.5, lanes.gap * 0.33));
  const named = pills.length ? [...rows, logitRow] : rows;
  return { width: worldWidth, height: worldHeight, radius, columns, rows: named, x, y, pills };
}

const CELL_ORDER = { logit: 0, embedding: 0, position: 1, group: 2, feature: 3, head: 4, skip: 5, error: 6, bias: 7, own: 8 };

// Within a cell the most influential features come first, the leaves last.
function inCellOrder(a, b) {
  return CELL_ORDER[a.kind] - CELL_ORDER[b.kind] || (a.influence ?? 1) - (b.influence ?? 1) || a.i - b.i;
}

function fillCells(shown) {
  const cells = new Map();
  for (const n of shown) {
    if (n.kind === "logit") continue;
    const key = `${n.row},${n.pos}`;
    if (!cells.has(key)) cells.set(key, { row: n.row, pos: n.pos, members: [] });
    cells.get(key).members.push(n);
  }
  for (const cell of cells.values()) cell.members.sort(inCellOrder);
  return cells;
}

// Every layer has a row, also the ones whose nodes are pruned: an axis must not jump. Embeddings have one where the
// graph has any, which one of paths may not.
function rowNumbers() {
  const found = graph.nodes.map((n) => n.row).filter(Number.isFinite);
  const first = found.length && !found.includes(ROW_EMBED) ? 0 : ROW_EMBED;
  const top = Math.ceil(found.reduce((m, row) => Math.max(m, row), ROW_EMBED));
  const between = new Set(found.filter((row) => !Number.isInteger(row)));
  return [...Array.from({ length: top - first + 1 }, (_, k) => first + k), ...between].sort((a, b) => a - b);
}

// How many nodes a cell may stack: tries each depth and keeps the one that leaves nodes furthest apart.
// Columns take the lanes their fullest cell needs, rows the depth theirs needs. Tokens are written along the
// line as long as the nodes can stay apart beside them, else upright.
function spread(cells, rowIds, texts, width, height) {
  const fullest = new Array(graph.tokens.length).fill(0);
  for (const c of cells.values()) fullest[c.pos] = Math.max(fullest[c.pos], c.members.length);
  const attempt = (depth, floors) => {
    const perColumn = fullest.map((m) => Math.max(1, Math.ceil(m / depth)));
    const perRow = new Map(rowIds.map((r) => [r, 1]));
    for (const c of cells.values()) {
      perRow.set(c.row, Math.max(perRow.get(c.row), Math.ceil(c.members.length / perColumn[c.pos])));
    }
    const down = (height - rowIds.length * ROW_PAD) / sum(perRow.values());
    return { gap: Math.min(widestGap(perColumn, floors, width), down), perColumn, perRow };
  };
  const bestOf = (floors) => {
    let best = null;
    for (let depth = 1; depth <= 12; depth++) {
      const next = attempt(depth, floors);
      // A deeper stack must win clearly: one line of nodes reads better than two.
      if (!best || next.gap > best.gap * 1.12) best = next;
    }
    return best;
  };
  let best = bestOf(texts.map((t) => Math.min(t, TOKEN_WIDTH.squeezed)));
  const upright = best.gap < 1.4 * NODE_GAP.least;
  if (upright) best = bestOf(texts.map(() => TOKEN_WIDTH.upright));
  return { ...best, upright, gap: Math.max(best.gap, NODE_GAP.least) };
}

// The largest gap at which all columns, none narrower than its floor, fit into the width; by bisection.
function widestGap(perColumn, floors, width) {
  const fits = (gap) => sum(perColumn.map((lane, p) => Math.max(lane * gap + COLUMN_PAD, floors[p]))) <= width;
  if (fits(NODE_GAP.most)) return NODE_GAP.most;
  let [low, high] = [0, NODE_GAP.most];
  for (let step = 0; step < 12; step++) {
    const middle = (low + high) / 2;
    if (fits(middle)) low = middle;
    else high = middle;
  }
  return low;
}

// Columns grow from what their nodes and, as far as there is room, their token's text need; they share what is left
// by node count.
function placeColumns(lanes, texts, width) {
  const needs = lanes.perColumn.map((lane) => lane * lanes.gap + COLUMN_PAD);
  const allow = (most) => needs.map((need, p) => Math.max(need, Math.min(texts[p], most)));
  const caps = lanes.upright ? [TOKEN_WIDTH.upright] : [TOKEN_WIDTH.most, 80, 60, TOKEN_WIDTH.squeezed];
  const base = allow(caps.find((most) => sum(allow(most)) <= width) ?? caps.at(-1));
  const left = Math.max(0, width - sum(base));
  const lanesAll = sum(lanes.perColumn);
  let x = 0;
  return base.map((w, p) => {
    const column = { x, width: w + (left * lanes.perColumn[p]) / lanesAll, upright: lanes.upright };
    x += column.width;
    return column;
  });
}

// From the bottom (embeddings) up; spare height goes to all rows alike.
function placeRows(rowIds, lanes, bandHeight, height) {
  const needs = rowIds.map((r) => lanes.perRow.get(r) * lanes.gap + ROW_PAD);
  const spare = Math.max(0, height - bandHeight - sum(needs)) / rowIds.length;
  const rows = [];
  let y = bandHeight;
  for (let k = rowIds.length - 1; k >= 0; k--) {
    rows.unshift({ row: rowIds[k], y, height: needs[k] + spare });
    y += needs[k] + spare;
  }
  return rows;
}

function placeCell(cell, column, row, lanes, x, y) {
  // Embeddings stack in all columns or in none, so that tokens stay in line.
  const needed = Math.ceil(cell.members.length / lanes.perColumn[cell.pos]);
  const lines = cell.row === ROW_EMBED ? Math.min(cell.members.length, lanes.perRow.get(ROW_EMBED)) : needed;
  const perLine = Math.ceil(cell.members.length / lines);
  const gapX = Math.min((column.width - COLUMN_PAD) / lanes.perColumn[cell.pos], lanes.gap * 1.7);
  cell.members.forEach((n, k) => {
    const line = Math.floor(k / perLine);
    const inLine = Math.min(perLine, cell.members.length - line * perLine);
    x[n.i] = column.x + column.width / 2 + ((k % perLine) - (inLine - 1) / 2) * gapX;
    y[n.i] = row.y + row.height / 2 + (line - (lines - 1) / 2) * lanes.gap;
  });
}

function measurePills(shown) {
  const logits = shown.filter((n) => n.kind === "logit").sort((a, b) => a.pos - b.pos || b.probability - a.probability);
  return logits.map((n) => {
    const text = clip(n.label, 16);
    const share = percent(n.probability);
    const wordWidth = measure(text, `600 12.5px ${FONT}`);
    const width = wordWidth + measure(share, `11px ${FONT}`) + 2 * PILL.pad + 7;
    return { i: n.i, text, share, wordWidth, width, height: PILL.height };
  });
}

// Breaks the pills into lines; returns the height of the band they stand in.
function logitBand(pills, width) {
  let line = 0;
  let used = 0;
  for (const p of pills) {
    if (used > 0 && used + p.width > width - 12) { line++; used = 0; }
    p.line = line;
    used += p.width + PILL.gap;
  }
  return pills.length ? (line + 1) * (PILL.height + PILL.gap) + 22 : 14;
}

// Each line stands over its position, moved inwards as far as the edges ask.
function placePills(pills, columns, worldWidth, bandHeight, x, y) {
  for (let line = 0; ; line++) {
    const members = pills.filter((p) => p.line === line);
    if (!members.length) return;
    const total = sum(members.map((p) => p.width + PILL.gap)) - PILL.gap;
    const centres = members.map((p) => columns[graph.nodes[p.i].pos]).map((c) => c.x + c.width / 2);
    const middle = sum(centres) / centres.length;
    let left = Math.max(6, Math.min(middle - total / 2, worldWidth - total - 6));
    for (const p of members) {
      x[p.i] = left + p.width / 2;
      y[p.i] = 12 + PILL.height / 2 + line * (PILL.height + PILL.gap);
      left += p.width + PILL.gap;
    }
  }
}

function sum(values) {
  let total = 0;
  for (const v of values) total += v;
  return total;
}
