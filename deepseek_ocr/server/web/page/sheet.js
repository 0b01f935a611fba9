// The picture of a page with its regions as boxes, and what links them to the text.

import { $, make } from "./dom.js";
import { blockId, hueOf, regionName } from "./text.js";

const SCALE = 999; // the largest coordinate of a box

/** Boxes over the picture. */
export class Sheet {
  /** An empty sheet in the proportions of `page`, with the boxes known so far. */
  show(page) {
    $("picture")?.remove();
    $("picture-note").hidden = true;
    $("canvas").classList.add("empty");
    $("canvas").style.aspectRatio = page.width && page.height ? `${page.width} / ${page.height}` : "";
    $("boxes").replaceChildren();
    for (const part of page.parts) this.add(part);
  }

  /** Put the picture in: an image that is decoded, of the id picture. */
  picture(image) {
    if ($("picture") === image) return;
    $("picture")?.remove();
    $("canvas").prepend(image);
    $("canvas").classList.remove("empty");
    $("canvas").style.aspectRatio = "";
  }

  /** Say why there is no picture. */
  missing(why) {
    $("picture-note").textContent = why;
    $("picture-note").hidden = false;
  }

  /** The boxes of a part. */
  add(part) {
    if (!part.order) return;
    const percent = (length) => `${(length / SCALE) * 100}%`;
    for (const [left, top, right, bottom] of part.boxes) {
      const tabIndex = $("boxes").childElementCount ? -1 : 0;
      const box = make("button", { type: "button", className: "box", tabIndex, ariaLabel: regionName(part) });
      box.dataset.region = part.order;
      box.setAttribute("aria-details", blockId(part.order));
      Object.assign(box.style, { left: percent(left), top: percent(top) });
      Object.assign(box.style, { width: percent(right - left), height: percent(bottom - top) });
      box.style.setProperty("--hue", hueOf(part.label));
      $("boxes").append(box);
    }
  }

  /** The picture inside a box, as a canvas of its own. */
  cut(box, name) {
    const canvas = make("canvas", { role: "img", ariaLabel: name });
    const { naturalWidth: width = 0, naturalHeight: height = 0 } = $("picture") ?? {};
    const [left, top, right, bottom] = box.map((value, at) => (value / SCALE) * (at % 2 ? height : width));
    canvas.width = Math.max(1, Math.round(right - left));
    canvas.height = Math.max(1, Math.round(bottom - top));
    if ($("picture")) {
      canvas.getContext("2d").drawImage(
        $("picture"), left, top, canvas.width, canvas.height, 0, 0, canvas.width, canvas.height,
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

  const regionsIn = (home) => [...home.querySelectorAll("[data-region]")];
  const regionOf = (target) => target.closest?.("[data-region]");

  function light(order) {
    for (const region of homes.flatMap(regionsIn)) region.classList.toggle("lit", region.dataset.region === order);
  }

  /** Keep a region lit and show it in the other home; what it is there. */
  function pin(region, home) {
    pinned = region.dataset.region;
    light(pinned);
    const other = regionsIn(home === text ? picture : text).find((found) => found.dataset.region === pinned);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    other?.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
    return other;
  }

  /** Focus a region, which is where Tab enters its home from now on. */
  function land(region, options) {
    for (const stop of regionsIn(region.parentElement)) stop.tabIndex = stop === region ? 0 : -1;
    region.focus(options);
  }

  /** Go from a region to the same one in the other home. */
  function cross(region, home) {
    const other = pin(region, home);
    if (other) land(other, { preventScroll: true }); // it is being scrolled to
  }

  for (const home of homes) {
    for (const kind of ["pointerover", "focusin"]) {
      home.addEventListener(kind, (event) => light(regionOf(event.target)?.dataset.region ?? pinned));
    }
    for (const kind of ["pointerleave", "focusout"]) home.addEventListener(kind, () => light(pinned));
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
      } else if (by) {
        event.preventDefault();
        const stops = regionsIn(home);
        const next = stops[stops.indexOf(region) + by];
        if (next) land(next);
      } else if (home === text && event.key === "Enter") {
        event.preventDefault(); // else it would click the box, too, and come back
        cross(region, home);
      }
    });
  }
  return () => { pinned = ""; };
}
