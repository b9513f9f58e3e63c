// Elements, files, what the browser keeps, light and dark: what every page is made with.

const $ = (id) => document.getElementById(id);
const SVG = document.querySelector("svg").namespaceURI;

function svg(tag, attributes, parent) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (parent) parent.append(element);
  return element;
}

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((c) => c !== null && c !== undefined));
  return element;
}

// A page inside an iframe's srcdoc has no storage, and a full one refuses: what is kept then lasts as long as the page.
const storage = {
  read(name) {
    try { return localStorage.getItem(name); } catch { return null; }
  },
  write(name, text) {
    try {
      if (text === null) localStorage.removeItem(name);
      else localStorage.setItem(name, text);
    } catch { /* see above */ }
  },
};

function download(name, type, content) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// Follows the system until the reader says otherwise; the choice holds for all pages of this browser.
function listenToTheme(recoloured) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const recolour = () => {
    $("theme").setAttribute("aria-pressed", String(isDark()));
    recoloured();
  };
  const chosen = storage.read("pullback:theme");
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  $("theme").addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    // What the system says anyway need not be held.
    if ((next === "dark") === dark.matches) delete root.dataset.theme;
    else root.dataset.theme = next;
    storage.write("pullback:theme", root.dataset.theme ?? null);
    recolour();
  });
  dark.addEventListener("change", recolour);
  recolour();
}
