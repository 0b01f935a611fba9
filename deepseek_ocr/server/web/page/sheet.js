// The picture of a page with its regions as boxes, and what links them to the text.

import { $, make } from "./dom.js";
import { blockId, hueOf, regionName } from "./text.js";

const SCALE = 999; // the largest coordinate of a box

/** Boxes over the picture. */
export class Sheet {
  #canvas = $("canvas");
  #image = null;
  #boxes = $("boxes");
  #note = $("picture-note");

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
    const percent = (length) => `${(length / SCALE) * 100}%`;
    for (const [left, top, right, bottom] of part.boxes) {
      const tabIndex = this.#boxes.childElementCount ? -1 : 0;
      const box = make("button", { type: "button", className: "box", tabIndex });
      box.dataset.region = part.order;
      box.setAttribute("aria-label", regionName(part));
      box.setAttribute("aria-details", blockId(part.order));
      Object.assign(box.style, { left: percent(left), top: percent(top) });
      Object.assign(box.style, { width: percent(right - left), height: percent(bottom - top) });
      box.style.setProperty("--hue", hueOf(part.label));
      this.#boxes.append(box);
    }
  }

  /** The picture inside a box, as a canvas of its own. */
  cut(box, name) {
    const canvas = make("canvas");
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

/**
 * Pointing at or focusing a region in one of the homes lights it in both; arrows move, Enter goes from
 * a box to its text and back, Escape lets go.
 */
export function link(picture, text) {
  const homes = [picture, text];
  let pinned = "";

  const all = (order) => homes.flatMap((home) => [...home.querySelectorAll(`[data-region="${Number(order)}"]`)]);
  const regionOf = (target) => target.closest?.("[data-region]");

  function light(order) {
    for (const home of homes) for (const lit of home.querySelectorAll(".lit")) lit.classList.remove("lit");
    if (order) for (const found of all(order)) found.classList.add("lit");
  }

  /** Keep a region lit and show it in the other home; what it is there. */
  function pin(region, home) {
    pinned = region.dataset.region;
    light(pinned);
    const other = all(pinned).find((found) => !home.contains(found));
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    other?.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
    return other;
  }

  /** Focus a region, which is where Tab enters its home from now on. */
  function land(region, options) {
    for (const stop of region.parentElement.querySelectorAll("[data-region]")) stop.tabIndex = stop === region ? 0 : -1;
    region.focus(options);
  }

  /** Go from a region to the same one in the other home. */
  function cross(region, home) {
    const other = pin(region, home);
    if (other) land(other, { preventScroll: true }); // it is being scrolled to
  }

  function step(home, from, by) {
    const stops = [...home.querySelectorAll("[data-region]")];
    const next = stops[stops.indexOf(from) + by];
    if (next) land(next);
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
      const region = regionOf(event.target);
      if (!region) return;
      if (home === picture) cross(region, home); // Enter clicks, too, and so does a screen reader
      else pin(region, home); // whoever selects words there goes on with them
    });
    home.addEventListener("keydown", (event) => {
      const region = regionOf(event.target);
      if (region !== event.target && event.key !== "Escape") return; // a wide table that is scrolled
      const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") {
        pinned = "";
        light("");
      } else if (region && by) {
        event.preventDefault();
        step(home, region, by);
      } else if (region && home === text && event.key === "Enter") {
        event.preventDefault(); // else it would click the box, too, and come back
        cross(region, home);
      }
    });
  }
  return () => { pinned = ""; };
}
