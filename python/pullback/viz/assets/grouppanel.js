// Supernodes in the side panel: the nodes chosen for one, those there are, and the members of the selected one.

function chosenList(typed) {
  if (!state.chosen.size) return null;
  const chosen = [...state.chosen];
  const remove = (i) => quietButton("×", { "data-unchoose": i, "aria-label": `Leave out ${graph.nodes[i].label}`, title: "Leave out" });
  const name = h("input", { id: "group-name", type: "text", placeholder: "Name of the supernode", "aria-label": "Name of the supernode", autocomplete: "off", value: typed });
  const into = state.groups.map((group, k) => h("option", { value: graph.size + k }, clip(visible(group.name), 30)));
  return h("section", { id: "chosen", class: "listed", "aria-label": "Chosen nodes" },
    h("h2", {}, "Chosen ", h("small", {}, String(chosen.length)), quietButton("clear", { id: "unchoose-all" })),
    h("ul", {}, ...chosen.map((i) => h("li", {}, nodeButton(i), remove(i)))),
    h("div", { id: "group-form" }, name, h("button", { type: "button", id: "make-group" }, "Group")),
    into.length ? h("label", { class: "into" }, "or add to ", h("select", { id: "add-to" }, h("option", { value: "" }, "…"), ...into)) : null);
}

function groupList() {
  if (!state.groups.length) return null;
  const items = state.groups.map((group, k) => h("li", { class: `tint-${k % 5}` }, nodeButton(graph.size + k)));
  return h("section", { id: "groups", class: "listed", "aria-label": "Supernodes" },
    h("h2", {}, "Supernodes ", h("small", {}, String(items.length))), h("ul", {}, ...items));
}

function memberList(n) {
  const remove = (m) => quietButton("×", { "data-leave": m, "aria-label": `Take out ${graph.nodes[m].label}`, title: "Take out" });
  return h("ul", { id: "members", "aria-label": "Members" }, ...n.members.map((m) => h("li", {}, nodeButton(m), remove(m))));
}

function quietButton(text, more) {
  return h("button", { type: "button", class: "quiet", ...more }, text);
}

function choose(i) {
  if (i < 0 || i >= graph.size) return;
  if (!state.chosen.delete(i)) state.chosen.add(i);
  refresh();
  const n = graph.nodes[i];
  $("announce").textContent = `${state.chosen.has(i) ? "Chosen" : "Left out"}: ${spoken(n)}; ${state.chosen.size} chosen`;
}

// The heading of the selected node becomes a field; Enter takes what was typed, Escape leaves all as it was.
function editName() {
  const n = graph.nodes[state.selected];
  const heading = $("selected-node").querySelector("h2");
  const field = h("input", { id: "name-field", type: "text", "aria-label": n.kind === "group" ? "Name of the supernode" : "Label of the feature", value: n.name, autocomplete: "off" });
  heading.replaceChildren(field);
  field.select();
  let done = false;
  const finish = (take) => {
    if (done) return;
    done = true;
    const i = n.i;
    if (take && n.kind === "group") renameGroup(i, field.value);
    else if (take) setLabel(i, field.value);
    select(i);
    $("rename")?.focus();
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") finish(true);
    if (event.key === "Escape") finish(false);
    event.stopPropagation();
  });
  field.addEventListener("blur", () => finish(true));
}

function listenToGroups() {
  const make = () => makeGroup($("group-name").value, [...state.chosen]);
  // No form: a sandboxed frame would not let it be sent.
  $("panel").addEventListener("keydown", (event) => { if (event.target.id === "group-name" && event.key === "Enter") make(); });
  $("panel").addEventListener("change", (event) => {
    if (event.target.id === "add-to" && event.target.value) addToGroup(Number(event.target.value), [...state.chosen]);
  });
  $("panel").addEventListener("click", (event) => {
    const { unchoose, leave } = event.target.closest("[data-unchoose], [data-leave]")?.dataset ?? {};
    const { id } = event.target;
    if (unchoose !== undefined) choose(Number(unchoose));
    else if (leave !== undefined) removeFromGroup(state.selected, Number(leave));
    else if (id === "make-group") make();
    else if (id === "unchoose-all") { state.chosen.clear(); refresh(); }
    else if (id === "dissolve") dissolve(state.selected);
    else if (id === "rename") editName();
    else if (id === "choose") { choose(state.selected); $("choose")?.focus(); }
  });
  $("collapse").addEventListener("change", () => { state.collapsed = $("collapse").checked; refresh(); });
}
