// Elements of the page: found by id, made with all that they have.

export const $ = (id) => document.getElementById(id);

/** A new element with `properties` and `children`. */
export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}
