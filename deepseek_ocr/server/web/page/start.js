// The form: which file, which task, which preset.

import { $, make } from "./dom.js";

/** The form, filled with what the server offers. `onRead(file, fields)` when it is sent. */
export class Start {
  #file = null;
  #offered = { tasks: [], presets: [] };
  #form = $("start");

  constructor({ onRead, onProblem }) {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      const wrong = this.#wrong();
      if (!wrong) return onRead(this.#file, this.#fields());
      const [message, field] = wrong;
      onProblem(message);
      field.focus();
    });
    $("file").addEventListener("change", (event) => this.#choose(event.target.files[0]));
    this.#form.addEventListener("change", () => this.#refresh());
    this.#takeDrops();
  }

  /** Offer what there is. */
  offer(offered) {
    const { tasks, presets, task, preset } = this.#offered = offered;
    $("tasks").replaceChildren(...tasks.map((one) => taskCard(one, one.name === task)));
    $("preset").replaceChildren(...presets.map((one) => new Option(one.name, one.name, false, one.name === preset)));
    this.#refresh();
  }

  /** Take a file, whichever way it came, while the form is there. */
  #choose(file) {
    if (!file || this.#form.hidden) return;
    this.#file = file;
    $("file-name").textContent = file.name || "Pasted picture";
    $("file-hint").textContent = `${sizeOf(file.size)} · choose, drop or paste another to replace it`;
    $("drop").classList.add("chosen");
    $("read").focus();
  }

  #fields() {
    return {
      task: this.#form.elements.task.value,
      resolution: $("preset").value,
      reference: $("reference-field").hidden ? "" : $("reference").value.trim(),
      pages: $("pages").value.trim(),
    };
  }

  #wrong() {
    if (!this.#file) return ["Choose a picture or a PDF first.", $("file")];
    if ($("reference-field").hidden || $("reference").value.trim()) return null;
    return ["Say what to locate on the page.", $("reference")];
  }

  #refresh() {
    const task = this.#offered.tasks.find((one) => one.name === this.#form.elements.task.value);
    const preset = this.#offered.presets.find((one) => one.name === $("preset").value);
    $("reference-field").hidden = !task?.reference;
    $("preset-hint").textContent = preset?.purpose ?? "";
  }

  #takeDrops() {
    const drop = $("drop");
    const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    const over = (on) => drop.classList.toggle("over", on);
    for (const kind of ["dragenter", "dragover", "drop"]) {
      addEventListener(kind, (event) => {
        if (!carries(event)) return;
        event.preventDefault(); // else the browser would open the file in place of this page
        over(kind !== "drop" && !this.#form.hidden);
        if (kind === "drop") this.#choose(event.dataTransfer.files[0]);
      });
    }
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
    addEventListener("paste", (event) => {
      const file = event.clipboardData?.files[0];
      if (file) event.preventDefault();
      this.#choose(file);
    });
  }
}

function taskCard(task, checked) {
  const input = make("input", { type: "radio", name: "task", value: task.name, checked });
  return make("label", { className: "task" }, input, make("b", {}, task.name), make("small", {}, task.purpose));
}

function sizeOf(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
