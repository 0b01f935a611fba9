// The text of a page as blocks, one a region. Whatever comes from the model becomes text nodes, or
// elements of the short list below: there is no HTML in strings anywhere on this page.

const ELEMENTS = new Set([
  "table", "thead", "tbody", "tfoot", "tr", "td", "th", "caption", "br", "hr", "p", "b", "i", "u",
  "s", "em", "strong", "sup", "sub", "ul", "ol", "li", "h1", "h2", "h3", "h4", "h5", "h6", "pre",
  "code", "blockquote", "span", "div", "center",
]);
const NUMBERS = new Set(["colspan", "rowspan", "start"]);
const CLASSES = new Set(["math", "inline", "display", "wide"]);
const DEEPEST = 60;

/** A hue for a label, the same everywhere. */
export function hueOf(label) {
  const known = { title: 210, text: 175, table: 30, image: 285, figure: 285, list: 150, equation: 330 };
  if (label in known) return known[label];
  let sum = 0;
  for (const sign of label) sum = (sum * 31 + sign.codePointAt(0)) % 360;
  return sum;
}

/** A label as people read it. */
function shownLabel(label) {
  return label.replaceAll("_", " ") || "region";
}

/** What a region is called, on the picture and in the text alike. */
export function regionName({ order, label }) {
  return `Region ${order}: ${shownLabel(label)}`;
}

/** The id of a region's block, of which one page's are in the document at a time. */
export const blockId = (order) => `region-${order}`;

/** DOM nodes of `nodes`: strings, and [element, attributes, children]. `figure(n)` gives a picture. */
function build(nodes, figure, depth = 0) {
  const made = document.createDocumentFragment();
  for (const node of nodes) {
    if (typeof node === "string") {
      made.append(node);
      continue;
    }
    const [name, attributes, children] = node;
    const picture = /^figure (\d{1,4})$/.exec(attributes.class ?? "");
    if (picture) {
      made.append(figure(Number(picture[1])));
      continue;
    }
    if (!ELEMENTS.has(name) || depth > DEEPEST) {
      made.append(build(children, figure, depth + 1));
      continue;
    }
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (NUMBERS.has(key) && /^\d{1,4}$/.test(value)) element.setAttribute(key, value);
    }
    for (const word of (attributes.class ?? "").split(" ")) if (CLASSES.has(word)) element.classList.add(word);
    element.append(build(children, figure, depth + 1));
    made.append(element);
  }
  return made;
}

/** The blocks of the page that is looked at. */
export class TextView {
  #home;
  #tails = new Map();

  constructor(home) {
    this.#home = home;
  }

  /** Show `page` from the beginning: what is known of its text so far. */
  show(page) {
    this.#home.replaceChildren();
    this.#tails.clear();
    for (const part of page.parts) this.add(part);
    this.settle(page);
  }

  /** Mark the page as being read, or done, or failed. */
  settle(page) {
    const reading = page.state === "reading";
    this.#home.classList.toggle("reading", reading);
    this.#home.setAttribute("aria-busy", String(reading));
    this.#home.querySelector(":scope > .note, :scope > .failed")?.remove();
    const note = document.createElement("p");
    if (page.state === "failed") {
      note.className = "failed";
      note.textContent = `This page could not be read. ${page.error}`;
    } else if (page.state === "waiting" || (reading && !page.parts.length)) {
      note.className = "note";
      note.textContent = page.state === "waiting" ? "This page waits for its turn." : "Looking at the page …";
    } else if (page.state === "done" && !page.parts.some((part) => part.text.trim() || part.order)) {
      note.className = "note";
      note.textContent = "There is no text on this page.";
    } else if (page.state === "done" && page.finish !== "stop") {
      note.className = "note";
      note.textContent = ENDS[page.finish] ?? "";
    }
    if (note.textContent) this.#home.append(note);
  }

  /** A block for a part: a region (order 1 and up) or text outside of all (0). */
  add(part) {
    this.#home.querySelector(":scope > .note")?.remove();
    const block = document.createElement("section");
    block.className = "block";
    const body = document.createElement("div");
    body.className = "body plain";
    body.dir = "auto";
    if (part.order) {
      block.id = blockId(part.order);
      block.dataset.region = part.order;
      block.tabIndex = this.#home.querySelector("[data-region]") ? -1 : 0;
      block.style.setProperty("--hue", hueOf(part.label));
      block.setAttribute("aria-label", regionName(part));
      const label = document.createElement("span");
      label.className = "label";
      label.textContent = shownLabel(part.label);
      block.append(label);
    }
    const tail = document.createTextNode(part.text.trim());
    body.append(tail);
    block.append(body);
    this.#home.append(block);
    this.#tails.set(part.order, tail);
  }

  /** What the text of a part is by now; blank ends are not shown. */
  write({ order, text }) {
    const tail = this.#tails.get(order);
    if (!tail) return;
    const shown = text.trim();
    if (shown.startsWith(tail.data)) tail.appendData(shown.slice(tail.length));
    else tail.data = shown;
  }

  /** The formatted text in place of the plain one. */
  format(blocks, figure) {
    for (const { region, nodes } of blocks) {
      const tail = this.#tails.get(region);
      const body = tail?.parentElement;
      if (!body || !nodes.length) continue; // formatted before, or nothing to format
      body.classList.remove("plain");
      body.replaceChildren(build(nodes, figure));
    }
  }
}

const ENDS = {
  length: "The text ends here because no room was left; it may be cut.",
  loop: "The reading went in circles and was ended; the text may be incomplete.",
  timeout: "No time was left for this page; the text may be cut.",
};
