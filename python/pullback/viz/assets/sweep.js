// A sweep: the curves of one evaluation, published ones beside them, and a table of all arms.

const data = JSON.parse($("data").textContent);
const NAMES = { l0: "L0", fvu: "FVU (NMSE)", dead: "Dead", ce_replaced: "CE", ce_recovered: "CE recovered, mean", ce_recovered_from_zero: "CE recovered, zero", kl: "KL", top1_agreement: "Top-1" };
const DASHES = ["", "dash-1", "dash-2", "dash-3"];
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function armText(arm, figures) {
  return `${arm.kind} ${arm.architecture}, ${arm.setting} ${arm.value}, seed ${arm.seed}: L0 ${plain(figures.l0)}, CE ${figures.ce_replaced.toFixed(4)}`;
}

// A curve for each kind and architecture: a dot an arm, the line through the means over seeds.
function curvesOf(evaluation) {
  const architectures = [...new Set(data.arms.map((arm) => arm.architecture))];
  const curves = [];
  for (const kind of [...new Set(data.arms.map((arm) => arm.kind))]) {
    for (const architecture of architectures) {
      const settings = new Map();
      for (const arm of data.arms.filter((one) => one.kind === kind && one.architecture === architecture)) {
        const own = arm.figures[evaluation];
        if (!(own.l0 > 0) || own.ce_replaced === null) continue;
        settings.set(arm.value, [...(settings.get(arm.value) ?? []), { x: own.l0, y: own.ce_replaced, text: armText(arm, own) }]);
      }
      const groups = [...settings.values()];
      if (!groups.length) continue;
      const line = groups.map((group) => ({ x: mean(group.map((p) => p.x)), y: mean(group.map((p) => p.y)) })).sort((a, b) => a.x - b.x);
      curves.push({ name: `${kind} ${architecture}`, style: `${kind} ${DASHES[architectures.indexOf(architecture) % DASHES.length]}`, line, points: groups.flat() });
    }
  }
  for (const { kind, source, points } of data.published) {
    const own = points.map(({ l0, ce }) => ({ x: l0, y: ce, text: `${kind}, ${source}: L0 ${l0}, CE ${ce}` })).sort((a, b) => a.x - b.x);
    curves.push({ name: `${kind}, ${source}`, style: `${kind} published`, line: own, points: own });
  }
  return curves;
}

function drawChart(evaluation) {
  const curves = curvesOf(evaluation);
  const first = data.arms[0].figures[evaluation];
  const levels = Object.entries(data.levels).filter(([name]) => first[name] !== null).map(([name, text]) => ({ name: text, y: first[name] }));
  const values = curves.flatMap((curve) => curve.points.map((point) => point.y));
  const within = $("bounds").checked ? levels.map((level) => level.y) : [first.ce_original];
  const range = [Math.min(...values, ...within), Math.max(...values, ...within)];
  $("chart").replaceChildren(curves.length ? chartOf({ curves, levels, range, xLabel: "L0, mean over layers", yLabel: "cross-entropy, all layers replaced (nats)" }) : h("p", {}, "No arm has both an L0 and a loss."));
  $("legend").replaceChildren(...curves.map(({ name, style }) => {
    const sample = svg("svg", { viewBox: "0 0 30 10", class: "sample", "aria-hidden": "true" });
    svg("path", { class: `curve ${style}`, d: "M0 5H30" }, sample);
    svg("circle", { class: `dot ${style}`, cx: 15, cy: 5, r: 4 }, sample);
    return h("li", {}, sample, name);
  }));
}

function drawTable(evaluation) {
  const cell = (name, value) => h("td", { class: "number" }, value === null ? "–" : name === "dead" || name === "top1_agreement" ? percent(value) : name === "l0" ? value.toFixed(1) : value.toFixed(4));
  $("table").replaceChildren(
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Arm"), ...data.columns.map((name) => h("th", { scope: "col", class: "number" }, NAMES[name])))),
    h("tbody", {}, ...data.arms.map((arm) => h("tr", {}, h("th", { scope: "row" }, `${arm.kind} ${arm.architecture} ${arm.setting} ${arm.value} seed ${arm.seed}`),
      ...data.columns.map((name) => cell(name, arm.figures[evaluation][name]))))));
}

function draw() {
  drawChart($("evaluation").value);
  drawTable($("evaluation").value);
}

$("heading").textContent = data.title;
$("source").textContent = `${data.arms.length} arm${data.arms.length === 1 ? "" : "s"}${data.published.length ? " · hollow: published" : ""}`;
$("evaluation").replaceChildren(...data.evaluations.map((name) => h("option", { value: name }, name)));
$("which").hidden = data.evaluations.length < 2;
$("evaluation").addEventListener("change", draw);
$("bounds").addEventListener("change", draw);
listenToTheme(() => {});
draw();
