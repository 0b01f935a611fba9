// A document that is being read: its pages, which of them is looked at, how far it is.

import * as api from "./api.js";
import { $, make } from "./dom.js";

/** What is known of one page. */
function emptyPage(number) {
  return { number, state: "waiting", width: 0, height: 0, parts: [], finish: "", error: "", picture: null, blocks: null };
}

/** One job: takes its events, shows the page that is looked at. */
export class Work {
  ended = false;
  leaving = new AbortController(); // aborted when no more events are wanted
  #pages = new Map();
  #current = 0;
  #following = true;
  #closed = false;
  #began = performance.now();
  #sheet;
  #text;

  constructor({ job, sheet, text }) {
    this.job = job;
    this.#sheet = sheet;
    this.#text = text;
    $("page-nav").hidden = true;
    $("page-list").replaceChildren();
    $("cancel").hidden = false;
    $("progress").hidden = false;
    this.#allow(false);
    this.#sheet.show(emptyPage(0));
    this.#text.show(emptyPage(0));
    this.say("Waiting for its turn …");
  }

  /** Say how it stands, to eyes and to screen readers. */
  say(words) {
    $("work-state").textContent = words;
    $("live").textContent = words;
  }

  /** Take one event of the job. */
  take(event) {
    if (this.#closed) return;
    const page = this.#pages.get(event.page);
    switch (event.type) {
      case "document.opened": return this.#opened(event);
      case "page.started": return page && this.#started(page, event);
      case "page.retried": return page && this.#restart(page);
      case "page.region": return page && this.#region(page, event);
      case "page.delta": return page && this.#delta(page, event);
      case "page.done": return page && this.#done(page, event.result);
      case "document.done": return this.#end(event);
      default: // a newer server may say more
    }
  }

  /** No more events will come, and that is not its end. */
  giveUp(words = "It was not read to its end.") {
    this.#over();
    this.say(words);
    for (const page of this.#pages.values()) if (page.state === "reading") page.state = "waiting";
    this.#list();
  }

  /** Let go of everything. */
  close() {
    this.#closed = true;
    this.ended = true;
    this.leaving.abort();
    for (const page of this.#pages.values()) {
      page.picture?.then((image) => URL.revokeObjectURL(image.src)).catch(() => {});
    }
  }

  // --- events ---------------------------------------------------------------------------------

  #opened(event) {
    const before = this.#pages;
    const again = (number) => ({ ...emptyPage(number), picture: before.get(number)?.picture ?? null });
    this.#pages = new Map(event.pages.map((number) => [number, again(number)]));
    $("work-name").textContent = event.name;
    $("page-nav").hidden = event.pages.length < 2;
    $("page-list").replaceChildren(...event.pages.map((number) => this.#item(number)));
    this.#current = 0;
    this.#look(event.pages[0]);
    this.#count();
  }

  #started(page, { width, height }) {
    Object.assign(page, { state: "reading", width, height, parts: [] });
    if (this.#following && this.#pages.get(this.#current)?.state !== "reading") this.#look(page.number);
    else if (page.number === this.#current) this.#redraw(page);
    this.#count();
  }

  #restart(page) {
    page.parts = [];
    if (page.number === this.#current) this.#redraw(page);
  }

  #region(page, { order, label, boxes }) {
    const part = { order, label, boxes, text: "" };
    page.parts.push(part);
    if (page.number !== this.#current) return;
    this.#sheet.add(part);
    this.#text.add(part);
  }

  #delta(page, { order, text }) {
    if (page.parts.at(-1)?.order !== order) this.#region(page, { order, label: "", boxes: [] });
    const part = page.parts.at(-1);
    part.text += text;
    if (page.number === this.#current) this.#text.write(part);
  }

  #done(page, result) {
    const failed = result.error !== undefined;
    const parts = failed ? [] : partsOf(result);
    const isShown = page.parts.length > 0 && placesOf(page.parts) === placesOf(parts);
    const { width, height, error = "", finish_reason: finish = "" } = result;
    Object.assign(page, { state: failed ? "failed" : "done", width, height, error, finish, parts });
    if (page.number === this.#current && !isShown) this.#redraw(page);
    else if (page.number === this.#current) { // what is pointed at stays
      for (const part of parts) this.#text.write(part);
      this.#text.settle(page);
      this.#fill(page);
    }
    this.#count();
  }

  #end(event) {
    this.#over();
    $("progress").hidden = true;
    const seconds = Math.max(1, Math.round((performance.now() - this.#began) / 1000));
    const { total, failed } = event.pages;
    const read = total - failed;
    this.#allow(event.status === "done");
    const trouble = failed ? `, ${failed} could not be read` : "";
    const done = `${read} ${read === 1 ? "page" : "pages"} read${trouble} · ${seconds} s`;
    this.say(event.status === "done" ? done : event.error || "It was cancelled.");
  }

  // --- looking --------------------------------------------------------------------------------

  #look(number) {
    if (number === undefined || number === this.#current) return;
    this.#current = number;
    this.#redraw(this.#pages.get(number));
    this.#list();
  }

  #redraw(page) {
    this.#sheet.show(page);
    this.#text.show(page);
    this.#fill(page);
  }

  /** Fetch what the page lacks: its picture, and its formatted text when it is done. */
  async #fill(page) {
    const looked = () => !this.#closed && this.#current === page.number;
    try {
      page.picture ??= imageOf(this.job, page.number);
      const image = await page.picture;
      if (looked()) this.#sheet.picture(image);
    } catch (error) {
      page.picture = null;
      if (looked()) this.#sheet.missing(page.error ? "" : `There is no picture of this page. ${error.message}`);
    }
    if (page.state !== "done") return;
    try {
      page.blocks ??= api.blocks(this.job, page.number);
      const { blocks } = await page.blocks;
      const figures = page.parts.filter((part) => part.label === "image").flatMap((part) => part.boxes);
      if (looked()) {
        this.#text.format(blocks, (at) => this.#sheet.cut(figures[at] ?? [0, 0, 0, 0], `Figure ${at + 1}`));
      }
    } catch {
      page.blocks = null; // the plain text stays
    }
  }

  // --- lists and counts -----------------------------------------------------------------------

  #item(number) {
    const button = make("button", { type: "button" });
    button.dataset.page = number;
    button.addEventListener("click", () => {
      this.#following = false;
      this.#look(number);
    });
    return make("li", {}, button);
  }

  #list() {
    const list = $("page-list");
    for (const button of list.querySelectorAll("button")) {
      const page = this.#pages.get(Number(button.dataset.page));
      const failed = page.state === "failed";
      const isCurrent = page.number === this.#current;
      button.dataset.state = page.state;
      button.textContent = failed ? `${page.number} !` : page.number;
      button.ariaLabel = `Page ${page.number}, ${failed ? "could not be read" : page.state}`;
      button.ariaCurrent = isCurrent ? "page" : null;
      if (isCurrent && this.#following) list.scrollLeft = button.offsetLeft - list.offsetLeft - list.clientWidth / 2;
    }
  }

  #count() {
    const pages = [...this.#pages.values()];
    const settled = pages.filter((page) => page.state === "done" || page.state === "failed").length;
    $("progress").max = pages.length;
    $("progress").value = settled;
    const words = pages.length === 1 ? "Reading …" : `Reading … ${settled} of ${pages.length} pages`;
    if (words !== $("work-state").textContent) this.say(words);
    this.#list();
  }

  /** Nothing is left to stop. The focus would vanish with the button; it goes to the heading. */
  #over() {
    this.ended = true;
    this.leaving.abort();
    const focused = document.activeElement === $("cancel");
    $("cancel").hidden = true;
    if (focused) $("work-name").focus({ preventScroll: true });
  }

  #allow(finished) {
    for (const button of [$("copy"), ...document.querySelectorAll(".download")]) button.disabled = !finished;
  }
}

/** The picture of a page, decoded. */
async function imageOf(job, number) {
  const image = make("img", { id: "picture", alt: `Page ${number}` });
  image.src = URL.createObjectURL(await api.picture(job, number));
  await image.decode();
  return image;
}

/** Where the parts of a page are, in words that can be compared. */
const placesOf = (parts) => JSON.stringify(parts.map(({ order, label, boxes }) => [order, label, boxes]));

/**
 * The parts of a page that is read, raw: text before its regions (order 0), then the regions. Text
 * that stands in its tag is there as the label.
 */
function partsOf(result) {
  const parts = result.regions.map(({ order, label, boxes, text }) => ({
    order, label, boxes, text: text === label ? "" : text,
  }));
  const before = result.text.slice(0, parts.length ? result.text.search(HEAD) : undefined);
  if (before.trim()) parts.unshift({ order: 0, label: "", boxes: [], text: before });
  return parts;
}

/** What a region begins with: its label and its boxes, as the server reads them. */
const NUMBER = String.raw`\s*-?\d{1,9}\s*`;
const BOX = String.raw`\s*\[${NUMBER},${NUMBER},${NUMBER},${NUMBER}\]\s*`;
const HEAD = new RegExp(
  String.raw`<\|ref\|>(?:(?!<\|/?(?:ref|det)\|>)[^])*<\|/ref\|><\|det\|>\s*\[${BOX}(?:,${BOX})*\]\s*<\|/det\|>`,
);
