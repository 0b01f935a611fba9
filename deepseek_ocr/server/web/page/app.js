// The page: a file goes in, a job comes back, its events fill the sheet and the text.

import * as api from "./api.js";
import { $, make } from "./dom.js";
import { Sheet, link } from "./sheet.js";
import { Start } from "./start.js";
import { TextView } from "./text.js";
import { Work } from "./work.js";

const PATIENCE_MS = [500, 1000, 2000, 4000, 8000, 8000, 8000];

let work = null;

const sheet = new Sheet();
const text = new TextView();
const unpin = link($("boxes"), $("text"));
const start = new Start({ onRead: (file, fields) => busy($("read"), () => read(file, fields)), onProblem: complain });

// --- what is seen ------------------------------------------------------------------------------

function complain(message) {
  $("problem-text").textContent = message;
  $("problem").hidden = false;
  $("problem").scrollIntoView({ block: "nearest" });
}

function dismiss() {
  $("problem").hidden = true;
  ($("work").hidden ? $("file") : $("work-name")).focus({ preventScroll: true });
}

function show(id) {
  for (const part of ["start", "work"]) $(part).hidden = part !== id;
  $("again").hidden = id !== "work";
}

/** Tell what went wrong; ask for the key where that is what is missing. */
function report(error) {
  if (error.name === "AbortError") return;
  if (error.status === 401) askForKey();
  complain(error instanceof api.Problem ? error.message : `Something went wrong on this page: ${error.message}`);
}

function askForKey() {
  $("key-field").hidden = false;
  if ($("work").hidden) $("key").focus();
}

/** Let a button do its task, once at a time. Unlike `disabled`, `aria-disabled` leaves it the focus. */
async function busy(button, task) {
  if (button.ariaDisabled) return;
  button.ariaDisabled = "true";
  $("problem").hidden = true;
  try {
    await task();
  } catch (error) {
    report(error);
  } finally {
    button.ariaDisabled = null;
  }
}

/** Show the raw text of pages or the formatted one, also of the pages that come. */
function showRaw(raw) {
  api.view.set(raw ? "raw" : "");
  $("text").classList.toggle("raw", raw);
  $("raw").ariaPressed = String(raw);
}

// --- a document --------------------------------------------------------------------------------

async function read(file, fields) {
  api.key.set($("key").value.trim());
  $("read").textContent = "Handing it in …";
  try {
    const job = await api.submit(file, fields);
    api.lastJob.set(job.id);
    open(job.id, job.name);
  } finally {
    $("read").textContent = "Read";
  }
}

/** Look at a job from its beginning and follow it to its end. */
function open(job, name) {
  work?.close();
  unpin();
  work = new Work({ job, sheet, text });
  document.title = `${name} · DeepSeek-OCR`;
  $("work-name").textContent = name;
  show("work");
  scrollTo(0, 0);
  $("work-name").focus({ preventScroll: true });
  follow(work);
}

async function follow(mine) {
  let failures = 0;
  while (!mine.ended) {
    try {
      for await (const event of api.events(mine.job, mine.leaving.signal)) {
        failures = 0;
        mine.take(event);
      }
      if (!mine.ended) throw new api.Problem("The connection to the server was lost.");
    } catch (error) {
      if (mine.leaving.signal.aborted) return; // stopped, or left for another document
      const lost = error instanceof api.Problem && [0, 502, 503].includes(error.status);
      if (!lost || failures === PATIENCE_MS.length) {
        mine.giveUp();
        if (error.status === 404) api.lastJob.set("");
        report(error);
        return;
      }
      mine.say("The connection was lost; trying again …");
      await new Promise((done) => { setTimeout(done, PATIENCE_MS[failures]); });
      failures += 1;
    }
  }
}

function leave() {
  work?.close();
  const job = api.lastJob.get();
  api.lastJob.set("");
  if (job) api.forget(job).catch(() => {}); // it grows old on the server otherwise
  work = null;
  document.title = "DeepSeek-OCR";
  $("problem").hidden = true;
  show("start");
  $("file").focus();
}

async function cancel() {
  const job = api.lastJob.get();
  work?.giveUp("Stopped. What was read so far stays here until you leave.");
  try {
    if (job) await api.forget(job);
    api.lastJob.set("");
  } catch (error) {
    report(error);
  }
}

// --- taking it away ----------------------------------------------------------------------------

async function copy() {
  await toClipboard(api.output(work.job, "md").then(({ blob }) => blob.text()));
  work?.say("Copied as Markdown."); // unless it was left meanwhile
}

/** Copy what is promised. Safari allows it only within the click itself, before the words are there. */
async function toClipboard(promised) {
  if (navigator.clipboard && window.ClipboardItem) {
    const plain = promised.then((words) => new Blob([words], { type: "text/plain" }));
    const written = navigator.clipboard.write([new ClipboardItem({ "text/plain": plain })]);
    await Promise.all([promised, written]); // why there are no words is said better by the former
  } else if (navigator.clipboard) {
    await navigator.clipboard.writeText(await promised);
  } else {
    copyBySelecting(await promised); // without TLS there is no clipboard to ask
  }
}

function copyBySelecting(words) {
  const focused = document.activeElement;
  const area = make("textarea", { value: words, className: "unseen" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused.focus({ preventScroll: true });
  if (!done) throw new api.Problem("The browser did not allow copying; download the Markdown instead.");
}

async function download(format) {
  const { blob, name } = await api.output(work.job, format);
  const href = URL.createObjectURL(blob);
  make("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
  work?.say(`${name} was made.`);
}

// --- begin -------------------------------------------------------------------------------------

$("problem-close").addEventListener("click", dismiss);
$("again").addEventListener("click", leave);
$("cancel").addEventListener("click", cancel);
$("raw").addEventListener("click", () => showRaw($("raw").ariaPressed !== "true"));
$("copy").addEventListener("click", () => busy($("copy"), copy));
for (const button of document.querySelectorAll(".download")) {
  button.addEventListener("click", () => busy(button, () => download(button.dataset.format)));
}
showRaw(api.view.get() === "raw");

try {
  const offered = await api.options();
  start.offer(offered);
  if (offered.needs_key) {
    $("key").value = api.key.get();
    askForKey();
  }
  if (api.lastJob.get()) open(api.lastJob.get(), "Document");
} catch (error) {
  report(error);
}
