// The picture of a page with its regions as boxes, and what links them to the text.

import { hueOf, shownLabel } from "./text.js";

const SCALE = 999; // the largest coordinate of a box

/** Boxes over the picture. */
export class Sheet {
  #canvas;
  #image = null;
  #boxes;
  #note;

  constructor({ canvas, boxes, note }) {
    this.#canvas = canvas;
    this.#boxes = boxes;
    this.#note = note;
  }

  /** An empty sheet in the proportions of `page`, with the boxes known so far. */
  show(page) {
    this.#image?.remove();
    this.#image = null;
    this.#note.hidden = true;
    this.#canvas.classList.add("empty");
    this.#canvas.style.aspectRatio = page.width && page.height ? `${page.width} / ${page.height}` : "";
    this.#boxes.replaceChildren();
    for (const part of page.parts) this.add(part);
  }

  /** Put the picture in: an image that is decoded. */
  picture(image) {
    if (this.#image === image) return;
    this.#image?.remove();
    this.#image = image;
    this.#canvas.prepend(image);
    this.#canvas.classList.remove("empty");
    this.#canvas.style.aspectRatio = "";
  }

  /** Say why there is no picture. */
  missing(why) {
    this.#note.textContent = why;
    this.#note.hidden = false;
  }

  /** The boxes of a part. */
  add(part) {
    if (!part.order) return;
    for (const [left, top, right, bottom] of part.boxes) {
      const box = document.createElement("button");
      box.type = "button";
      box.className = "box";
      box.dataset.region = part.order;
      box.tabIndex = this.#boxes.childElementCount ? -1 : 0;
      box.setAttribute("aria-label", `Region ${part.order}: ${shownLabel(part.label)}`);
      box.style.left = `${(left / SCALE) * 100}%`;
      box.style.top = `${(top / SCALE) * 100}%`;
      box.style.width = `${((right - left) / SCALE) * 100}%`;
      box.style.height = `${((bottom - top) / SCALE) * 100}%`;
      box.style.setProperty("--hue", hueOf(part.label));
      this.#boxes.append(box);
    }
  }

  /** The picture inside a box, as a canvas of its own. */
  cut(box, name) {
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name);
    const { naturalWidth: width, naturalHeight: height } = this.#image ?? { naturalWidth: 0, naturalHeight: 0 };
    const [left, top, right, bottom] = box.map((value, at) => (value / SCALE) * (at % 2 ? height : width));
    canvas.width = Math.max(1, Math.round(right - left));
    canvas.height = Math.max(1, Math.round(bottom - top));
    if (this.#image) {
      canvas.getContext("2d").drawImage(
        this.#image, left, top, canvas.width, canvas.height, 0, 0, canvas.width, canvas.height,
      );
    }
    return canvas;
  }
}

/** Pointing at or focusing a region in one of the homes lights it in both; arrows move, Escape lets go. */
export function link(picture, text) {
  const homes = [picture, text];
  let pinned = "";

  const all = (order) => homes.flatMap((home) => [...home.querySelectorAll(`[data-region="${Number(order)}"]`)]);
  const regionOf = (target) => target.closest?.("[data-region]");

  function light(order) {
    for (const home of homes) for (const lit of home.querySelectorAll(".lit")) lit.classList.remove("lit");
    if (order) for (const found of all(order)) found.classList.add("lit");
  }

  function reveal(order, from) {
    const other = homes.find((home) => home !== from);
    const target = all(order).find((found) => other.contains(found));
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    target?.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  }

  function step(home, from, by) {
    const stops = [...home.querySelectorAll("[data-region]")];
    const next = stops[stops.indexOf(from) + by];
    if (!next) return;
    for (const stop of stops) stop.tabIndex = stop === next ? 0 : -1;
    next.focus();
  }

  for (const home of homes) {
    home.addEventListener("pointerover", (event) => light(regionOf(event.target)?.dataset.region ?? pinned));
    home.addEventListener("pointerleave", () => light(pinned));
    home.addEventListener("focusin", (event) => {
      const region = regionOf(event.target);
      if (region) light(region.dataset.region);
    });
    home.addEventListener("focusout", () => light(pinned));
    home.addEventListener("click", (event) => {
      const order = regionOf(event.target)?.dataset.region;
      if (!order) return;
      pinned = order;
      light(order);
      reveal(order, home);
    });
    home.addEventListener("keydown", (event) => {
      const region = regionOf(event.target);
      const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") {
        pinned = "";
        light("");
      } else if (region && by) {
        event.preventDefault();
        step(home, region, by);
      } else if (region && event.key === "Enter") {
        pinned = region.dataset.region;
        reveal(pinned, home);
      }
    });
  }
  return () => { pinned = ""; };
}
