// Formatted text as elements. The server sends nodes: strings, and [name, attributes, children].
// They become text, and elements and attributes of the short lists below; anything else shows the
// text that is in it. There is no HTML in strings anywhere on this page.

import { make } from "./dom.js";

const MATHML = "http://www.w3.org/1998/Math/MathML";
const DEEPEST = 300; // a formula has up to 100 levels, some of which take two elements

const words = (text) => text.split(/\s+/);

// --- HTML --------------------------------------------------------------------------------------

const ELEMENTS = new Set(words(`table thead tbody tfoot tr td th caption br hr p b i u s em strong sup sub
  ul ol li h1 h2 h3 h4 h5 h6 pre code blockquote span div center`));
const NUMBERS = new Set(words("colspan rowspan start"));
const CLASSES = new Set(words("math inline display wide list formula"));
const FIGURE = /^figure (\d{1,4})$/;

// --- MathML ------------------------------------------------------------------------------------

/** Elements that hold text and nothing else. */
const TOKENS = new Set(words("mi mn mo mtext ms annotation"));

/** Elements that hold elements. */
const LAYOUTS = new Set(words(`mspace mrow mfrac msqrt mroot mstyle mpadded mphantom menclose msub msup
  msubsup munder mover munderover mmultiscripts mprescripts none mtable mtr mtd semantics`));

const SIZE = String.raw`(?:\d{1,3}(?:\.\d{1,12})?|\.\d{1,12})(?:em|ex|px|pt|pc|cm|mm|in|%)?`;
const all = (names, values) => words(names).map((name) => [name, values]);

const ATTRIBUTES = new Map([
  ["display", /^(?:block|inline)$/],
  ["alttext", /^[^]{0,4000}$/],
  ["form", /^(?:prefix|infix|postfix)$/],
  ["mathvariant", /^[a-z-]{1,24}$/],
  ["scriptlevel", /^[+-]?\d$/],
  ["linethickness", new RegExp(`^(?:thin|medium|thick|${SIZE})$`)],
  ["columnalign", /^(?:left|center|right)(?: (?:left|center|right)){0,99}$/],
  ...all("columnspan rowspan", /^\d{1,3}$/),
  ...all("lspace rspace minsize maxsize width height depth voffset", new RegExp(`^[+-]?${SIZE}$`)),
  ...all("stretchy fence separator accent accentunder displaystyle movablelimits symmetric largeop", /^(?:true|false)$/),
]);

/** Elements that may have some style of their own: it is set property by property. */
const STYLED = new Set(["mtable", "mtd"]);
const SIDE = "(?:-(?:left|right|top|bottom))?";
const LINE = "(?:solid|dashed|dotted|double)";
const STYLES = [
  [/^text-align$/, /^(?:left|center|right|start|end)$/],
  [/^vertical-align$/, /^(?:top|middle|bottom|baseline)$/],
  [/^width$/, new RegExp(`^${SIZE}$`)],
  [new RegExp(`^padding${SIDE}$`), new RegExp(`^${SIZE}(?: ${SIZE}){0,3}$`)],
  [new RegExp(`^border${SIDE}$`), new RegExp(`^(?:0|none|${SIZE} ${LINE}(?: currentcolor)?)$`, "i")],
  [new RegExp(`^border${SIDE}-style$`), new RegExp(`^(?:none|${LINE})$`)],
  [new RegExp(`^border${SIDE}-width$`), new RegExp(`^${SIZE}$`)],
];

// --- building ----------------------------------------------------------------------------------

/** `nodes` as DOM nodes. `figure(n)` gives the picture of a figure. */
export function build(nodes, figure) {
  const made = document.createDocumentFragment();
  addHtml(made, nodes, figure, 0);
  return made;
}

/** The text in `nodes`, however deep they are. */
export function textOf(nodes) {
  const rest = [...nodes].reverse();
  let text = "";
  while (rest.length) {
    const node = rest.pop();
    if (typeof node === "string") text += node;
    else for (const child of [...node[2]].reverse()) rest.push(child);
  }
  return text;
}

function addHtml(parent, nodes, figure, depth) {
  for (const node of nodes) {
    if (typeof node === "string") {
      parent.append(node);
      continue;
    }
    const [name, attributes, children] = node;
    const picture = FIGURE.exec(attributes.class ?? "");
    if (picture) parent.append(figure(Number(picture[1])));
    else if (depth > DEEPEST) parent.append(textOf(children));
    else if (name === "math") addFormula(parent, attributes, children, depth);
    else if (!ELEMENTS.has(name)) addHtml(parent, children, figure, depth + 1);
    else addHtml(newElement(parent, name, attributes), children, figure, depth + 1);
  }
}

/** A new element at the end of `parent`. */
function newElement(parent, name, attributes) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (NUMBERS.has(key) && /^\d{1,4}$/.test(value)) element.setAttribute(key, value);
  }
  for (const word of (attributes.class ?? "").split(" ")) if (CLASSES.has(word)) element.classList.add(word);
  const home = name === "table" ? scroller(parent, "div", "wide") : parent;
  home.append(element);
  return element;
}

/** What scrolls by itself if its content is wide: `parent`, if it is made for that, or a new element in it. */
function scroller(parent, name, ...classes) {
  if (classes.every((word) => parent.classList?.contains(word))) return parent;
  const made = make(name, { className: classes.join(" ") });
  parent.append(made);
  return made;
}

function addFormula(parent, attributes, children, depth) {
  const home = attributes.display === "block" ? scroller(parent, "span", "math", "display") : parent;
  addMath(newMath(home, "math", attributes), children, depth + 1);
}

function addMath(parent, nodes, depth) {
  for (const node of nodes) {
    const [name, attributes, children] = typeof node === "string" ? [] : node;
    const inToken = TOKENS.has(parent.localName);
    const known = (TOKENS.has(name) || LAYOUTS.has(name)) && !inToken;
    if (known && depth <= DEEPEST) {
      addMath(newMath(parent, name, attributes), children, depth + 1);
      continue;
    }
    const text = textOf([node]); // it stands in tokens alone: elsewhere it would not be seen
    (inToken || !text.trim() ? parent : newMath(parent, "mtext", {})).append(text);
  }
}

/** A new element of a formula at the end of `parent`. */
function newMath(parent, name, attributes) {
  const element = document.createElementNS(MATHML, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (ATTRIBUTES.get(key)?.test(value)) element.setAttribute(key, value);
  }
  if (STYLED.has(name)) for (const [key, value] of stylesOf(attributes.style ?? "")) element.style.setProperty(key, value);
  parent.append(element);
  return element;
}

/** The declarations of a style that are allowed: pairs of a property and its value. */
function stylesOf(style) {
  return style.split(";").slice(0, 20)
    .map((one) => one.split(":").map((part) => part.trim()))
    .filter(([key, value, ...more]) => (
      !more.length && STYLES.some(([names, values]) => names.test(key) && values.test(value))
    ));
}
