// Supernodes: nodes of their own, whose links are the sums of their members' links with everything outside.
// They stand behind the file's nodes in graph.nodes, and their links behind the file's in graph.links.

// Brings nodes and links in line with state.groups and, where two graphs are compared, with state.view.
function regroup() {
  for (const n of graph.nodes.splice(graph.size)) graph.byId.delete(n.id);
  elements.splice(graph.size);
  state.hovered = state.edge = -1;
  if (state.selected >= graph.size) state.selected = -1;
  graph.memberOf.fill(-1);
  state.groups.forEach((group, k) => {
    const n = describeGroup(group, graph.size + k);
    graph.nodes.push(n);
    graph.byId.set(n.id, n.i);
    for (const i of group.members) graph.memberOf[i] = n.i;
  });
  graph.links = withSums(weightsInView());
  graph.inputs = groupBy(graph.links.target, graph.nodes.length);
  graph.outputs = groupBy(graph.links.source, graph.nodes.length);
}

// Where its most influential member stands, that is where a supernode stands.
function describeGroup({ name, members }, i) {
  const nodes = members.map((m) => graph.nodes[m]);
  const inner = nodes.filter((n) => n.kind !== "logit");
  const rank = (n) => n.influence ?? 2;
  const lead = (inner.length ? inner : nodes).reduce((best, n) => (rank(n) < rank(best) ? n : best));
  const top = Math.max(...graph.nodes.slice(0, graph.size).map((n) => (Number.isFinite(n.row) ? n.row : ROW_EMBED)));
  const n = {
    i, kind: "group", raw: {}, id: `group_${i - graph.size}`, pos: lead.pos, token: lead.token, probability: null,
    feature: null, influence: null, owner: -1, members, row: lead.kind === "logit" ? top : lead.row, side: null,
  };
  rename(n, name);
  return n;
}

function withSums(weight) {
  const { source, target, other } = graph.given;
  const n = graph.nodes.length;
  const sums = sumsOf(weight);
  const keys = Float64Array.from(sums.keys());
  const links = { count: source.length + keys.length };
  links.source = joined(Int32Array, source, keys.map((key) => Math.floor(key / n)));
  links.target = joined(Int32Array, target, keys.map((key) => key % n));
  links.weight = joined(Float64Array, weight, Float64Array.from(sums.values()));
  links.share = shareOfInput(links, sizesInView());
  links.order = strongestFirst(links.weight);
  if (other) {
    links.a = joined(Float64Array, graph.given.weight, Float64Array.from(sumsOf(graph.given.weight).values()));
    links.b = joined(Float64Array, other, Float64Array.from(sumsOf(other).values()));
  }
  return links;
}

// By source and target in one number, in an order that does not depend on the weights.
function sumsOf(weight) {
  const { source, target } = graph.given;
  const n = graph.nodes.length;
  const sums = new Map();
  const add = (s, t, w) => sums.set(s * n + t, (sums.get(s * n + t) ?? 0) + w);
  for (let e = 0; state.groups.length && e < source.length; e++) {
    const [from, to] = [graph.memberOf[source[e]], graph.memberOf[target[e]]];
    if (from === to) continue;
    if (from >= 0) add(from, target[e], weight[e]);
    if (to >= 0) add(source[e], to, weight[e]);
    if (from >= 0 && to >= 0) add(from, to, weight[e]);
  }
  return sums;
}

function joined(Kind, first, second) {
  const all = new Kind(first.length + second.length);
  all.set(first);
  all.set(second, first.length);
  return all;
}

// |weight| by what the target receives from the nodes of the file: sums are not counted beside what they sum.
function shareOfInput(links, sizes) {
  const total = new Float64Array(graph.nodes.length);
  for (let e = 0; e < links.count; e++) {
    if (links.source[e] < graph.size) total[links.target[e]] += e < sizes.length ? sizes[e] : Math.abs(links.weight[e]);
  }
  return Float32Array.from(links.weight, (w, e) => (w === 0 ? 0 : Math.abs(w) / total[links.target[e]]));
}

// One numeric sort: the bits of a positive float32 grow with it, and the link's number goes below them.
function strongestFirst(weight) {
  const bits = new Uint32Array(Float32Array.from(weight, Math.abs).buffer);
  const keys = Float64Array.from(bits, (b, e) => -(b * 2 ** 22 + (2 ** 22 - 1 - e))).sort();
  return Int32Array.from(keys, (key) => 2 ** 22 - 1 - (-key % 2 ** 22));
}

// Whether a node is there to be drawn and counted: a supernode when they are collapsed, its members when not.
function stands(i) {
  return i < graph.size ? !(state.collapsed && graph.memberOf[i] >= 0) : state.collapsed;
}

const standIn = (i) => (stands(i) ? i : graph.memberOf[i]);

// The links of a node with those that stand. A supernode's members do not count as its neighbours.
function inputsOf(i) {
  return graph.inputs.of(i).filter((e) => stands(graph.links.source[e]));
}

function outputsOf(i) {
  return graph.outputs.of(i).filter((e) => stands(graph.links.target[e]));
}

// The chosen nodes become one supernode; they leave the ones they were in.
function makeGroup(name, members) {
  leaveGroups(members);
  state.groups.push({ name: name.trim() || `supernode ${state.groups.length + 1}`, members });
  state.chosen.clear();
  regroup();
  select(graph.nodes.length - 1);
}

function addToGroup(i, members) {
  const group = state.groups[i - graph.size];
  leaveGroups(members.filter((m) => !group.members.includes(m)));
  group.members = [...new Set([...group.members, ...members])];
  state.chosen.clear();
  regroup();
  select(graph.size + state.groups.indexOf(group));
}

// Takes nodes out of their supernodes; one that has none left is gone.
function leaveGroups(members) {
  const gone = new Set(members);
  for (const group of state.groups) group.members = group.members.filter((m) => !gone.has(m));
  state.groups = state.groups.filter((group) => group.members.length);
}

function renameGroup(i, name) {
  if (name.trim()) state.groups[i - graph.size].name = name.trim();
  regroup();
  refresh();
}

function removeFromGroup(i, member) {
  const group = state.groups[i - graph.size];
  leaveGroups([member]);
  regroup();
  select(graph.size + state.groups.indexOf(group) >= graph.size ? graph.size + state.groups.indexOf(group) : -1);
}

function dissolve(i) {
  const { members } = state.groups[i - graph.size];
  leaveGroups(members);
  regroup();
  select(members[0]);
}
