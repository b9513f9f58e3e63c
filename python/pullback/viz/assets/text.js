// How tokens and numbers are written.

// Tokens as people can read them: marks for white space, escapes for what would act on the text around it.
function visible(text) {
  if (text === "") return "∅";
  if (/^ +$/.test(text)) return "␣".repeat(text.length);
  return marks(text.replace(/^ +| +$/g, ""));
}

function marks(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍")
    .replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
      (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

// By code points, so that no surrogate pair is cut.
function clip(text, length) {
  if (text.length <= length) return text;
  const points = Array.from(text);
  return points.length <= length ? text : `${points.slice(0, length - 1).join("")}…`;
}

function signed(x) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  const digits = size >= 100 ? size.toFixed(0) : size >= 0.001 || size === 0 ? size.toPrecision(3) : size.toExponential(1);
  return `${x < 0 ? "−" : "+"}${digits}`;
}

const plain = (x) => signed(x).replace(/^\+/, "");
const percent = (x) => (x >= 0.0995 ? `${Math.round(100 * x)}%` : `${(100 * x).toFixed(x < 0.00095 && x > 0 ? 2 : 1)}%`);
