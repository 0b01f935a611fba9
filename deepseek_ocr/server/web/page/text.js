// The text of a page as blocks, one a region: formatted, or raw as the model wrote it.

import { $, make } from "./dom.js";
import { build, textOf } from "./nodes.js";

const LONGEST_NAME = 80; // characters of a label that stand for all of it

/** A hue for a label, the same everywhere. */
export function hueOf(label) {
  const known = { title: 210, text: 175, table: 30, image: 285, figure: 285, list: 150, equation: 330 };
  if (label in known) return known[label];
  let sum = 0;
  for (const sign of label) sum = (sum * 31 + sign.codePointAt(0)) % 360;
  return sum;
}

/** A label as people read it. One that is the text itself stays as it is. */
function shownLabel(label) {
  return (/^[a-z_]+$/.test(label) ? label.replaceAll("_", " ") : label) || "region";
}

/** What a region is called, on the picture and in the text alike. */
export function regionName({ order, label }) {
  const signs = [...shownLabel(label)];
  const name = signs.length > LONGEST_NAME ? `${signs.slice(0, LONGEST_NAME).join("")} …` : signs.join("");
  return `Region ${order}: ${name}`;
}

/** The id of a region's block, of which one page's are in the document at a time. */
export const blockId = (order) => `region-${order}`;

/** The blocks of the page that is looked at. */
export class TextView {
  #home = $("text");
  #blocks = new Map();

  /** Show `page` from the beginning: what is known of its text so far. */
  show(page) {
    this.#home.replaceChildren();
    this.#blocks.clear();
    for (const part of page.parts) this.add(part);
    this.settle(page);
  }

  /** Mark the page as being read, or done, or failed. */
  settle(page) {
    const reading = page.state === "reading";
    this.#home.classList.toggle("reading", reading);
    this.#home.ariaBusy = String(reading);
    this.#home.querySelector(":scope > .note, :scope > .failed")?.remove();
    const words = noteOn(page);
    if (words) this.#home.append(make("p", { className: page.state === "failed" ? "failed" : "note" }, words));
  }

  /** A block for a part: a region (order 1 and up) or text outside of all (0). */
  add(part) {
    this.#home.querySelector(":scope > .note")?.remove();
    const block = make("section", { className: "block" });
    const tail = document.createTextNode(part.text.trim());
    if (part.order) {
      const tabIndex = this.#home.querySelector("[data-region]") ? -1 : 0;
      Object.assign(block, { id: blockId(part.order), tabIndex, ariaLabel: regionName(part) });
      block.dataset.region = part.order;
      block.style.setProperty("--hue", hueOf(part.label));
      block.append(make("span", { className: "label" }, shownLabel(part.label)));
    }
    block.append(make("div", { className: "body plain", dir: "auto" }, tail));
    this.#home.append(block);
    this.#blocks.set(part.order, { block, tail, isFormatted: false });
  }

  /** What the text of a part is by now; blank ends are not shown. */
  write({ order, text }) {
    const tail = this.#blocks.get(order)?.tail;
    if (!tail) return;
    const shown = text.trim();
    if (shown.startsWith(tail.data)) tail.appendData(shown.slice(tail.length));
    else tail.data = shown;
  }

  /** The formatted text of the page; whether it or the plain one is seen, the style says. */
  format(blocks, figure) {
    for (const { region, nodes } of blocks) {
      const found = this.#blocks.get(region);
      if (!found || found.isFormatted || !nodes.length) continue;
      found.isFormatted = true;
      found.block.append(make("div", { className: "body formatted", dir: "auto" }, build(nodes, figure)));
      if (!found.tail.data && textOf(nodes).trim()) found.block.classList.add("label-shown");
    }
  }
}

/** What is to be said of a page besides its text, if anything. */
function noteOn({ state, parts, finish, error }) {
  if (state === "failed") return `This page could not be read. ${error}`;
  if (state === "waiting") return "This page waits for its turn.";
  if (state === "reading") return parts.length ? "" : "Looking at the page …";
  return parts.some((part) => part.text.trim() || part.order) ? ENDS[finish] : "There is no text on this page.";
}

const ENDS = {
  length: "The text ends here because no room was left; it may be cut.",
  loop: "The reading went in circles and was ended; the text may be incomplete.",
  timeout: "No time was left for this page; the text may be cut.",
};
